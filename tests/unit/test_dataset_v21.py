"""Reading LeRobotDataset v2.1: the same frames as from v3.0."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from made_dataset import to_v21, write
from simplevla.demonstrations.dataset import LeRobotDataset

STATS = "meta/episodes_stats.jsonl"


@pytest.fixture(params=[None, "front"])
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """The same dataset as v3.0 and as v2.1, with images or with a video."""
    write(tmp_path / "v30")
    shutil.copytree(tmp_path / "v30", tmp_path / "v21")
    to_v21(tmp_path / "v21", video=request.param)
    return tmp_path / "v30", tmp_path / "v21"


def test_the_frames_are_those_of_v30(folders: tuple[Path, Path]) -> None:
    new, old = (LeRobotDataset(folder) for folder in folders)
    assert not list(folders[1].rglob("file-*"))
    assert (old.instructions, old.cameras, old.episode_ranges) == (new.instructions, new.cameras, new.episode_ranges)
    assert old.fps == new.fps
    expected, got = new.load_all(), old.load_all()
    for name in ("state", "actions", "task_index", "episode_index"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    for camera, pictures in expected.images.items():
        np.testing.assert_array_equal(got.images[camera], pictures)


def test_streamed_frames_are_those_of_v30(folders: tuple[Path, Path], tmp_path: Path) -> None:
    new, old = (LeRobotDataset(folder) for folder in folders)
    frames, wanted = old.streamed(tmp_path / "spill"), np.array([6, 0, 3, 3])
    for camera, pictures in new.load_all().images.items():
        np.testing.assert_array_equal(frames.images[camera][wanted], pictures[wanted])


def test_the_episodes_statistics_are_compared_with_the_frames(folders: tuple[Path, Path]) -> None:
    path = folders[1] / STATS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert LeRobotDataset(folders[1]).statistics == LeRobotDataset(folders[0]).statistics
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[2]["stats"]["action"]["std"][1] += 1
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.warns(UserWarning, match=r"episodes_stats.jsonl isn't of these frames: action std of dimension 1 is"):
        assert LeRobotDataset(folders[1]).statistics == LeRobotDataset(folders[0]).statistics


def test_only_whole_statistics_are_compared(folders: tuple[Path, Path], recwarn: pytest.WarningsRecorder) -> None:
    path = folders[1] / STATS
    path.write_text(path.read_text().splitlines()[0] + "\n")
    expected = LeRobotDataset(folders[0]).statistics
    assert LeRobotDataset(folders[1]).statistics == expected
    path.unlink()
    assert LeRobotDataset(folders[1]).statistics == expected
    assert not recwarn.list
