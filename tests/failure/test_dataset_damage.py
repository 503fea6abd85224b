"""Damaged, foreign and incomplete datasets, and generations that can't go on: one clear error each."""

import io
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from made_dataset import INSTRUCTIONS, episodes, spec, to_videos, write
from simplevla.demonstrations import layout, writer
from simplevla.demonstrations.dataset import DatasetWriter, LeRobotDataset
from simplevla.demonstrations.images import decode_image
from simplevla.errors import UserError

FRONT = "observation.images.front"


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


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("v2.0", r"'v2.0'; expected 'v3.0' or 'v2.1': convert it with LeRobot .*v21\.convert_dataset_v20_to_v21"),
        ("v1.6", r"'v1.6'; .*: convert it with LeRobot 0.1: .*convert_dataset_v1_to_v2"),
        ("v4.0", "'v4.0'; .* use a dataset of these versions"),
        (None, "None; .* use a dataset of these versions"),
    ],
)
def test_other_versions_say_what_to_do(folder: Path, version: Any, message: str) -> None:
    edit_json(folder / "meta/info.json", lambda info: info.update(codebase_version=version))
    with pytest.raises(UserError, match=message):
        LeRobotDataset(folder)


@pytest.mark.parametrize("name", ["meta/info.json", "meta/stats.json", "meta/tasks.parquet", EPISODES])
def test_truncated_meta_file(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"{path.name} is (damaged.*copy it again|not valid JSON)"):
        LeRobotDataset(folder)


@pytest.mark.parametrize("column", ["episode_index", "frame_index", FRONT])
def test_an_interrupted_dataset_whose_data_file_changed_is_refused(tmp_path: Path, column: str) -> None:
    folder = tmp_path / "data"

    def writing() -> DatasetWriter:
        return DatasetWriter(folder, spec(), INSTRUCTIONS, {"suite": "made up"})

    with writing() as out:
        out.add(episodes()[0][0])
        out._write_pending()
    with writing() as out:
        assert out.next_episode == 1
    data = out.partial / DATA
    pq.write_table(pq.read_table(data).drop_columns([column]), data)
    with pytest.raises(UserError, match=r"file-000.parquet doesn't fit .*; delete .*data\.partial and generate again"):
        writing()


def test_a_picture_is_measured_by_its_header_before_it_is_decoded() -> None:
    small, large = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 6)).save(small, "PNG")
    Image.new("1", (13000, 13000)).save(large, "PNG")
    decode_image(small.getvalue(), np.empty((6, 8, 3), np.uint8), "frame 0")
    started = time.process_time()
    with pytest.raises(UserError, match=r"frame 0: the image is \(13000, 13000\); meta/info.json says \(6, 8\)"):
        decode_image(large.getvalue(), np.empty((6, 8, 3), np.uint8), "frame 0")
    # Decoded it takes a second and half a gigabyte.
    assert time.process_time() - started < 0.2
    header = bytearray(small.getvalue())
    header[16:24] = (20000).to_bytes(4) * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4)
    with pytest.raises(UserError, match="can't be decoded"):
        decode_image(bytes(header), np.empty((6, 8, 3), np.uint8), "frame 0")


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
    pq.write_table(pa.concat_tables([table, table.slice(3, 1)]), folder / DATA)
    with pytest.raises(ValueError, match="episode 1 has 2 of 1: a data file is incomplete or doubled"):
        LeRobotDataset(folder).load_all()
    pq.write_table(pa.concat_tables([table.slice(0, 1), table.slice(0, 1), table.slice(2, 6)]), folder / DATA)
    with pytest.raises(ValueError, match="index doesn't count the frames of episode 0 one by one, from frame 1 on"):
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


LIST_TYPES = {
    "list": pa.list_(pa.float32()),
    "large list": pa.large_list(pa.float64()),
    "list view": pa.list_view(pa.float32()),
}


def with_column(folder: Path, name: str, column: pa.Array) -> None:
    table = pq.read_table(folder / DATA)
    pq.write_table(table.set_column(table.schema.names.index(name), name, column), folder / DATA)


