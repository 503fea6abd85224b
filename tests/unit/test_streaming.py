"""Pictures that are decoded on demand are those that decoding the whole dataset gives."""

import pickle
from pathlib import Path

import av
import numpy as np
import pytest

from made_dataset import LENGTHS, episodes, spec, to_videos, write
from simplevla.demonstrations import streaming
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.demonstrations.videos import decode_video, read_index

ANY_ORDER = np.array([5, 0, 7, 7, 2, 5, 1, 3, 4, 6])


def test_embedded_images_in_any_order_and_any_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "ROWS_PER_READ", 2)
    write(tmp_path / "data")
    dataset = LeRobotDataset(tmp_path / "data")
    whole, frames = dataset.load_all(), dataset.streamed(tmp_path / "spill")
    assert dataset.decoded_bytes == sum(LENGTHS) * 3 * sum(height * width for height, width in spec().cameras.values())
    # A worker process gets a copy, and uses what another one has spilt.
    for pictures in (frames.images, pickle.loads(pickle.dumps(frames.images))):
        for name in spec().cameras:
            np.testing.assert_array_equal(pictures[name][ANY_ORDER], whole.images[name][ANY_ORDER])
    np.testing.assert_array_equal(frames.actions, whole.actions)
    # A row group for each episode and camera, and nothing unfinished.
    assert len(list((tmp_path / "spill").iterdir())) == len(LENGTHS) * len(spec().cameras)


def test_what_an_earlier_run_spilt_is_not_taken_for_this_dataset_s(tmp_path: Path) -> None:
    write(tmp_path / "data")
    dataset = LeRobotDataset(tmp_path / "data")
    spill = tmp_path / "spill"
    expected = dataset.streamed(spill).images["front"][ANY_ORDER]
    for copy in spill.iterdir():
        copy.write_bytes(b"of another dataset" * 100)
    np.testing.assert_array_equal(dataset.streamed(spill).images["front"][ANY_ORDER], expected)


def test_too_little_space_is_said_before_anything_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data")
    monkeypatch.setattr(streaming.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(ValueError, match=r"spill needs 0.0 GB .* larger memory-gb"):
        LeRobotDataset(tmp_path / "data").streamed(tmp_path / "spill")
    assert list((tmp_path / "spill").iterdir()) == []


def test_videos_with_several_episodes_per_file(tmp_path: Path) -> None:
    write(tmp_path / "data")
    images = to_videos(tmp_path / "data", [[2, 0], [1]])
    dataset = LeRobotDataset(tmp_path / "data")
    frames = dataset.streamed(tmp_path / "spill")
    np.testing.assert_array_equal(frames.images["front"][ANY_ORDER], images[ANY_ORDER])
    wrist = np.concatenate([pixels["wrist"] for pixels in episodes()[1]])
    np.testing.assert_array_equal(frames.images["wrist"][ANY_ORDER], wrist[ANY_ORDER])


def film(path: Path, codec: str, keyframe_every: int, frames: int = 60, **options: str) -> None:
    """A film of a square that moves over noise."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.gop_size = keyframe_every
        stream.options = options
        for number in range(frames):
            picture = noise.copy()
            picture[10:40, number : number + 30] = (4 * number, 255 - 4 * number, 100)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("codec", "keyframe_every", "options"),
    [
        ("libx264", 2, {"bf": "0"}),
        ("libx264", 12, {"bf": "3", "sc_threshold": "0"}),
        # Keyframes that are decoded long before they are shown, and pictures before them that need the ones before.
        ("libx264", 4, {"bf": "3", "sc_threshold": "0", "x264-params": "open-gop=1:b-pyramid=normal"}),
        ("libsvtav1", 2, {"preset": "12"}),
        ("mpeg4", 10, {}),
    ],
)
def test_any_frame_of_a_video_alone_is_the_one_that_reading_it_all_gives(
    tmp_path: Path, codec: str, keyframe_every: int, options: dict[str, str]
) -> None:
    path = tmp_path / "film.mp4"
    film(path, codec, keyframe_every, **options)
    times, numbers = np.arange(60) / 30, np.arange(60)
    whole = np.zeros((60, 64, 96, 3), np.uint8)
    decode_video(path, times, 30.0, numbers, whole)
    assert len(np.unique(whole.reshape(60, -1), axis=0)) > 30
    pictures = streaming.VideoPictures((64, 96), {path: (numbers, times)}, 30.0)
    for frame in [*numbers[::-1], 7, 7, 59, 0]:
        np.testing.assert_array_equal(pictures[np.array([frame])][0], whole[frame], err_msg=str(frame))
    together = np.random.default_rng(1).integers(0, 60, 100)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(pictures))[together], whole[together])


def test_a_video_that_can_not_be_entered_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simplevla.demonstrations.videos.LONGEST_WAIT", 20)
    film(tmp_path / "film.mp4", "libx264", 1000)
    with pytest.raises(ValueError, match=r"60 frames and 1 keyframes, up to 60 frames apart; expected at most 20"):
        read_index(tmp_path / "film.mp4", (64, 96))
    film(tmp_path / "film.mp4", "libx264", 20, sc_threshold="0")
    assert read_index(tmp_path / "film.mp4", (64, 96)).keyframe_pts.shape == (3,)


def test_a_video_that_is_cut_short_or_of_a_changing_rate_is_refused_before_training(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    film(path, "mpeg4", 2, frames=40)
    with pytest.raises(ValueError, match=r"lacks 20 of the frames .* the first at 1.333 s"):
        streaming.VideoPictures((64, 96), {path: (np.arange(60), np.arange(60) / 30)}, 30.0)
    with pytest.raises(ValueError, match=r"lacks 4 of the frames .* the first at"):
        streaming.VideoPictures((64, 96), {path: (np.arange(40), np.arange(40) / 30 + np.arange(40) ** 2 / 1e4)}, 30.0)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="can't be decoded"):
        read_index(path, (64, 96))
