"""Writing and reading the LeRobotDataset v3.0 layout."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from made_dataset import INSTRUCTIONS, episodes, spec, to_videos, write, write_video
from simplevla.demonstrations import layout, writer
from simplevla.demonstrations.dataset import DatasetWriter, LeRobotDataset


@pytest.fixture(params=[1, 2, 50])
def episodes_per_file(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(writer, "EPISODES_PER_FILE", request.param)
    return request.param


def test_what_is_written_is_read_back_exactly(tmp_path: Path, episodes_per_file: int) -> None:
    write(tmp_path / "data")
    made, pixels = episodes()
    dataset = LeRobotDataset(tmp_path / "data")
    assert len(list((tmp_path / "data").glob("data/*/*.parquet"))) == -(-3 // episodes_per_file)
    assert dataset.instructions == ["lift the block", "press the button"]
    assert dataset.cameras == {"front": (6, 8), "wrist": (4, 4)}
    assert dataset.episode_ranges == [(0, 3), (3, 4), (4, 8)]
    assert (dataset.num_frames, dataset.num_episodes, dataset.fps) == (8, 3, 20.0)
    assert dataset.initial_states == [7, 8, 9]
    assert dataset.task_names == ["lift", "press", "lift"]
    frames = dataset.load_all()
    assert frames.state.dtype == frames.actions.dtype == np.float32
    np.testing.assert_array_equal(frames.state, np.concatenate([e.state for e in made]))
    np.testing.assert_array_equal(frames.actions, np.concatenate([e.actions for e in made]))
    assert frames.task_index.tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    assert frames.episode_index.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    for camera in ("front", "wrist"):
        np.testing.assert_array_equal(frames.images[camera], np.concatenate([p[camera] for p in pixels]))


def test_statistics_count_every_frame(tmp_path: Path, episodes_per_file: int) -> None:
    write(tmp_path / "data")
    made, pixels = episodes()
    actions = np.concatenate([e.actions for e in made]).astype(np.float64)
    statistics = LeRobotDataset(tmp_path / "data").statistics
    np.testing.assert_allclose(statistics.action["mean"], actions.sum(0) / 8, atol=1e-12)
    np.testing.assert_allclose(statistics.action["max"], actions.max(0), atol=1e-12)
    stats = json.loads((tmp_path / "data/meta/stats.json").read_text())
    assert stats["action"]["count"] == [8]
    assert stats["index"]["max"] == [7.0]
    red = np.concatenate([p["front"] for p in pixels])[..., 0] / 255
    assert np.shape(stats["observation.images.front"]["mean"]) == (3, 1, 1)
    assert stats["observation.images.front"]["mean"][0][0][0] == pytest.approx(red.mean(), abs=1e-9)
    assert stats["observation.images.front"]["count"] == [8]


def test_statistics_are_those_of_the_file_bit_for_bit(tmp_path: Path, episodes_per_file: int) -> None:
    write(tmp_path / "data")
    dataset = LeRobotDataset(tmp_path / "data")
    stats = json.loads((tmp_path / "data/meta/stats.json").read_text())
    for measures, key in ((dataset.statistics.action, "action"), (dataset.statistics.state, "observation.state")):
        assert measures == {name: stats[key][name] for name in measures}
    assert dataset.statistics_for_policy("min_max") == dataset.statistics


def test_each_episode_has_its_own_statistics(tmp_path: Path, episodes_per_file: int) -> None:
    """LeRobot's `aggregate_stats` makes a new stats.json of these columns.

    LeRobot 0.6.1's own `delete_episodes` was run on the 900 demonstrations of tabletop_nano without episodes 0, 1, 5 and 899:
    stats.json had all features and measures, and min, max, mean and std of state and action were equal to those measured over
    the remaining frames to 1e-13.
    """
    write(tmp_path / "data")
    made, pixels = episodes()
    paths = sorted((tmp_path / "data/meta/episodes").rglob("*.parquet"))
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    measures = ["min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"]
    features = json.loads((tmp_path / "data/meta/info.json").read_text())["features"]
    for row in rows:
        assert {name for name in row if name.startswith("stats/")} == {
            f"stats/{f}/{m}" for f in features for m in measures
        }
    last = rows[2]
    actions = made[2].actions.astype(np.float64)
    ordered = np.sort(actions[:, 1])
    assert last["stats/action/min"] == actions.min(0).tolist()
    assert last["stats/action/mean"] == pytest.approx(actions.sum(0) / 4, abs=1e-12)
    assert last["stats/action/std"] == pytest.approx(
        np.sqrt(((actions - actions.sum(0) / 4) ** 2).sum(0) / 4), abs=1e-12
    )
    # Of four values the 10 % quantile lies 0.3 steps after the smallest.
    assert last["stats/action/q10"][1] == pytest.approx(0.7 * ordered[0] + 0.3 * ordered[1], abs=1e-12)
    assert last["stats/action/q50"][1] == pytest.approx((ordered[1] + ordered[2]) / 2, abs=1e-12)
    assert last["stats/action/q99"][1] == pytest.approx(0.03 * ordered[2] + 0.97 * ordered[3], abs=1e-12)
    assert last["stats/action/count"] == last["stats/index/count"] == [4]
    assert (last["stats/index/min"], last["stats/index/max"], last["stats/index/mean"]) == ([4.0], [7.0], [5.5])
    assert last["stats/timestamp/q50"] == pytest.approx([0.075])
    # Frames 1 and 3 of the four are looked at.
    seen = pixels[2]["front"][[1, 3]].reshape(-1, 3) / 255
    image = {name: np.array(last[f"stats/observation.images.front/{name}"]) for name in measures}
    assert all(image[name].shape == (3, 1, 1) for name in measures if name != "count")
    assert image["count"].tolist() == [2]
    assert image["mean"].ravel().tolist() == pytest.approx(seen.sum(0) / len(seen), abs=1e-9)
    assert image["max"].ravel().tolist() == pytest.approx(seen.max(0), abs=1e-12)
    assert image["q90"].ravel().tolist() == pytest.approx(np.quantile(seen, 0.9, axis=0), abs=1e-9)
    single = rows[1]
    for name in ("min", "max", "mean", "q01", "q99"):
        assert single[f"stats/observation.state/{name}"] == pytest.approx(made[1].state[0].tolist(), abs=1e-7)


def test_a_writer_goes_on_with_the_statistics_of_all_episodes_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "EPISODES_PER_FILE", 1)
    out = DatasetWriter(tmp_path / "data", spec(), INSTRUCTIONS, {})
    out.add(episodes()[0][0])
    out.close()
    path = tmp_path / "data.partial/meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    with DatasetWriter(tmp_path / "data", spec(), INSTRUCTIONS, {}) as again:
        assert not any(name.startswith("stats/") for name in again.episodes[0])
    pq.write_table(table.select([name for name in table.column_names if not name.startswith("stats/")]), path)
    with pytest.raises(ValueError, match=r"was started by an older version.* delete it and generate again"):
        DatasetWriter(tmp_path / "data", spec(), INSTRUCTIONS, {})


def test_files_follow_lerobots_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "EPISODES_PER_FILE", 1)
    monkeypatch.setattr(layout, "FILES_PER_CHUNK", 1)
    write(tmp_path / "data")
    folder = tmp_path / "data"
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == [
        "data/chunk-000/file-000.parquet",
        "data/chunk-001/file-000.parquet",
        "data/chunk-002/file-000.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/episodes/chunk-001/file-000.parquet",
        "meta/episodes/chunk-002/file-000.parquet",
        "meta/info.json",
        "meta/stats.json",
        "meta/tasks.parquet",
    ]
    info = json.loads((folder / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"], info["fps"]) == (3, 8, 2, 20)
    assert info["splits"] == {"train": "0:3"}
    assert info["simplevla"] == {"suite": "made up"}
    assert info["features"]["observation.images.front"]["shape"] == [6, 8, 3]
    table = pq.read_table(folder / "data/chunk-002/file-000.parquet")
    assert table["index"].to_pylist() == [4, 5, 6, 7]
    assert table["timestamp"].to_pylist() == pytest.approx([0, 0.05, 0.1, 0.15])
    assert table.schema.field("observation.state").type == pa.list_(pa.float32(), 3)
    types = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert types["observation.images.wrist"] == {"_type": "Image"}
    assert types["action"] == {"feature": {"dtype": "float32", "_type": "Value"}, "length": 2, "_type": "Sequence"}
    assert json.loads(pq.read_schema(folder / "meta/tasks.parquet").metadata[b"pandas"])["index_columns"] == ["task"]
    row = pq.read_table(folder / "meta/episodes/chunk-002/file-000.parquet").to_pylist()[0]
    assert row["tasks"] == ["lift the block"]
    assert (row["data/chunk_index"], row["data/file_index"], row["dataset_from_index"]) == (2, 0, 4)


def test_one_dimensional_action_is_a_scalar_column(tmp_path: Path) -> None:
    write(tmp_path / "data", actions=1)
    table = pq.read_table(tmp_path / "data/data/chunk-000/file-000.parquet")
    assert table.schema.field("action").type == pa.float32()
    frames = LeRobotDataset(tmp_path / "data").load_all()
    np.testing.assert_array_equal(frames.actions, np.concatenate([e.actions for e in episodes(1)[0]]))


def test_videos_with_several_episodes_per_file(tmp_path: Path) -> None:
    write(tmp_path / "data")
    # Episode 2 comes before episode 0 in its file, so that only from_timestamp can tell where it is.
    images = to_videos(tmp_path / "data", [[2, 0], [1]])
    dataset = LeRobotDataset(tmp_path / "data")
    assert dataset.cameras == {"front": (16, 24), "wrist": (4, 4)}
    frames = dataset.load_all()
    np.testing.assert_array_equal(frames.images["front"], images)
    np.testing.assert_array_equal(frames.images["wrist"], np.concatenate([p["wrist"] for p in episodes()[1]]))


@pytest.mark.parametrize(("rate", "late"), [(3, 0), (2, 0), (1, 1)])
def test_the_picture_nearest_to_a_frames_time_is_taken(tmp_path: Path, rate: int, late: int) -> None:
    """Videos of other frame rates, and episodes that begin between two frames of the video: by a third of a frame here."""
    write(tmp_path / "data")
    images = to_videos(tmp_path / "data", [[2, 0], [1]])
    folder, key = tmp_path / "data", "observation.images.front"
    for number, shown in enumerate([[*images[4:8], *images[0:3]], images[3:4]]):
        other = np.zeros_like(images[0])
        slow = [image for picture in shown for image in [picture, *[other] * (rate - 1)]]
        write_video(folder / f"videos/{key}/chunk-000/file-{number:03d}.mp4", slow, 20 * rate)
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        row[f"videos/{key}/from_timestamp"] += late / 60
    pq.write_table(pa.Table.from_pylist(rows), path)
    np.testing.assert_array_equal(LeRobotDataset(folder).load_all().images["front"], images)


def test_video_that_is_too_short_or_missing(tmp_path: Path) -> None:
    write(tmp_path / "data")
    to_videos(tmp_path / "data", [[2, 0], [1]])
    video = tmp_path / "data/videos/observation.images.front/chunk-000/file-000.mp4"
    write_video(video, [np.zeros((16, 24, 3), np.uint8)] * 5, 20)
    with pytest.raises(ValueError, match=r"lacks 2 of the frames .* the first at 0.250 s"):
        LeRobotDataset(tmp_path / "data").load_all()
    video.write_bytes(video.read_bytes()[:200])
    with pytest.raises(ValueError, match="can't be decoded"):
        LeRobotDataset(tmp_path / "data").load_all()
    video.unlink()
    with pytest.raises(ValueError, match=r"file-000.mp4 is missing"):
        LeRobotDataset(tmp_path / "data").load_all()