@pytest.mark.parametrize("kind", LIST_TYPES)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({2: [1.0], 5: [1.0, 2.0, 3.0]}, r"column 'action': row 2 has 1 numbers; expected 2"),
        ({6: []}, r"row 6 has 0 numbers"),
        ({4: None}, r"row 4 is null"),
        ({3: [1.0, None]}, r"row 3 holds a null"),
    ],
)
def test_rows_of_another_length_are_not_read_shifted(
    folder: Path, kind: str, changes: dict[int, Any], message: str
) -> None:
    rows: list[Any] = [[float(i), 0.5] for i in range(8)]
    with_column(folder, "action", pa.array(rows, LIST_TYPES[kind]))
    assert LeRobotDataset(folder).load_all().actions[:, 0].tolist() == list(range(8))
    for row, value in changes.items():
        rows[row] = value
    with_column(folder, "action", pa.array(rows, LIST_TYPES[kind]))
    with pytest.raises(ValueError, match=message):
        LeRobotDataset(folder).load_all()


def test_null_in_vectors_of_fixed_length_and_in_numbers(folder: Path) -> None:
    rows: list[Any] = [[0.0, 0.5]] * 7
    with_column(folder, "action", pa.array([*rows[:4], None, *rows[4:]], pa.list_(pa.float32(), 2)))
    with pytest.raises(ValueError, match=r"column 'action': row 4 is null"):
        LeRobotDataset(folder).load_all()
    with_column(folder, "action", pa.array(["fast"] * 8))
    with pytest.raises(ValueError, match=r"column 'action': row 0 has 1 numbers; expected 2"):
        LeRobotDataset(folder).load_all()


def test_null_and_fractions_in_the_index_columns(folder: Path) -> None:
    for values, message in (([0, 0, None, 1, 0, 0, 0, 0], "row 2 is null"), ([0, 0, 0.5] + [0] * 5, "aren't whole")):
        with_column(folder, "task_index", pa.array(values, pa.float64()))
        with pytest.raises(ValueError, match=rf"column 'task_index': .*{message}"):
            LeRobotDataset(folder).load_all()


def test_scalar_column_with_a_null_is_not_read_as_nan(tmp_path: Path) -> None:
    write(tmp_path / "data", actions=1)
    with_column(tmp_path / "data", "action", pa.array([0.0, None, *[1.0] * 6], pa.float32()))
    with pytest.raises(ValueError, match=r"column 'action': row 1 is null"):
        LeRobotDataset(tmp_path / "data").load_all()


@pytest.mark.parametrize(
    ("frame", "seconds", "message"),
    [
        (2, 0.05, r"timestamp is 0.05 s at frame 2 of episode 0 \(1 such frames\); expected 0.1 s"),
        (5, 0.10, "timestamp is 0.1 s at frame 5 of episode 2"),
        (7, 0.0, "timestamp is 0.0 s at frame 7 of episode 2"),
        (3, 1.0, "timestamp is 1.0 s at frame 3 of episode 1"),
        (6, np.nan, "timestamp is nan s at frame 6 of episode 2"),
    ],
)
def test_timestamp_that_is_not_its_frames(folder: Path, frame: int, seconds: float, message: str) -> None:
    images = to_videos(folder, [[2, 0], [1]])
    times = np.array([0, 1, 2, 0, 0, 1, 2, 3]) / 20
    jittered = times + np.array([0.024, -0.024] * 4)
    with_column(folder, "timestamp", pa.array(jittered))
    np.testing.assert_array_equal(LeRobotDataset(folder).load_all().images["front"], images)
    times[frame] = seconds
    with_column(folder, "timestamp", pa.array(times))
    with pytest.raises(ValueError, match=message):
        LeRobotDataset(folder).load_all()
    with pytest.raises(ValueError, match=message):
        _ = LeRobotDataset(folder).statistics


def test_timestamps_do_not_matter_where_no_picture_depends_on_them(folder: Path) -> None:
    before = LeRobotDataset(folder).load_all()
    with_column(folder, "timestamp", pa.array([np.nan] * 8))
    np.testing.assert_array_equal(LeRobotDataset(folder).load_all().images["front"], before.images["front"])


@pytest.mark.parametrize(
    ("episode", "seconds", "message"),
    [
        (0, float("nan"), "from_timestamp of episode 0 is nan; expected seconds from 0 up"),
        (2, -0.05, "from_timestamp of episode 2 is -0.05"),
        (1, None, "from_timestamp is missing for episode 1"),
        (0, 0.15, r"episode 2 is in file-000.mp4 .* from 0 to 0.2 s and episode 0 from 0.15 s"),
        (0, 0.0, "the same pictures can't be both"),
    ],
)
def test_from_timestamp_that_points_elsewhere(folder: Path, episode: int, seconds: Any, message: str) -> None:
    to_videos(folder, [[2, 0], [1]])
    rows = pq.read_table(folder / EPISODES).to_pylist()
    rows[episode]["videos/observation.images.front/from_timestamp"] = seconds
    pq.write_table(pa.Table.from_pylist(rows), folder / EPISODES)
    with pytest.raises(ValueError, match=message):
        LeRobotDataset(folder).load_all()


