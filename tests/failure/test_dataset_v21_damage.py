"""Damaged, incomplete and forged datasets of v2.1: one clear error each."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from made_dataset import to_v21, write
from simplevla.demonstrations import metadata_v21
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.errors import UserError

DATA = "data/chunk-000/episode_000000.parquet"
VIDEO = "videos/chunk-000/observation.images.front/episode_000001.mp4"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "data")
    to_v21(tmp_path / "data", video="front")
    return tmp_path / "data"


def edit_line(path: Path, number: int, change: dict[str, Any]) -> None:
    lines = path.read_text().splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | change)
    path.write_text("\n".join(lines))


@pytest.mark.parametrize("name", ["tasks", "episodes", "episodes_stats"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"task_index": 0,', "line 1 is not valid JSON"),
        (b"\xff\xfe{}", "line 1 is not valid JSON"),
        (b"[]", "line 1 holds a JSON list; expected an object"),
        (b"{}", "line 1: .* lacks"),
        (b"\n\n" + b"[" * 100_000, "line 3 is not valid JSON"),
        (b'{"episode_index": 1e999}', "line 1 is not valid JSON"),
    ],
)
def test_lines_that_hold_something_else(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / f"meta/{name}.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}.jsonl, {message}"):
        LeRobotDataset(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tasks", {"task": " "}, r"tasks.jsonl: the instruction of task_index 1 is ' '; expected words"),
        ("tasks", {"task": None}, "tasks.jsonl, line 2: TaskLine.task is None; expected a text"),
        ("tasks", {"task_index": 2}, r"tasks.jsonl numbers its tasks \[0, 2\]"),
        ("episodes", {"episode_index": 0}, "episodes.jsonl: episode 1 is missing or doubled"),
        ("episodes", {"episode_index": True}, "line 2: EpisodeLine.episode_index is True"),
        ("episodes", {"length": -1}, "line 2: EpisodeLine.length is -1"),
        ("episodes", {"length": 2}, r"lists 3 episodes with 9 frames; .* says 8 frames"),
        ("episodes", {"tasks": "lift"}, "line 2: EpisodeLine.tasks is 'lift'"),
        ("episodes_stats", {"stats": {"action": []}}, "line 2 holds a JSON list; expected an object of measures"),
        ("episodes_stats", {"stats": {"action": {"min": [0]}}}, "line 2, action: Measures lacks 'max'"),
        (
            "episodes_stats",
            {"stats": {"action": {"min": [0], "max": [0], "mean": [0, 1], "std": [0], "count": [1]}}},
            "line 2, action: its measures have different lengths",
        ),
    ],
)
def test_lines_that_contradict(folder: Path, name: str, change: dict[str, Any], message: str) -> None:
    edit_line(folder / f"meta/{name}.jsonl", 1, change)
    with pytest.raises(UserError, match=message):
        LeRobotDataset(folder)


@pytest.mark.parametrize("name", ["tasks", "episodes"])
def test_a_missing_table_is_named(folder: Path, name: str) -> None:
    (folder / f"meta/{name}.jsonl").unlink()
    with pytest.raises(UserError, match=rf"{name}.jsonl is missing; copy the meta/ folder completely"):
        LeRobotDataset(folder)


def test_an_endless_line_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_v21, "LONGEST_JSON", 1000)
    (folder / "meta/tasks.jsonl").write_bytes(b" " * 5_000_000)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"tasks.jsonl, line 1 has more than 1000 bytes"):
        LeRobotDataset(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("chunks_size", 0, "chunks_size is 0; expected at least 1"),
        ("chunks_size", None, "chunks_size is None"),
        ("data_path", "data/chunk-{chunk_index:03d}.parquet", r"data_path .* such as 'data/chunk-\{episode_chunk"),
        ("data_path", "../{episode_index}.parquet", r"data_path is '\.\./"),
        ("video_path", "videos/{episode_index:>1000000000}.mp4", "video_path is 'videos/"),
    ],
)
def test_info_of_another_kind(folder: Path, key: str, value: Any, message: str) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=message):
        LeRobotDataset(folder)


def test_data_files_that_are_missing_cut_or_doubled(folder: Path) -> None:
    path = folder / DATA
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"episode_000000.parquet is damaged or cut short"):
        LeRobotDataset(folder).load_all()
    table = pq.read_table(folder / "data/chunk-000/episode_000001.parquet")
    pq.write_table(table, path)
    with pytest.raises(UserError, match=r"episode 0 has 0 of 3: a data file is incomplete or doubled"):
        LeRobotDataset(folder).load_all()
    path.unlink()
    with pytest.raises(UserError, match=r"episode_000000.parquet is missing; copy the dataset's data/ folder"):
        LeRobotDataset(folder).load_all()


def test_videos_that_are_missing_or_of_another_episode(folder: Path) -> None:
    path = folder / VIDEO
    other = path.with_name("episode_000000.mp4")
    one, three = path.read_bytes(), other.read_bytes()
    other.write_bytes(one)
    with pytest.raises(UserError, match=r"episode_000000.mp4 lacks 2 of the frames"):
        LeRobotDataset(folder).load_all()
    other.write_bytes(three)
    path.unlink()
    with pytest.raises(UserError, match=r"episode_000001.mp4 is missing; copy the dataset's videos/ folder"):
        LeRobotDataset(folder).load_all()
