"""HDF5 demonstrations of each layout become a dataset whose frames are what was recorded, bit for bit."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from made_hdf5 import SIZE, STATE_KEYS, jpeg_rows, write_act, write_libero, write_robomimic
from simplevla import cli
from simplevla.demonstrations import hdf5, hdf5_import, writer
from simplevla.demonstrations.dataset import Frames, LeRobotDataset
from simplevla.demonstrations.hdf5_import import import_hdf5
from simplevla.demonstrations.hdf5_reading import read
from simplevla.demonstrations.hdf5_settings import HDF5Settings
from simplevla.errors import UserError
from simplevla.suites.libero import conventions

ACT = HDF5Settings(layout="act", fps=50.0)
LIBERO = HDF5Settings(layout="libero")


def imported(source: Path, settings: HDF5Settings, **options: bool) -> tuple[LeRobotDataset, Frames]:
    out = source.with_name("out")
    import_hdf5(source, out, settings, progress=False, **options)
    dataset = LeRobotDataset(out)
    return dataset, dataset.load_all()


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Ten episodes of ACT, of which the fifth holds NaN and the eighth was cut off."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for number in range(10):
        write_act(folder / f"episode_{number}.hdf5", seed=number, frames=3 + number % 4)
    with h5py.File(folder / "episode_4.hdf5", "a") as file:
        file["action"][1, 0] = np.nan
    whole = (folder / "episode_7.hdf5").read_bytes()
    (folder / "episode_7.hdf5").write_bytes(whole[: len(whole) // 2])
    return folder


def test_act_frames_are_what_was_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    made = {
        number: write_act(folder / f"episode_{number}.hdf5", number, 3 + number % 3, f"fold towel {number % 2}")
        for number in (10, 2, 0)
    }
    (folder / "._episode_0.hdf5").write_bytes(b"what some systems put beside a file")
    dataset, frames = imported(folder, ACT)
    in_order = [made[number] for number in (0, 2, 10)]
    assert dataset.cameras == {"top": SIZE, "wrist": (4, 4)}
    assert (dataset.fps, dataset.num_episodes) == (50.0, 3)
    assert dataset.instructions == ["fold towel 0"]
    for camera in ("top", "wrist"):
        expected = np.concatenate([one[f"observations/images/{camera}"] for one in in_order])
        np.testing.assert_array_equal(frames.images[camera], expected)
    for values, name in ((frames.state, "observations/qpos"), (frames.actions, "action")):
        np.testing.assert_array_equal(values, np.concatenate([one[name] for one in in_order]).astype(np.float32))
    assert dataset.features["observation.state"]["names"] == ["qpos_0", "qpos_1", "qpos_2"]
    # Nobody knows a task or an initial state of any suite.
    assert (dataset.task_names, dataset.initial_states) == (None, None)


def test_jpeg_rows_stay_the_files_that_they_were(tmp_path: Path) -> None:
    path = tmp_path / "episode_0.hdf5"
    top = write_act(path)["observations/images/top"]
    rows = jpeg_rows(top)
    with h5py.File(path, "a") as file:
        file.attrs["compress"] = True
        del file["observations/images/top"]
        file.create_dataset("observations/images/top", data=rows, chunks=(1, rows.shape[1]))
        loose = file.create_dataset("observations/images/loose", (len(rows),), h5py.vlen_dtype(np.uint8))
        for number, row in enumerate(rows):
            loose[number] = row
    dataset, frames = imported(path, ACT)
    expected = np.stack([np.asarray(Image.open(io.BytesIO(row.tobytes()))) for row in rows])
    np.testing.assert_array_equal(frames.images["top"], expected)
    np.testing.assert_array_equal(frames.images["loose"], expected)
    column = pq.read_table(next(dataset.folder.glob("data/*/*.parquet")))["observation.images.top"]
    assert column[2].as_py()["bytes"] == rows[2].tobytes().rstrip(b"\0")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pictures": "flip"}, lambda images: images[:, ::-1]),
        ({"pictures": "turn"}, lambda images: images[:, ::-1, ::-1]),
        ({"colours": "bgr"}, lambda images: images[..., ::-1]),
        ({"pictures": "flip", "colours": "bgr"}, lambda images: images[:, ::-1, :, ::-1]),
    ],
)
def test_pictures_are_brought_into_our_order(
    tmp_path: Path, compressed: bool, settings: dict[str, str], expected: Callable[[np.ndarray], np.ndarray]
) -> None:
    path = tmp_path / "episode_0.hdf5"
    top = write_act(path)["observations/images/top"]
    if compressed:
        rows = jpeg_rows(top)
        top = np.stack([np.asarray(Image.open(io.BytesIO(row.tobytes()))) for row in rows])
        with h5py.File(path, "a") as file:
            del file["observations/images/top"]
            file["observations/images/top"] = rows
    _, frames = imported(path, HDF5Settings(layout="act", fps=50.0, cameras=("front=top",), **settings))
    assert list(frames.images) == ["front"]
    np.testing.assert_array_equal(frames.images["front"], expected(top))


def test_robomimic_frames_are_what_was_recorded(tmp_path: Path) -> None:
    made = write_robomimic(tmp_path / "lift.hdf5", demos=11)
    dataset, frames = imported(tmp_path / "lift.hdf5", HDF5Settings(layout="robomimic"))
    assert (dataset.cameras, dataset.fps, dataset.instructions) == ({"agentview": SIZE}, 20.0, ["lift the cube"])
    # demo_10 is the last, as it was recorded.
    assert [stop - start for start, stop in dataset.episode_ranges] == [4 + number for number in range(11)]
    np.testing.assert_array_equal(frames.images["agentview"], np.concatenate([d["obs/agentview_image"] for d in made]))
    state = np.concatenate([np.concatenate([d[f"obs/{key}"] for key in STATE_KEYS], axis=1) for d in made])
    np.testing.assert_array_equal(frames.state, state.astype(np.float32))
    np.testing.assert_array_equal(frames.actions, np.concatenate([d["actions"] for d in made]).astype(np.float32))


def test_state_keys_are_put_together_in_the_order_given(tmp_path: Path) -> None:
    made = write_robomimic(tmp_path / "lift.hdf5", demos=1)
    keys = ("robot0_gripper_qpos", "robot0_eef_pos")
    dataset, frames = imported(tmp_path / "lift.hdf5", HDF5Settings(layout="robomimic", state=keys))
    expected = np.concatenate([made[0][f"obs/{key}"] for key in keys], axis=1).astype(np.float32)
    np.testing.assert_array_equal(frames.state, expected)
    assert dataset.features["observation.state"]["names"][:3] == [
        "robot0_gripper_qpos_0",
        "robot0_gripper_qpos_1",
        "robot0_eef_pos_0",
    ]


@pytest.mark.parametrize("late", [True, False])
def test_libero_pairs_an_observation_with_the_action_chosen_by_it(tmp_path: Path, late: bool) -> None:
    (made,) = write_libero(tmp_path / "KITCHEN_SCENE1_open_the_top_drawer_demo.hdf5", late=late)
    dataset, frames = imported(tmp_path / "KITCHEN_SCENE1_open_the_top_drawer_demo.hdf5", LIBERO)
    seen, acted = (slice(None, -1), slice(1, None)) if late else (slice(None), slice(None))
    for camera, key in (("fixed", "agentview_rgb"), ("wrist", "eye_in_hand_rgb")):
        np.testing.assert_array_equal(frames.images[camera], made[f"obs/{key}"][seen, ::-1, ::-1])
    state = np.concatenate([made["obs/ee_pos"], made["obs/ee_ori"], made["obs/gripper_states"]], axis=1)
    np.testing.assert_array_equal(frames.state, state[seen].astype(np.float32))
    np.testing.assert_array_equal(frames.actions, made["actions"][acted].astype(np.float32))
    assert dataset.task_names == ["KITCHEN_SCENE1_open_the_top_drawer"]
    # The BDDL file's words, which `problem_info` holds.
    assert dataset.instructions == ["pick the akita black bowl"]
    assert dataset.features["action"]["names"] == list(conventions.ACTION_NAMES)


def test_libero_without_a_sentence_is_told_its_name(tmp_path: Path) -> None:
    path = tmp_path / "KITCHEN_SCENE1_open_the_top_drawer_demo.hdf5"
    write_libero(path)
    with h5py.File(path, "a") as file:
        del file["data"].attrs["problem_info"]
    assert imported(path, LIBERO)[0].instructions == ["open the top drawer"]


def test_libero_under_another_name_says_what_the_file_says(tmp_path: Path) -> None:
    write_libero(tmp_path / "mine.hdf5")
    with h5py.File(tmp_path / "mine.hdf5", "a") as file:
        del file["data/demo_0/obs/ee_pos"], file["data/demo_0/states"]
    dataset, _ = imported(tmp_path / "mine.hdf5", LIBERO)
    assert (dataset.instructions, dataset.num_frames) == (["pick the akita black bowl"], 6)


@pytest.mark.parametrize("other", ["mine.hdf5", "zebra.hdf5", "close_demo.hdf5"])
def test_tasks_are_named_for_all_episodes_or_for_none(tmp_path: Path, other: str) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    write_libero(folder / "open_demo.hdf5")
    write_libero(folder / other)
    dataset, _ = imported(folder, LIBERO)
    assert dataset.task_names == (["close", "open"] if other == "close_demo.hdf5" else None)
    columns = pq.read_schema(dataset.folder / "meta/episodes/chunk-000/file-000.parquet").names
    assert ("task_name" in columns) == (other == "close_demo.hdf5")


@pytest.mark.parametrize(
    ("convention", "recorded", "expected"),
    [
        ("keep", [0.0, 0.25, 1.0], [0.0, 0.25, 1.0]),
        ("opens_0_closes_1", [0.0, 0.25, 1.0], [-1.0, -0.5, 1.0]),
        ("opens_1_closes_0", [0.0, 0.25, 1.0], [1.0, 0.5, -1.0]),
        ("opens_1_closes_-1", [-1.0, 0.5, 1.0], [1.0, -0.5, -1.0]),
    ],
)
def test_a_gripper_of_another_convention_is_turned_to_ours(
    tmp_path: Path, convention: str, recorded: list[float], expected: list[float]
) -> None:
    path = tmp_path / "episode_0.hdf5"
    first = write_act(path, frames=3)["action"][:, 0].astype(np.float32)
    with h5py.File(path, "a") as file:
        file["action"][:, 1] = recorded
    _, frames = imported(path, HDF5Settings(layout="act", fps=50.0, gripper=convention))  # type: ignore[arg-type]
    np.testing.assert_allclose(frames.actions[:, 1], expected, atol=1e-7)
    np.testing.assert_array_equal(frames.actions[:, 0], first)


@pytest.mark.parametrize(
    "words", [np.bytes_(b"wipe\n the table "), ["wipe the table"], np.array([b"wipe the table"], "S40"), None]
)
def test_words_are_text_of_any_kind_in_a_dataset_or_an_attribute(tmp_path: Path, words: object) -> None:
    write_act(tmp_path / "a.hdf5", words=None)
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        if words is None:
            file.attrs["language_instruction"] = " wipe\n the table "
        else:
            file["language_raw"] = words
    assert imported(tmp_path / "a.hdf5", ACT)[0].instructions == ["wipe the table"]


def test_words_given_replace_those_of_the_files(tmp_path: Path) -> None:
    write_act(tmp_path / "a.hdf5")
    settings = HDF5Settings(layout="act", fps=50.0, instruction="press\tit")
    assert imported(tmp_path / "a.hdf5", settings)[0].instructions == ["press it"]


def test_a_camera_of_the_layout_is_chosen_by_its_name_alone(tmp_path: Path) -> None:
    (made,) = write_libero(tmp_path / "open_demo.hdf5", late=False)
    settings = HDF5Settings(layout="libero", cameras=("wrist", "front=agentview_rgb"), pictures="keep")
    _, frames = imported(tmp_path / "open_demo.hdf5", settings)
    assert list(frames.images) == ["wrist", "front"]
    np.testing.assert_array_equal(frames.images["wrist"], made["obs/eye_in_hand_rgb"])
    np.testing.assert_array_equal(frames.images["front"], made["obs/agentview_rgb"])


@pytest.mark.parametrize(
    ("place", "name", "value", "expected"),
    [
        ("data/demo_0", "ep_meta", json.dumps({"lang": "close the drawer"}), "close the drawer"),
        ("data/demo_0", "language_instruction", "press the button", "press the button"),
        ("data", "language", "turn the knob", "turn the knob"),
        ("data", "problem_info", json.dumps({"language_instruction": "stack the bowls"}), "stack the bowls"),
    ],
)
def test_the_nearest_words_are_taken(tmp_path: Path, place: str, name: str, value: str, expected: str) -> None:
    write_robomimic(tmp_path / "lift.hdf5", demos=1, env_args={"env_kwargs": {"control_freq": 10}, "env_lang": "lift"})
    with h5py.File(tmp_path / "lift.hdf5", "a") as file:
        file[place].attrs[name] = value
    dataset, _ = imported(tmp_path / "lift.hdf5", HDF5Settings(layout="robomimic"))
    assert (dataset.instructions, dataset.fps) == ([expected], 10.0)


def test_broken_episodes_are_left_out_and_reported(recordings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["import", "demonstrations", str(recordings), str(recordings.with_name("out")), "--layout", "act"]
    assert cli.main([*command, "--fps", "50"]) == 2
    error = capsys.readouterr().err
    assert "episode_7.hdf5" in error
    assert "cut off" in error
    assert cli.main([*command, "--fps", "50", "--skip-broken"]) == 0
    said = capsys.readouterr().out
    assert "taken: 8 episodes, 34 frames at 50 per second, 1 instructions (the first: 'fold the towel')" in said
    assert "left out: 2" in said
    assert "episode_4.hdf5: " in said
    assert "'action', frame 1, dimension 0 is nan" in said
    dataset = LeRobotDataset(recordings.with_name("out"))
    assert [stop - start for start, stop in dataset.episode_ranges] == [3, 4, 5, 6, 4, 5, 3, 4]
    assert cli.main([*command, "--fps", "50", "--skip-broken"]) == 0
    assert "finished already" in capsys.readouterr().out


@pytest.mark.parametrize("read_before", [1, 4, 5, 8])
def test_an_interrupted_import_goes_on_to_the_same_bytes(
    recordings: Path, monkeypatch: pytest.MonkeyPatch, read_before: int
) -> None:
    monkeypatch.setattr(writer, "EPISODES_PER_FILE", 2)
    whole, parts = recordings.with_name("whole"), recordings.with_name("parts")
    expected = import_hdf5(recordings, whole, ACT, skip_broken=True, progress=False)
    calls = []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > read_before:
            raise KeyboardInterrupt
        return read(*arguments)

    monkeypatch.setattr(hdf5_import, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_hdf5(recordings, parts, ACT, skip_broken=True, progress=False)
    assert not parts.exists()
    calls.clear()
    monkeypatch.setattr(hdf5_import, "read", lambda *arguments: calls.append(arguments) or read(*arguments))
    report = import_hdf5(recordings, parts, ACT, skip_broken=True, progress=False)
    assert report == expected
    assert set(report.left_out) == {"episode_4.hdf5", "episode_7.hdf5"}
    assert content(parts) == content(whole)
    # Episodes that were whole on the disk aren't read again; the broken one is, for its reason.
    kept = 2 * ((read_before - (read_before > 4)) // 2)
    assert len(calls) == 9 - kept


def test_an_import_that_stopped_at_a_broken_episode_goes_on_without_it(
    recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (recordings / "episode_7.hdf5").unlink()
    monkeypatch.setattr(writer, "EPISODES_PER_FILE", 2)
    out, other = recordings.with_name("out"), recordings.with_name("other")
    with pytest.raises(UserError, match=r"episode_4\.hdf5: 'action', frame 1"):
        import_hdf5(recordings, out, ACT, progress=False)
    assert (out.with_name("out.partial") / "data").exists()
    import_hdf5(recordings, out, ACT, skip_broken=True, progress=False)
    import_hdf5(recordings, other, ACT, skip_broken=True, progress=False)
    assert content(out) == content(other)


def test_other_settings_and_other_files_are_no_continuation(recordings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = recordings.with_name("out")
    (recordings / "episode_7.hdf5").unlink()
    monkeypatch.setattr(writer, "EPISODES_PER_FILE", 2)
    with pytest.raises(UserError, match="episode_4"):
        import_hdf5(recordings, out, ACT, progress=False)
    with pytest.raises(
        UserError, match=r"out\.partial was started with other settings \(hdf5\.colours: 'rgb', now 'bgr'\)"
    ):
        import_hdf5(recordings, out, HDF5Settings(layout="act", fps=50.0, colours="bgr"), progress=False)
    write_act(recordings / "episode_1.hdf5", frames=9)
    with pytest.raises(UserError, match=r"other settings \(hdf5\.names_and_sizes"):
        import_hdf5(recordings, out, ACT, skip_broken=True, progress=False)


def test_pictures_are_read_a_part_at_a_time_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "READ_BYTES", 2 * SIZE[0] * SIZE[1] * 3)
    images = np.random.default_rng(0).integers(0, 256, (7, *SIZE, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        chunked = file.create_dataset("chunked", data=images, chunks=(3, 2, 8, 3), compression="gzip")
        plain = file.create_dataset("plain", data=images)
        for data in (chunked, plain):
            for count in (7, 5, 1):
                np.testing.assert_array_equal(np.stack(list(hdf5.pictures(data, count))), images[:count])


def test_help_lists_what_can_be_imported(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["import", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {kind} " in said for kind in ("tinyvla", "openvla-oft", "demonstrations"))