def test_episodes_are_found_where_their_rows_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "EPISODES_PER_FILE", 1)
    folder = tmp_path / "data"
    write(folder)
    expected = LeRobotDataset(folder).load_all()
    for number, path in enumerate(sorted((folder / "meta/episodes").rglob("*.parquet"))):
        row = pq.read_table(path).to_pylist()[0]
        # The last two point to the file before theirs, and the frame numbers are of a dataset that was shuffled.
        row["data/file_index"] = max(number - 1, 0)
        row["dataset_from_index"], row["dataset_to_index"] = 100 - number, 7
        pq.write_table(pa.Table.from_pylist([row]), path)
    dataset = LeRobotDataset(folder)
    assert dataset.episode_ranges == [(0, 3), (3, 4), (4, 8)]
    frames = dataset.load_all()
    for name in ("state", "actions", "episode_index", "task_index"):
        np.testing.assert_array_equal(getattr(frames, name), getattr(expected, name))
    for camera, images in expected.images.items():
        np.testing.assert_array_equal(frames.images[camera], images)
    (folder / "data/chunk-000/file-002.parquet").unlink()
    with pytest.raises(ValueError, match=r"holds 4 frames; .* lists 8; episode 2 has 0 of 4"):
        LeRobotDataset(folder).load_all()


def test_rows_in_another_order_are_sorted_by_episode_and_index(folder: Path) -> None:
    expected = LeRobotDataset(folder).load_all()
    table = pq.read_table(folder / DATA)
    pq.write_table(table.take([6, 0, 5, 3, 2, 7, 4, 1]), folder / DATA)
    frames = LeRobotDataset(folder).load_all()
    np.testing.assert_array_equal(frames.actions, expected.actions)
    np.testing.assert_array_equal(frames.images["wrist"], expected.images["wrist"])
    some = np.array([5, 0, 7, 2])
    streamed = LeRobotDataset(folder).streamed(folder.with_name("spill"))
    np.testing.assert_array_equal(streamed.images["wrist"][some], expected.images["wrist"][some])


@pytest.mark.parametrize("index", [[0, 1, 1, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 7, 8]])
def test_index_that_skips_or_repeats_a_frame(folder: Path, index: list[int]) -> None:
    pq.write_table(pq.read_table(folder / DATA).drop_columns(["frame_index"]), folder / DATA)
    assert LeRobotDataset(folder).load_all().episode_index.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    with_column(folder, "index", pa.array(index))
    with pytest.raises(ValueError, match=r": index doesn't count the frames of episode"):
        LeRobotDataset(folder).load_all()


def test_rows_of_an_episode_that_meta_does_not_list(folder: Path) -> None:
    with_column(folder, "episode_index", pa.array([0, 0, 0, 1, 2, 2, 2, 3]))
    with pytest.raises(ValueError, match=r"more frames than meta/episodes lists: .* episodes 0 to 3; expected 0 to 2"):
        LeRobotDataset(folder).load_all()


