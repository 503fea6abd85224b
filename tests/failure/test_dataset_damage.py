"""Damaged, foreign and incomplete datasets, and generations that can't go on: one clear error each."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import point_suite
from made_dataset import INSTRUCTIONS, episodes, spec, write
from simplevla.config import DemosConfig, SuiteConfig
from simplevla.demonstrations import layout, writer
from simplevla.demonstrations.dataset import DatasetWriter, LeRobotDataset
from simplevla.demonstrations.generate import generate


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "data")
    return tmp_path / "data"


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def replace_column(path: Path, name: str, values: np.ndarray) -> None:
    table = pq.read_table(path)
    index = table.schema.names.index(name)
    pq.write_table(table.set_column(index, table.schema.field(index), layout.vector_array(values)), path)


DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def test_folder_without_dataset(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere is no dataset: meta/info.json is missing; check the path"):
        LeRobotDataset(tmp_path / "nowhere")
    (tmp_path / "cut.partial").mkdir()
    with pytest.raises(ValueError, match="was interrupted: generate again to finish it"):
        LeRobotDataset(tmp_path / "cut")


def test_older_version_says_how_to_convert(folder: Path) -> None:
    edit_json(folder / "meta/info.json", lambda info: info.update(codebase_version="v2.1"))
    with pytest.raises(ValueError, match=r"'v2.1'; expected 'v3.0': convert it .*convert_dataset_v21_to_v30"):
        LeRobotDataset(folder)
    edit_json(folder / "meta/info.json", lambda info: info.update(codebase_version="v4.0"))
    with pytest.raises(ValueError, match="use a dataset of that version"):
        LeRobotDataset(folder)


@pytest.mark.parametrize("name", ["meta/info.json", "meta/stats.json", "meta/tasks.parquet", EPISODES])
def test_truncated_meta_file(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"{path.name} is damaged.*copy it again"):
        LeRobotDataset(folder)


def test_truncated_and_missing_data_file(folder: Path) -> None:
    path = folder / DATA
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"file-000.parquet is damaged or cut short"):
        LeRobotDataset(folder).load_all()
    path.unlink()
    with pytest.raises(ValueError, match=r"file-000.parquet is missing; copy the dataset's data/ folder"):
        LeRobotDataset(folder).load_all()


def test_missing_rows_and_episodes(folder: Path) -> None:
    table = pq.read_table(folder / DATA)
    pq.write_table(table.slice(0, 6), folder / DATA)
    with pytest.raises(ValueError, match="holds 6 frames; meta/episodes lists 8"):
        LeRobotDataset(folder).load_all()
    pq.write_table(pa.concat_tables([table.slice(0, 2), table.slice(3, 5), table.slice(2, 1)]), folder / DATA)
    with pytest.raises(ValueError, match="out of order"):
        LeRobotDataset(folder).load_all()
    rows = pq.read_table(folder / EPISODES)
    pq.write_table(rows.slice(0, 2), folder / EPISODES)
    with pytest.raises(ValueError, match=r"lists 2 episodes with 4 frames; .* says 8"):
        LeRobotDataset(folder)


@pytest.mark.parametrize(("column", "name"), [("observation.state", "state"), ("action", "action")])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite(folder: Path, column: str, name: str, bad: float) -> None:
    values = np.zeros((8, 3 if name == "state" else 2), np.float32)
    values[5, 1] = bad
    replace_column(folder / DATA, column, values)
    with pytest.raises(ValueError, match=rf"{name} dimension 1 is {bad} at frame 5 of episode 2 \(1 such values\)"):
        LeRobotDataset(folder).load_all()


def test_missing_statistics(folder: Path) -> None:
    edit_json(folder / "meta/stats.json", lambda stats: stats["action"].pop("q99"))
    with pytest.raises(ValueError, match=r"stats.json lacks q99 of 'action'; compute them"):
        LeRobotDataset(folder)
    (folder / "meta/stats.json").unlink()
    with pytest.raises(ValueError, match=r"stats.json is missing; compute them"):
        LeRobotDataset(folder)


def test_statistics_of_another_dimension(folder: Path) -> None:
    edit_json(folder / "meta/stats.json", lambda stats: stats["action"].update({k: [0.0] * 3 for k in stats["action"]}))
    with pytest.raises(ValueError, match=r"'action' has .*'q01': 3.* the feature has 2 dimensions"):
        LeRobotDataset(folder)


def test_feature_that_is_missing_or_contradicts_the_data(folder: Path) -> None:
    info = folder / "meta/info.json"
    original = info.read_text()
    edit_json(info, lambda value: value["features"].pop("action"))
    with pytest.raises(ValueError, match=r"no feature 'action'; it has: observation.images.front"):
        LeRobotDataset(folder)
    info.write_text(original)
    edit_json(info, lambda value: value["features"]["observation.images.front"].update(shape=[7, 8, 3]))
    with pytest.raises(ValueError, match=r"front, frame 0: the image is \(6, 8, 3\); meta/info.json says \(7, 8, 3\)"):
        LeRobotDataset(folder).load_all()


def test_image_that_is_damaged_or_only_a_path(folder: Path) -> None:
    table = pq.read_table(folder / DATA)
    index = table.schema.names.index("observation.images.front")
    for data, message in ((b"no image", "can't be decoded"), (None, "only its path")):
        cells = table.column(index).to_pylist()
        cells[3]["bytes"] = data
        changed = table.set_column(index, table.schema.field(index), pa.array(cells, table.schema.types[index]))
        pq.write_table(changed, folder / DATA)
        with pytest.raises(ValueError, match=rf"observation.images.front, frame 3: .*{message}"):
            LeRobotDataset(folder).load_all()


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_keeps_complete_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "EPISODES_PER_FILE", 1)
    made, _ = episodes()
    out = DatasetWriter(tmp_path / "data", spec(), INSTRUCTIONS, {})
    out.add(made[0])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(
            OSError, match=r"can't write .*file-001.parquet: No space.*MB were to be written; free space"
        ):
            out.add(made[1])
    out.close()
    assert not (tmp_path / "data").exists()
    assert [p.name for p in (tmp_path / "data.partial/data/chunk-000").iterdir()] == ["file-000.parquet"]
    with DatasetWriter(tmp_path / "data", spec(), INSTRUCTIONS, {}) as out:
        assert out.next_episode == 1
        for episode in made[1:]:
            out.add(episode)
        out.finish()
    assert LeRobotDataset(tmp_path / "data").num_frames == 8


def test_full_disk_from_the_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="free space, then give the same command again"):
            DatasetWriter(tmp_path / "data", spec(), INSTRUCTIONS, {})
    assert list(tmp_path.iterdir()) == []
    out = DatasetWriter(tmp_path / "data", spec(), INSTRUCTIONS, {})
    out.add(episodes()[0][0])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="free space"):
            out.finish()
    out.close()
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(PermissionError, match=r"can't write .*data.partial: Permission denied; choose a folder"):
            DatasetWriter(tmp_path / "data", spec(), INSTRUCTIONS, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        generate(demos("near"), tmp_path / "file/data", progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_two_writers_of_one_folder(tmp_path: Path) -> None:
    with (
        DatasetWriter(tmp_path / "data", spec(), INSTRUCTIONS, {}),
        pytest.raises(ValueError, match="another process is writing"),
    ):
        DatasetWriter(tmp_path / "data", spec(), INSTRUCTIONS, {})


def demos(*tasks: str, episodes: int = 4, workers: int = 1, name: str = point_suite.NAME) -> DemosConfig:
    return DemosConfig(suite=SuiteConfig(name=name, tasks=tasks), episodes=episodes, workers=workers)


def test_folder_with_other_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="exists and is no dataset; choose another folder"):
        generate(demos("near"), tmp_path / "data", progress=False)
    assert (tmp_path / "data/thesis.txt").read_text() == "precious"


def test_expert_that_hardly_ever_succeeds(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"solved 0 of 20 attempts at task 'hopeless'.*near \d+/\d+.*Lower demos.noise"
    ):
        generate(demos("near", "hopeless", episodes=100), tmp_path / "data", progress=False)
    assert not (tmp_path / "data").exists()


def test_suite_without_expert(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="suite 'point' has no scripted expert"):
        generate(demos("near", name="point_suite:make_without_expert"), tmp_path / "data", progress=False)
    assert list(tmp_path.iterdir()) == []


GENERATE_FOREVER = """
from simplevla.config import DemosConfig, SuiteConfig
from simplevla.demonstrations.generate import generate
if __name__ == "__main__":
    suite = SuiteConfig(name="point_suite:make", tasks=("far",))
    generate(DemosConfig(suite=suite, episodes=1000000, workers=2), "data")
"""


@pytest.mark.skipif(shutil.which("pgrep") is None, reason="needs pgrep")
def test_killed_generation_leaves_no_process_and_continues(tmp_path: Path) -> None:
    (tmp_path / "forever.py").write_text(GENERATE_FOREVER)
    process = subprocess.Popen([sys.executable, "forever.py"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    first = tmp_path / "data.partial" / EPISODES
    deadline = time.monotonic() + 180
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    process.kill()
    process.wait()
    assert len(children) >= 2
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert not (tmp_path / "data").exists()
    assert pq.read_table(first)["episode_index"].to_pylist() == list(range(50))
