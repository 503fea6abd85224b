"""What of a dataset is read, and under which names: cameras, state, actions, instructions, episodes, idle frames."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from made_dataset import INSTRUCTIONS, to_v21, to_videos, write
from simplevla.adapters.load import load_policy
from simplevla.checked import from_dict
from simplevla.config import SFTConfig
from simplevla.demonstrations import writer
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.demonstrations.outlook import outlook
from simplevla.policies.trained_on import TrainedOn
from simplevla.reading import ReadingConfig
from simplevla.training import chunks, imitation
from simplevla.training.imitation import sft

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
DATA = "data/chunk-000/file-000.parquet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "data")
    return tmp_path / "data"


def config(folder: Path, **changes: object) -> SFTConfig:
    return from_dict(
        SFTConfig,
        {"dataset": str(folder), "batches": 2, "batch_size": 4, "chunk_length": 2, "shift_pixels": 0} | changes,
    )


def test_cameras_have_the_names_and_the_order_of_the_map(folder: Path) -> None:
    everything = LeRobotDataset(folder).load_all()
    reading = ReadingConfig(cameras=(f"hand={WRIST}", f"fixed={FRONT}"))
    dataset = LeRobotDataset(folder, reading)
    assert list(dataset.cameras.items()) == [("hand", (4, 4)), ("fixed", (6, 8))]
    frames = dataset.load_all()
    np.testing.assert_array_equal(frames.images["hand"], everything.images["wrist"])
    np.testing.assert_array_equal(frames.images["fixed"], everything.images["front"])


@pytest.mark.parametrize("in_videos", [False, True])
def test_a_camera_that_is_not_named_is_not_touched(folder: Path, tmp_path: Path, in_videos: bool) -> None:
    pictures = LeRobotDataset(folder).load_all().images["wrist"]
    if in_videos:
        to_videos(folder, [[0, 1, 2]])
        shutil.rmtree(folder / "videos")
    else:
        table = pq.read_table(folder / DATA)
        damaged = pa.array([{"bytes": b"none", "path": ""}] * 8, table.schema.field(FRONT).type)
        pq.write_table(table.set_column(table.column_names.index(FRONT), FRONT, damaged), folder / DATA)
    named = LeRobotDataset(folder, ReadingConfig(cameras=(f"wrist={WRIST}",)))
    assert named.decoded_bytes == 8 * 4 * 4 * 3
    np.testing.assert_array_equal(named.load_all().images["wrist"], pictures)
    np.testing.assert_array_equal(named.streamed(tmp_path / "a").images["wrist"][np.arange(8)], pictures)
    seen = LeRobotDataset(folder).seen_by(["wrist"])
    assert list(seen.load_all().images) == ["wrist"]


def test_cameras_that_the_policy_does_not_look_through_are_not_decoded(folder: Path, tmp_path: Path) -> None:
    first = sft(config(folder, cameras=[f"wrist={WRIST}"]), tmp_path / "first")
    table = pq.read_table(folder / DATA).drop_columns([FRONT])
    pq.write_table(table, folder / DATA)
    policy = load_policy(sft(config(folder, policy=str(first)), tmp_path / "second"))
    assert policy.cameras == ("wrist",)


def test_state_and_actions_are_the_features_named(folder: Path) -> None:
    expected = LeRobotDataset(folder).load_all()
    dataset = LeRobotDataset(folder, ReadingConfig(state="action", actions="observation.state"))
    assert (dataset.state_dim, dataset.action_dim) == (2, 3)
    np.testing.assert_array_equal(dataset.rows.state, expected.actions)
    np.testing.assert_array_equal(dataset.rows.actions, expected.state)
    assert dataset.statistics == replace(dataset.statistics, action=LeRobotDataset(folder).statistics.state)
    stage = imitation.sft_stage(dataset)
    assert (stage.state_names, stage.action_names) == (("a0", "a1"), ("x_m", "y_m", "z_m"))
    twice = LeRobotDataset(folder, ReadingConfig(state="timestamp", actions="timestamp"))
    np.testing.assert_allclose(twice.rows.state[:, 0], [0, 0.05, 0.1, 0, 0, 0.05, 0.1, 0.15], atol=1e-6)


def test_an_instruction_is_told_in_other_words(folder: Path, tmp_path: Path) -> None:
    changes = {"instructions": ["press the button=push it = now"]}
    dataset = LeRobotDataset(folder, config(folder, **changes))
    assert dataset.instructions == ["lift the block", "push it = now"]
    assert dataset.load_all().task_index.tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    record = json.loads((sft(config(folder, **changes), tmp_path / "run") / "trained_on.json").read_text())
    assert record["stages"][-1]["instructions"] == ["lift the block", "push it = now"]


@pytest.mark.parametrize(("text", "numbers"), [("1:", [1, 2]), (":1,2", [0, 2]), ("2,0:1,2", [0, 2]), ("1", [1])])
@pytest.mark.parametrize("make", [None, to_v21, lambda folder: to_v21(folder, "front")])
def test_episodes_are_read_from_a_folder_that_holds_only_these(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    numbers: list[int],
    make: Callable[[Path], None] | None,
) -> None:
    if make is None:
        monkeypatch.setattr(writer, "EPISODES_PER_FILE", 1)
    folder = tmp_path / "data"
    write(folder)
    whole = LeRobotDataset(folder).load_all()
    if make is not None:
        make(folder)
    for number in {0, 1, 2} - set(numbers):
        for path in [*folder.rglob(f"*_{number:06d}.*"), *folder.glob(f"data/*/file-{number:03d}.parquet")]:
            path.unlink()
    dataset = LeRobotDataset(folder, ReadingConfig(episodes=text))
    rows = np.flatnonzero(np.isin(whole.episode_index, numbers))
    frames = dataset.load_all()
    assert (dataset.num_episodes, dataset.num_frames) == (len(numbers), len(rows))
    streamed = dataset.streamed(tmp_path / "spill")
    for name in ("state", "actions", "task_index", "episode_index"):
        np.testing.assert_array_equal(getattr(frames, name), getattr(whole, name)[rows])
    for camera, pictures in whole.images.items():
        np.testing.assert_array_equal(frames.images[camera], pictures[rows])
        np.testing.assert_array_equal(streamed.images[camera][np.arange(len(rows))], pictures[rows])
    if make is None:
        assert dataset.initial_states == [7 + number for number in numbers]
    assert dataset.statistics.action["max"] == whole.actions[rows].astype(np.float64).max(0).tolist()


def test_episodes_that_share_files_with_others(folder: Path) -> None:
    pictures = to_videos(folder, [[1, 0], [2]])
    dataset = LeRobotDataset(folder, ReadingConfig(episodes="1,2"))
    frames = dataset.load_all()
    np.testing.assert_array_equal(frames.images["front"], pictures[3:])
    assert frames.episode_index.tolist() == [1, 2, 2, 2, 2]
    # The video of episode 2 isn't needed for the others.
    (folder / f"videos/{FRONT}/chunk-000/file-001.mp4").unlink()
    np.testing.assert_array_equal(
        LeRobotDataset(folder, ReadingConfig(episodes="0:2")).load_all().images["front"], pictures[:4]
    )


def test_a_policy_is_said_to_know_only_the_instructions_of_its_episodes(folder: Path) -> None:
    stage = imitation.sft_stage(LeRobotDataset(folder, ReadingConfig(episodes="0,2")))
    assert (stage.instructions, stage.initial_states) == (("lift the block",), {"lift": (7, 9)})


def still(folder: Path) -> None:
    """Make frames 1 and 2 of episode 0, and 1 and 3 of episode 2, rest; the state of the last trembles."""
    table = pq.read_table(folder / DATA)
    for key in ("observation.state", "action"):
        values = np.array(table[key].to_pylist(), np.float32)
        for frame, before in ((1, 0), (2, 1), (3, 2), (5, 4), (7, 6)):
            values[frame] = values[before]
        if key == "observation.state":
            values[7] += 0.9e-4 * np.ptp(values, axis=0)
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        table = table.set_column(table.column_names.index(key), key, column)
    pq.write_table(table, folder / DATA)


def test_idle_frames_are_those_like_the_frame_before(folder: Path) -> None:
    still(folder)
    rows = LeRobotDataset(folder).rows
    # Frame 3 equals the last of another episode.
    assert np.flatnonzero(rows.idle).tolist() == [1, 2, 5, 7]
    for name, frame, dimension in (("state", 7, 1), ("actions", 5, 0)):
        values = getattr(rows, name).copy()
        values[frame, dimension] += 2.5e-4 * np.ptp(values[:, dimension])
        moved = replace(rows, **{name: values}).idle
        assert not moved[frame]
        assert moved.sum() == 3


@pytest.mark.filterwarnings("ignore:.*isn't of these frames")
@pytest.mark.parametrize(("idle_frames", "starts"), [("keep", range(8)), ("drop", [0, 3, 4, 6])])
def test_no_sample_begins_at_an_idle_frame(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    idle_frames: str,
    starts: list[int],
) -> None:
    still(folder)
    seen: list[int] = []
    make = chunks.ChunkBatches.make
    monkeypatch.setattr(
        chunks.ChunkBatches, "make", lambda self, at, *rest: seen.extend(at.tolist()) or make(self, at, *rest)
    )
    sft(config(folder, idle_frames=idle_frames, batch_size=64, validation_fraction=0.7), tmp_path / "run")
    assert sorted(set(seen)) == list(starts)
    told = capsys.readouterr().out
    assert "4 of 8 frames are idle" in told
    assert "8 frames of 3 episodes through front, wrist, 1.54e-06 GB decoded, in about 1 s" in told


def test_the_outlook_counts_what_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    # 16 of 64 pixels.
    monkeypatch.setattr("simplevla.demonstrations.outlook.IMAGE_BYTES_PER_S", 8 * 16 * 3 / 300)
    monkeypatch.setattr("simplevla.demonstrations.outlook.VIDEO_BYTES_PER_S", 8 * 16 * 24 * 3 / 100)
    assert outlook(LeRobotDataset(folder)).endswith("in about 600 s")
    named = LeRobotDataset(folder, ReadingConfig(cameras=(f"wrist={WRIST}",), episodes="2"))
    assert outlook(named) == f"{folder}: 4 frames of 1 episodes through wrist, 1.92e-07 GB decoded, in about 75 s"
    to_videos(folder, [[0, 1, 2]])
    assert outlook(LeRobotDataset(folder)).endswith("in about 200 s")


def test_the_policy_keeps_what_was_read_and_files_without_it_still_load(folder: Path, tmp_path: Path) -> None:
    changes = {"cameras": [f"fixed={FRONT}"], "episodes": "0:2", "idle_frames": "drop"}
    changes |= {"instructions": [f"{INSTRUCTIONS[0]}=grasp"], "state": "action"}
    trained = load_policy(sft(config(folder, **changes), tmp_path / "run")).trained_on[-1]
    assert trained.reading == from_dict(ReadingConfig, changes)
    assert trained.cameras == {"fixed": (6, 8)}
    plain = sft(config(folder), tmp_path / "plain")
    assert "reading" not in (plain / "trained_on.json").read_text()
    assert load_policy(plain).trained_on == (replace(imitation.sft_stage(LeRobotDataset(folder)), reading=None),)
    assert TrainedOn(stage="sft").reading is None
