"""Each fault of an HDF5 recording is one line that names the file and the demonstration, before anything is written."""

import errno
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from made_hdf5 import jpeg_rows, write_act, write_libero, write_robomimic
from simplevla import cli, storage
from simplevla.demonstrations import hdf5
from simplevla.demonstrations.hdf5 import open_hdf5
from simplevla.demonstrations.hdf5_import import import_hdf5
from simplevla.demonstrations.hdf5_layouts import describe
from simplevla.demonstrations.hdf5_reading import read
from simplevla.demonstrations.hdf5_settings import HDF5Settings
from simplevla.errors import UserError

ACT = HDF5Settings(layout="act", fps=50.0)
TOP = "observations/images/top"


def replaced(name: str, values: object, **options: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=values, **options)

    return change


def without(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


def linked(name: str, link: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = link

    return change


def virtual(file: h5py.File) -> None:
    del file["action"]
    source = h5py.VirtualSource("elsewhere.hdf5", "action", shape=(5, 2))
    places = h5py.VirtualLayout(shape=(5, 2), dtype=np.float64)
    places[:] = source
    file.create_virtual_dataset("action", places)


def cut_off(file: h5py.File) -> None:
    """A recorder that makes room for all frames, and dies after three."""
    del file[TOP]
    data = file.create_dataset(TOP, (5, 6, 8, 3), np.uint8, chunks=(1, 6, 8, 3))
    data[:3] = 7


def damaged_jpeg(file: h5py.File) -> None:
    rows = jpeg_rows(file[TOP][()])
    rows[2, 100:] = 0
    replaced(TOP, rows)(file)


def other_size(file: h5py.File) -> None:
    rows = list(jpeg_rows(file[TOP][()]))
    rows[3] = jpeg_rows(np.zeros((1, 5, 8, 3), np.uint8))[0]
    replaced(TOP, np.stack([np.pad(row, (0, max(map(len, rows)) - len(row))) for row in rows]))(file)


def unknown_filter(file: h5py.File) -> None:
    """Blosc's number, as an optional filter, which may be missing where the file is written."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((5, 6, 8, 3))
    plan.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (2, 2, 1, 720))
    values = file[TOP][()]
    del file[TOP]
    data = h5py.h5d.create(file.id, TOP.encode(), h5py.h5t.STD_U8LE, h5py.h5s.create_simple(values.shape), plan)
    data.write(h5py.h5s.ALL, h5py.h5s.ALL, values)


def foreign_attribute(file: h5py.File) -> None:
    del file["language_raw"]
    file.attrs.create("language", b"gr\xfcn", dtype=h5py.string_dtype("utf-8"))


def huge(name: str, shape: tuple[int, ...], dtype: object, **options: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, shape, dtype, **options)

    return change


FAULTS: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "no action": (
        without("action"),
        "has no dataset 'action'; it holds language_raw, observations; it looks like --layout act",
    ),
    "no qpos": (without("observations/qpos"), "has no dataset 'observations/qpos'; 'observations' holds images, qvel"),
    "no pictures": (without("observations/images"), "has no pictures in 'observations/images'; it holds nothing"),
    "other lengths": (
        replaced("action", np.zeros((4, 2))),
        "'observations/images/top' has 5 frames, 'action' has 4; expected one of each per frame",
    ),
    "one frame": (
        lambda file: [
            replaced(name, file[name][:1])(file)
            for name in ("action", TOP, "observations/images/wrist", "observations/qpos")
        ],
        "'action' has 1 frames; expected at least 2",
    ),
    "float pictures": (
        replaced(TOP, np.zeros((5, 6, 8, 3), np.float32)),
        "'observations/images/top' holds float32 (5, 6, 8, 3); expected uint8 [frames, height, width, 3], or JPEG files as uint8 "
        "[frames, bytes]: multiply by 255 if they lie in [0, 1]",
    ),
    "channels first": (
        replaced(TOP, np.zeros((5, 3, 6, 8), np.uint8)),
        "holds uint8 (5, 3, 6, 8); expected uint8 [frames, height, width, 3], or JPEG files as uint8 [frames, bytes]: move the channels",
    ),
    "depth": (replaced(TOP, np.zeros((5, 6, 8), np.uint16)), "holds uint16 (5, 6, 8); expected uint8"),
    "words for numbers": (replaced("action", np.array([b"a"] * 5)), "'action' holds |S1 (5,); expected numbers"),
    "NaN": (
        replaced("action", np.full((5, 2), np.nan)),
        "'action', frame 0, dimension 0 is nan; expected a finite number (10 aren't)",
    ),
    "beyond float32": (
        replaced("observations/qpos", np.full((5, 3), 1e300)),
        "'observations/qpos', frame 0, dimension 0 is inf",
    ),
    "a group": (lambda file: (without("action")(file), file.create_group("action")), "has no dataset 'action'"),
    "no words": (without("language_raw"), "says nowhere what is to be done; give --instruction 'WORDS'"),
    "empty words": (replaced("language_raw", np.array([b" "])), "'language_raw' is ' '; expected words"),
    "not UTF-8": (
        replaced("language_raw", np.array([b"gr\xfcn"])),
        "isn't UTF-8; write it again, or give --instruction",
    ),
    "attribute not UTF-8": (foreign_attribute, "attribute 'language' is 'gr\\udcfcn', which isn't UTF-8"),
    "many words": (
        replaced("language_raw", np.array([b"a", b"b"])),
        "'language_raw' holds |S1 (2,); expected one text",
    ),
    "words are numbers": (replaced("language_raw", 7), "'language_raw' holds int64 (); expected one text"),
    "words steer a terminal": (
        replaced("language_raw", np.array([b"red \x1b[31m"])),
        "the instruction is 'red \\x1b[31m'; expected words",
    ),
    "external link": (
        linked("action", h5py.ExternalLink("other.hdf5", "action")),
        "'action' goes through a link, 'action', which may lead to another file; expected the data themselves",
    ),
    "external group": (
        linked("observations", h5py.ExternalLink("other.hdf5", "observations")),
        "'observations/qpos' goes through a link, 'observations'",
    ),
    "soft link": (
        linked("observations/qpos", h5py.SoftLink("/observations/qvel")),
        "'observations/qpos' goes through a link",
    ),
    "external words": (
        linked("language_raw", h5py.ExternalLink("other.hdf5", "language_raw")),
        "goes through a link, 'language_raw'",
    ),
    "values in other files": (
        replaced("action", None, shape=(5, 2), dtype="f8", external=[("values.bin", 0, 80)]),
        "'action' keeps its values in other files; expected them in this one",
    ),
    "virtual": (virtual, "'action' keeps its values in other files"),
    "missing filter": (unknown_filter, "is compressed by the filter 32001"),
    "cut off": (cut_off, "'observations/images/top' is incomplete: 2 of its blocks were never written"),
    "never written": (huge("observations/qpos", (5, 3), "f8"), "'observations/qpos' is incomplete: 1 of its blocks"),
    "damaged picture": (damaged_jpeg, "'observations/images/top', frame 2: the image can't be decoded"),
    "other picture size": (
        other_size,
        "'observations/images/top', frame 3: the image is (5, 8); the first frame is (6, 8)",
    ),
    "huge pictures": (
        huge(TOP, (5, 100_000, 100_000, 3), np.uint8, chunks=(1, 100, 100, 3)),
        "is incomplete",
    ),
    "huge chunks": (
        huge(TOP, (5, 20_000, 20_000, 3), np.uint8, chunks=(1, 20_000, 20_000, 3)),
        "has chunks (1, 20000, 20000, 3)",
    ),
    "endless": (huge("action", (10**9, 2), "f8", chunks=(10**6, 2)), "is incomplete: 1000 of its blocks"),
    "wide vectors": (
        replaced("action", np.zeros((5, 20_000), np.int8)),
        "'action' has the shape (5, 20000); expected 1 to 10000 dimensions",
    ),
    "large pictures": (
        replaced(TOP, np.zeros((5, 1, 9000, 3), np.uint8), compression="gzip"),
        "holds uint8 (5, 1, 9000, 3); expected uint8",
    ),
    "camera's name": (
        lambda file: file.move(TOP, "observations/images/top left"),
        "the camera 'top left' is named twice or isn't a name",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line_and_leaves_nothing(
    tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "episode_3.hdf5", tmp_path / "out"
    write_act(source)
    change, expected = FAULTS[fault]
    write_act(tmp_path / "other.hdf5")
    monkeypatch.chdir(tmp_path)
    with h5py.File(source, "a") as file:
        change(file)
    code = cli.main(["import", "demonstrations", str(source), str(out), "--layout", "act", "--fps", "50"])
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1, captured.err
    assert expected in captured.err
    assert "episode_3.hdf5" in captured.err
    assert not out.exists()
    assert not out.with_name("out.partial").exists()


@pytest.mark.parametrize("written", ["act", "robomimic", "libero"])
@pytest.mark.parametrize("asked", ["act", "robomimic", "libero"])
def test_another_layout_is_named(tmp_path: Path, written: str, asked: str) -> None:
    path = tmp_path / "file.hdf5"
    {"act": write_act, "robomimic": write_robomimic, "libero": write_libero}[written](path)
    settings = HDF5Settings(layout=asked, fps=20.0, instruction="go")  # type: ignore[arg-type]
    if written == asked:
        assert import_hdf5(path, tmp_path / "out", settings, progress=False) is not None
        return
    with pytest.raises(UserError, match=f"file.hdf5 has no .*it looks like --layout {written}"):
        import_hdf5(path, tmp_path / "out", settings, progress=False)


@pytest.mark.parametrize(
    ("content", "expected"), [(b"", "is no HDF5 file"), (b"PK\3\4" * 100, "is no HDF5 file"), (None, "doesn't exist")]
)
def test_what_is_no_hdf5_is_refused(tmp_path: Path, content: bytes | None, expected: str) -> None:
    path = tmp_path / "episode_0.hdf5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=expected):
        import_hdf5(path, tmp_path / "out", ACT, progress=False)


def test_a_foreign_hdf5_file_looks_like_none_of_them(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["weights"] = np.zeros(3)
    with pytest.raises(UserError, match="looks like none of the layouts act, robomimic, libero"):
        import_hdf5(tmp_path, tmp_path / "out", HDF5Settings(layout="robomimic"), progress=False)


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(UserError, match=r"has no files \*\.hdf5 or \*\.h5"):
        import_hdf5(tmp_path, tmp_path / "out", ACT, progress=False)


@pytest.mark.parametrize(
    ("cameras", "expected"),
    [
        (("front=tip",), "has no camera 'tip' in 'observations/images'; it holds top, wrist"),
        (("tip",), "has no camera 'tip'"),
        (("a=top", "a=wrist"), "the camera 'a' is named twice"),
        (("a/b=top",), "the camera 'a/b' is named twice or isn't a name of letters"),
        (("a=../qpos",), "has no camera '../qpos'"),
    ],
)
def test_a_camera_that_misses_or_is_named_twice_is_refused(
    tmp_path: Path, cameras: tuple[str, ...], expected: str
) -> None:
    write_act(tmp_path / "a.hdf5")
    with pytest.raises(UserError, match=expected):
        import_hdf5(tmp_path / "a.hdf5", tmp_path / "out", HDF5Settings(layout="act", fps=50.0, cameras=cameras))


def test_a_rate_that_nobody_says_is_asked_for(tmp_path: Path) -> None:
    write_act(tmp_path / "a.hdf5")
    with pytest.raises(UserError, match=r"a\.hdf5 says nowhere how many frames a second has; give --fps"):
        import_hdf5(tmp_path / "a.hdf5", tmp_path / "out", HDF5Settings(layout="act"), progress=False)


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_a_rate_that_is_none_is_refused(fps: float) -> None:
    with pytest.raises(UserError, match=r"HDF5Settings\.fps is"):
        HDF5Settings(layout="act", fps=fps)


def test_episodes_that_are_not_alike_are_named(tmp_path: Path) -> None:
    write_act(tmp_path / "episode_0.hdf5")
    write_act(tmp_path / "episode_1.hdf5")
    with h5py.File(tmp_path / "episode_1.hdf5", "a") as file:
        replaced("observations/qpos", np.zeros((5, 4)))(file)
    with pytest.raises(
        UserError, match=r"episode_1\.hdf5: the dimensions of the state are .*'qpos_3'.* those of episode_0"
    ):
        import_hdf5(tmp_path, tmp_path / "out", ACT, progress=False)


def test_a_gripper_of_another_range_is_refused(tmp_path: Path) -> None:
    write_libero(tmp_path / "open_demo.hdf5")
    with pytest.raises(UserError, match="last action lies between -1 and 1; opens_1_closes_0 expects 0 to 1"):
        import_hdf5(
            tmp_path / "open_demo.hdf5", tmp_path / "out", HDF5Settings(layout="libero", gripper="opens_1_closes_0")
        )


@pytest.mark.parametrize("text", ["{", '{"lang": NaN}', "__import__('os').system('touch owned')", "[" * 10_000])
def test_attributes_are_parsed_as_json_and_nothing_else(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_robomimic(tmp_path / "lift.hdf5")
    with h5py.File(tmp_path / "lift.hdf5", "a") as file:
        file["data"].attrs["env_args"] = text
    with pytest.raises(UserError, match=r"lift\.hdf5: attribute 'env_args' is not valid JSON"):
        import_hdf5(tmp_path / "lift.hdf5", tmp_path / "out", HDF5Settings(layout="robomimic"), progress=False)
    assert not (tmp_path / "owned").exists()


def test_libero_of_other_dimensions_or_rows_is_refused(tmp_path: Path) -> None:
    write_libero(tmp_path / "a_demo.hdf5")
    with h5py.File(tmp_path / "a_demo.hdf5", "a") as file:
        file["data"].attrs["macros_image_convention"] = "opencv"
    with pytest.raises(UserError, match="macros_image_convention is 'opencv'; expected 'opengl'"):
        import_hdf5(tmp_path / "a_demo.hdf5", tmp_path / "out", HDF5Settings(layout="libero"), progress=False)
    with h5py.File(tmp_path / "a_demo.hdf5", "a") as file:
        replaced("data/demo_0/actions", np.zeros((6, 8)))(file)
    with pytest.raises(UserError, match="8 numbers of state and 8 of action; LIBERO has 8 and 7"):
        import_hdf5(tmp_path / "a_demo.hdf5", tmp_path / "out", HDF5Settings(layout="libero"), progress=False)


def test_nothing_but_broken_episodes_is_an_error_also_where_they_may_be_left_out(tmp_path: Path) -> None:
    for number in range(2):
        write_act(tmp_path / f"episode_{number}.hdf5")
        with h5py.File(tmp_path / f"episode_{number}.hdf5", "a") as file:
            file["action"][0] = np.inf
    with pytest.raises(UserError, match=r"none of the 2 recordings in .* can be used; episode_0\.hdf5: .*inf"):
        import_hdf5(tmp_path, tmp_path / "out", ACT, skip_broken=True, progress=False)
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("kind", ["file", "folder", "dataset of its own"])
def test_what_is_already_there_is_never_overwritten(tmp_path: Path, kind: str) -> None:
    write_act(tmp_path / "a.hdf5")
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    else:
        (out / "meta").mkdir(parents=True)
        (out / "meta/info.json").write_text(
            json.dumps({"simplevla": {"suite": "tabletop"}} if kind != "folder" else {})
        )
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="out exists and holds something else"):
        import_hdf5(tmp_path / "a.hdf5", out, ACT, progress=False)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_full_disk_is_said_in_a_line_and_the_import_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_act(tmp_path / "a.hdf5")

    def full(path: Path) -> None:
        if path.suffix == ".tmp" and "data" in path.parts:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    command = [
        "import",
        "demonstrations",
        str(tmp_path / "a.hdf5"),
        str(tmp_path / "out"),
        "--layout",
        "act",
        "--fps",
        "50",
    ]
    with monkeypatch.context() as patched:
        patched.setattr(storage, "_flush", full)
        assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert "could not be written: No space left on device. Free space, then run again." in error
    assert not (tmp_path / "out").exists()
    assert cli.main(command) == 0
    assert (tmp_path / "out/meta/info.json").exists()


def test_a_folder_that_is_called_like_a_recording_is_no_broken_episode(tmp_path: Path) -> None:
    write_act(tmp_path / "a.hdf5")
    (tmp_path / "b.hdf5").mkdir()
    with pytest.raises(IsADirectoryError):
        import_hdf5(tmp_path, tmp_path / "out", ACT, skip_broken=True, progress=False)


@pytest.mark.parametrize("name", ["action", "observations/qpos", TOP])
def test_a_file_that_changes_between_looking_and_reading_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.hdf5"
    write_act(path)
    with open_hdf5(path) as file:
        recording = describe(file, path, "", ACT)
    with h5py.File(path, "a") as file:
        replaced(name, file[name][:-1])(file)
    with pytest.raises(UserError, match=r"a\.hdf5 has changed since it was looked at"):
        read(recording, ACT, ThreadPoolExecutor(1))


def test_bytes_changed_by_chance_are_a_line_or_other_content(tmp_path: Path) -> None:
    source = tmp_path / "a.hdf5"
    write_act(source)
    whole = np.frombuffer(source.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    refused = []
    for _ in range(100):
        changed = whole.copy()
        # Most of what steers a reader lies at the beginning.
        changed[rng.integers(0, 4000, 8)] = rng.integers(0, 256, 8, dtype=np.uint8)
        source.write_bytes(changed.tobytes())
        try:
            with open_hdf5(source) as file:
                recording = describe(file, source, "", ACT)
            episode = read(recording, ACT, ThreadPoolExecutor(1))
            assert np.isfinite(episode.state).all()
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert all("a.hdf5" in error for error in refused)


def test_only_whole_chunks_within_bounds_are_decompressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "LARGEST_CHUNK", 100)
    write_robomimic(tmp_path / "lift.hdf5")
    with pytest.raises(UserError, match=r"has chunks .* of over 100 bytes; expected smaller ones"):
        import_hdf5(tmp_path / "lift.hdf5", tmp_path / "out", HDF5Settings(layout="robomimic"), progress=False)
