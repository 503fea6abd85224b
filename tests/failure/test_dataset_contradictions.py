"""Datasets whose files contradict each other, or hold something else than they should: named, never read as they are."""

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from made_dataset import to_videos, write
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.errors import UserError
from simplevla.training.imitation import sft_stage

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
FRONT = "observation.images.front"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "data")
    return tmp_path / "data"


def edit_info(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "meta/info.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_episodes(folder: Path, column: str, values: list[Any]) -> None:
    rows = pq.read_table(folder / EPISODES).to_pylist()
    rows = [row | {column: value} for row, value in zip(rows, values, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows), folder / EPISODES)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("fps", True, "fps is True; expected a number"),
        ("total_frames", "8", "total_frames is '8'; expected a whole number"),
        ("total_frames", 9, r"lists 3 episodes with 8 frames; .* says 9 frames"),
        ("features", [], r"features is \[\]; expected an object"),
        ("data_path", None, "data_path is None; expected a text"),
        ("data_path", "data/{number}.parquet", r"data_path is 'data/\{number\}.parquet'"),
        ("video_path", "videos/{number}.mp4", r"video_path is 'videos/\{number\}.mp4'"),
        ("data_path", "data/{chunk_index:>1000000000}.parquet", "data_path is 'data/"),
        ("data_path", "/data/{chunk_index}.parquet", "data_path is '/data/"),
        ("data_path", "../*/{chunk_index}.parquet", r"data_path is '\.\./"),
        ("simplevla", "tabletop", "simplevla is 'tabletop'"),
    ],
)
def test_info_of_another_type_is_named(folder: Path, key: str, value: Any, message: str) -> None:
    edit_info(folder, lambda info: info.update({key: value}))
    with pytest.raises(ValueError, match=message):
        LeRobotDataset(folder)


@pytest.mark.parametrize("shape", [None, 2, ["2"], [2.5]])
def test_a_shape_that_is_none_is_named(folder: Path, shape: Any) -> None:
    edit_info(folder, lambda info: info["features"]["action"].update(shape=shape))
    with pytest.raises(
        UserError, match=r"info.json: Info.features.action.shape.* is .*; expected a (list|whole number)"
    ):
        LeRobotDataset(folder)


@pytest.mark.parametrize(
    ("numbers", "texts", "message"),
    [
        ([0, 0, 1], ["lift it", "lift the block", "press the button"], r"numbers its tasks \[0, 0, 1\]"),
        ([0, None], ["lift the block", "press the button"], r"row 1 is null"),
        ([0, 1], ["lift the block", ""], "instruction of task_index 1 is ''; expected words"),
        ([0, 1], ["  ", "press the button"], "instruction of task_index 0 is '  '"),
        ([0, 1], [None, "press the button"], "instruction of task_index 0 is None"),
    ],
)
def test_tasks_without_a_number_or_words_of_their_own(
    folder: Path, numbers: list[Any], texts: list[Any], message: str
) -> None:
    pq.write_table(pa.table({"task_index": numbers, "task": texts}), folder / "meta/tasks.parquet")
    with pytest.raises(ValueError, match=message):
        LeRobotDataset(folder)


def test_frames_of_another_task_than_their_episode(folder: Path) -> None:
    table = pq.read_table(folder / DATA)
    index = table.schema.names.index("task_index")
    pq.write_table(table.set_column(index, "task_index", pa.array([0, 0, 0, 1, 0, 0, 1, 1])), folder / DATA)
    with pytest.raises(
        ValueError,
        match=r"frames of episode 2 have task_index 1, which is 'press the button' .* meta/episodes says \['lift the",
    ):
        _ = LeRobotDataset(folder).rows
    edit_episodes(folder, "tasks", [["lift the block"], None, ["lift the block", "press the button"]])
    assert LeRobotDataset(folder).rows.task_index.tolist() == [0, 0, 0, 1, 0, 0, 1, 1]
    # As after a merge that numbered one dataset's tasks anew and not its frames'.
    tasks = pa.table({"task_index": [0, 1], "task": ["press the button", "lift the block"]})
    pq.write_table(tasks, folder / "meta/tasks.parquet")
    with pytest.raises(ValueError, match="frames of episode 0 have task_index 0, which is 'press the button'"):
        _ = LeRobotDataset(folder).rows


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("length", ["3", "1", "4"], "column 'length': it holds string"),
        ("length", [3.5, 0.5, 4], "column 'length': .* aren't whole"),
        ("length", [9, -2, 1], "column 'length': -2 is negative"),
        ("data/chunk_index", ["a", "b", "c"], "column 'data/chunk_index': it holds string"),
        ("data/file_index", [0.0, float("nan"), 0.0], "column 'data/file_index': .* aren't whole"),
    ],
)
def test_numbers_of_episodes_are_whole(folder: Path, column: str, values: list[Any], message: str) -> None:
    edit_episodes(folder, column, values)
    with pytest.raises(ValueError, match=message):
        LeRobotDataset(folder)