def test_what_stats_json_lacks_is_measured(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    expected = LeRobotDataset(folder).statistics
    edit_json(folder / "meta/stats.json", lambda stats: stats["action"].pop("q99"))
    assert LeRobotDataset(folder).statistics == expected
    edit_json(folder / "meta/stats.json", lambda stats: stats.clear())
    assert LeRobotDataset(folder).statistics == expected
    (folder / "meta/stats.json").unlink()
    assert LeRobotDataset(folder).statistics == expected
    assert not recwarn.list


def test_stats_json_of_other_frames_is_named_and_not_used(folder: Path) -> None:
    expected = LeRobotDataset(folder).statistics

    def halve(stats: dict[str, Any]) -> None:
        stats["action"]["max"][1] /= 2
        stats["observation.state"]["min"][2] /= 2

    edit_json(folder / "meta/stats.json", halve)
    file, frames = expected.action["max"][1] / 2, expected.action["max"][1]
    with pytest.warns(UserWarning, match="isn't of these frames") as caught:
        assert LeRobotDataset(folder).statistics == expected
    (message,) = [str(warning.message) for warning in caught]
    assert f"action max of dimension 1 is {file:.6g}, the frames' is {frames:.6g}" in message
    assert "observation.state min of dimension 2 is" in message
    edit_json(folder / "meta/stats.json", lambda stats: stats["action"].update(mean=[0.0] * 3))
    with pytest.warns(UserWarning, match="action mean has 3 numbers, the frames have 2 dimensions"):
        assert LeRobotDataset(folder).statistics == expected


def test_statistics_within_float32_rounding_are_these_frames(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    def round_off(stats: dict[str, Any]) -> None:
        for key in ("action", "observation.state"):
            for name in ("min", "max", "mean", "std"):
                stats[key][name] = [float(np.float32(value)) for value in stats[key][name]]

    edit_json(folder / "meta/stats.json", round_off)
    _ = LeRobotDataset(folder).statistics
    assert not recwarn.list


@pytest.mark.parametrize("change", [{"shape": [6, 8, 1]}, {"info": {"is_depth_map": True}}, {"shape": [6, 8]}])
def test_depth_camera_is_left_out(folder: Path, change: dict[str, Any]) -> None:
    edit_json(folder / "meta/info.json", lambda info: info["features"]["observation.images.front"].update(change))
    with pytest.warns(UserWarning, match=r"camera 'observation.images.front' is left out: .* a depth map"):
        dataset = LeRobotDataset(folder)
    assert dataset.cameras == {"wrist": (4, 4)}
    assert list(dataset.load_all().images) == ["wrist"]


def test_pictures_of_16_bits_are_no_colours(folder: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((6, 8), 4000, np.uint16)).save(file, "PNG")
    table = pq.read_table(folder / DATA)
    index = table.schema.names.index("observation.images.front")
    cells = table.column(index).to_pylist()
    cells[3]["bytes"] = file.getvalue()
    with_column(folder, "observation.images.front", pa.array(cells, table.schema.types[index]))
    with pytest.raises(ValueError, match="frame 3: the image has more than 8 bits a pixel"):
        LeRobotDataset(folder).load_all()


@pytest.mark.parametrize(
    ("names", "shape"),
    [
        ({"axes": ["height", "width", "channel"]}, [6, 8, 3]),
        ({"height": 6, "width": 8, "channels": 3}, [6, 8, 3]),
        (["channels", "height", "width"], [3, 6, 8]),
        (["width", "height", "channels"], [8, 6, 3]),
        (None, [6, 8, 3]),
        (None, [3, 6, 8]),
    ],
)
def test_names_of_image_axes(folder: Path, names: Any, shape: list[int]) -> None:
    change = {"names": names, "shape": shape}
    edit_json(folder / "meta/info.json", lambda info: info["features"]["observation.images.front"].update(change))
    assert LeRobotDataset(folder).cameras["front"] == (6, 8)


@pytest.mark.parametrize(
    ("names", "shape"),
    [
        (["channels", "height", "width"], [6, 8, 3]),
        (["height", "width", "channels"], [3, 6, 8]),
        ({"axes": ["height", "width", "channels"]}, [3, 6, 8]),
        (["height", "width"], [6, 8, 3]),
        (None, [6, 8, 5]),
    ],
)
def test_names_that_contradict_the_shape(folder: Path, names: Any, shape: list[int]) -> None:
    change = {"names": names, "shape": shape}
    edit_json(folder / "meta/info.json", lambda info: info["features"]["observation.images.front"].update(change))
    with pytest.raises(ValueError, match=r"front' has the shape .* which contradict each other"):
        LeRobotDataset(folder)


def test_feature_that_is_missing_or_contradicts_the_data(folder: Path) -> None:
    info = folder / "meta/info.json"
    original = info.read_text()
    edit_json(info, lambda value: value["features"].pop("action"))
    with pytest.raises(
        ValueError, match=r"no feature 'action'; it has: .*'observation.images.wrist'.*; name one by --actions"
    ):
        LeRobotDataset(folder)
    info.write_text(original)
    edit_json(info, lambda value: value["features"]["observation.images.front"].update(shape=[7, 8, 3]))
    with pytest.raises(ValueError, match=r"front, frame 0: the image is \(6, 8\); meta/info.json says \(7, 8\)"):
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