def test_whole_numbers_may_be_floats_and_an_episode_may_be_empty(folder: Path) -> None:
    expected = LeRobotDataset(folder).load_all()
    rows = [row | {"length": float(row["length"])} for row in pq.read_table(folder / EPISODES).to_pylist()]
    pq.write_table(pa.Table.from_pylist([*rows, rows[0] | {"episode_index": 3, "length": 0.0}]), folder / EPISODES)
    dataset = LeRobotDataset(folder)
    assert dataset.episode_ranges == [(0, 3), (3, 4), (4, 8), (8, 8)]
    np.testing.assert_array_equal(dataset.load_all().state, expected.state)


@pytest.mark.parametrize("states", [[7, None, 9], [7.5, 8.0, 9.0], ["7", "8", "9"], [True, True, False]])
def test_initial_states_that_are_not_known_of_every_episode_are_not_claimed(folder: Path, states: list[Any]) -> None:
    stage = sft_stage(LeRobotDataset(folder))
    assert stage.initial_states == {"lift": (7, 9), "press": (8,)}
    edit_episodes(folder, "initial_state", states)
    assert sft_stage(LeRobotDataset(folder)).initial_states is None
    edit_episodes(folder, "initial_state", [7, 8, 9])
    edit_episodes(folder, "task_name", ["lift", None, "lift"])
    assert sft_stage(LeRobotDataset(folder)).initial_states is None


def test_a_picture_that_says_how_it_is_turned_is_turned(folder: Path) -> None:
    """A picture is what a viewer shows, EXIF's orientation applied."""
    upright = np.zeros((6, 8, 3), np.uint8)
    upright[:3, :4, 0] = 255
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    Image.fromarray(np.rot90(upright).copy()).save(file, "PNG", exif=exif)
    table = pq.read_table(folder / DATA)
    index = table.schema.names.index(FRONT)
    cells = table.column(index).to_pylist()
    cells[3]["bytes"] = file.getvalue()
    changed = table.set_column(index, table.schema.field(index), pa.array(cells, table.schema.types[index]))
    pq.write_table(changed, folder / DATA)
    np.testing.assert_array_equal(LeRobotDataset(folder).load_all().images["front"][3], upright)


def test_a_video_that_is_marked_to_be_turned_is_refused(folder: Path) -> None:
    to_videos(folder, [[2, 0], [1]])
    file = folder / f"videos/{FRONT}/chunk-000/file-000.mp4"
    content = bytearray(file.read_bytes())
    # The track header's matrix (ISO 14496-12, 8.3.2) follows 40 bytes of numbers.
    start = content.find(b"tkhd") + 44
    assert struct.unpack_from(">9i", content, start) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", content, start, -1 << 16, 0, 0, 0, -1 << 16, 0, 0, 0, 1 << 30)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"file-000.mp4: its pictures are marked to be turned by -?180 degrees"):
        LeRobotDataset(folder).load_all()


@pytest.mark.parametrize(
    ("pointer", "values", "message"),
    [
        ("from_timestamp", ["0.2", "0", "0"], "from_timestamp of episode 0 is '0.2'; expected seconds"),
        ("file_index", [0.0, float("nan"), 0.0], "file_index of episode 1 is nan; expected a whole number"),
        ("file_index", [0.0, 1.5, 0.0], "file_index of episode 1 is 1.5"),
        # Episodes 0 and 2 have exchanged their places, or their beginnings.
        ("from_timestamp", [0.0, 0.0, 0.15], r"episode 2 has 4 frames, .* from 0.15 to 0.2 s, is shorter"),
    ],
)
def test_pointers_into_videos(folder: Path, pointer: str, values: list[Any], message: str) -> None:
    images = to_videos(folder, [[2, 0], [1]])
    edit_episodes(folder, f"videos/{FRONT}/file_index", [0.0, 1.0, 0.0])
    np.testing.assert_array_equal(LeRobotDataset(folder).load_all().images["front"], images)
    edit_episodes(folder, f"videos/{FRONT}/{pointer}", values)
    with pytest.raises(ValueError, match=message):
        LeRobotDataset(folder).load_all()
