"""Camera images in video files: which part of which file belongs to an episode, and the pictures at given times."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from simplevla.errors import UserError

LONGEST_WAIT = 300
"""Most frames from one keyframe to the next in a video that is entered in the middle."""


def video_places(
    folder: Path, info: dict[str, Any], episodes: Sequence[dict[str, Any]], key: str, fps: float
) -> dict[Path, list[tuple[int, float]]]:
    """Video file -> (place in `episodes`, the second of the file where it begins), for the camera feature `key`.

    Raises:
        UserError: the pointers are missing, aren't files and times, are of a shorter episode, or let two episodes
            overlap by half a frame or more.
    """
    names = [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    places: dict[Path, list[tuple[int, float]]] = {}
    for place, episode in enumerate(episodes):
        number = episode["episode_index"]
        absent = [name for name in names if episode.get(name) is None]
        if absent or not info.get("video_path"):
            lacking = absent[0] if absent else "video_path of info.json"
            raise UserError(f"{folder}/meta: {lacking} is missing for episode {number}; copy the meta/ folder again")
        for name, what in zip(names, ("a whole number", "a whole number", "seconds"), strict=True):
            value = episode[name]
            right = isinstance(value, int | float) and 0 <= value < np.inf
            if not right or (what != "seconds" and value != int(value)):
                raise UserError(
                    f"{folder}/meta/episodes: {name} of episode {number} is {value!r}; expected {what} from 0 up; copy the "
                    "meta/ folder again"
                )
        chunk, file, begin = (episode[name] for name in names)
        end = episode.get(f"videos/{key}/to_timestamp")
        if isinstance(end, float) and end - begin < (episode["length"] - 1.5) / fps:
            raise UserError(
                f"{folder}/meta/episodes: episode {number} has {episode['length']} frames, and its part of the video of {key}, from "
                f"{begin:.4g} to {end:.4g} s, is shorter: it is another episode's; correct its from_timestamp and to_timestamp"
            )
        path = folder / info["video_path"].format(video_key=key, chunk_index=int(chunk), file_index=int(file))
        places.setdefault(path, []).append((place, float(begin)))
    for path, parts in places.items():
        in_time = sorted(parts, key=lambda part: part[1])
        for (place, begin), (later, next_begin) in pairwise(in_time):
            end = begin + episodes[place]["length"] / fps
            if next_begin < end - 0.5 / fps:
                raise UserError(
                    f"{folder}/meta/episodes: episode {episodes[place]['episode_index']} is in {path.name} of {key} from {begin:.4g} to {end:.4g} s "
                    f"and episode {episodes[later]['episode_index']} from {next_begin:.4g} s: the same pictures can't be both; correct {names[2]}"
                )
    return places


def decode_video(path: Path, times: np.ndarray, fps: float, rows: np.ndarray, target: np.ndarray) -> None:
    """Decodes the pictures nearest to `times` [n] (seconds in the file) into `target[rows]`, reading the file once.

    Raises:
        UserError: the file is missing or damaged, its frames have another size or are to be turned, or none is within
            half a frame of a time.
    """
    order = np.argsort(times)
    times, rows = times[order], rows[order]
    half = 0.5 / fps
    distance = np.full(len(times), np.inf)
    size = (target.shape[1], target.shape[2])
    with damage(path):
        container, stream = enter_video(path, size)
        with container:
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                if frame.time is None:
                    continue
                first, last = np.searchsorted(times, (frame.time - half, frame.time + half))
                if first == len(times):
                    break
                away = np.abs(times[first:last] - frame.time)
                nearer = np.arange(first, last)[away < distance[first:last]]
                if len(nearer):
                    target[rows[nearer]] = pixels_of(frame, path, size)
                    distance[nearer] = np.abs(times[nearer] - frame.time)
    _require_all(path, times, np.isfinite(distance))


@dataclass(frozen=True, kw_only=True)
class VideoIndex:
    """The times of a video's frames and the places where it can be entered, in units of its stream's clock."""

    path: Path
    seconds: float
    """Seconds of a unit."""
    pts: np.ndarray
    """int64 [n], when each frame is shown, ascending."""
    keyframe_pts: np.ndarray
    """int64 [k], when each keyframe is shown, ascending."""
    keyframe_dts: np.ndarray
    """int64 [k], when each keyframe is decoded."""

    def nearest(self, times: np.ndarray, fps: float) -> np.ndarray:
        """The `pts` of the frames nearest to `times` float64 [m] (seconds in the file), as `decode_video` chooses them.

        Raises:
            UserError: none is within half a frame of a time.
        """
        shown = self.pts * self.seconds
        right = np.searchsorted(shown, times).clip(1, max(len(shown) - 1, 1))
        left = right - 1
        right = right.clip(max=len(shown) - 1)
        chosen = np.where(np.abs(times - shown[right]) < np.abs(times - shown[left]), right, left)
        away = fps * (times - shown[chosen])
        _require_all(self.path, times, (away >= -0.5) & (away < 0.5))
        return self.pts[chosen]


def read_index(path: Path, size: tuple[int, int]) -> VideoIndex:
    """Finds the frames and keyframes of a video without decoding it.

    Args:
        size: (height, width) of its pictures.

    Raises:
        UserError: the file is missing, damaged or of another size, or its keyframes are more than `LONGEST_WAIT` apart.
    """
    with damage(path):
        container, stream = enter_video(path, size)
        with container:
            shown = [
                (packet.pts, packet.pts if packet.dts is None else packet.dts, packet.is_keyframe)
                for packet in container.demux(stream)
                if packet.pts is not None and not packet.is_discard
            ]
            unit = float(stream.time_base)
    pts, dts, key = np.array(sorted(shown), np.int64).reshape(-1, 3).T
    keyframes = np.flatnonzero(key)
    index = VideoIndex(path=path, seconds=unit, pts=pts, keyframe_pts=pts[keyframes], keyframe_dts=dts[keyframes])
    waits = np.diff([*np.searchsorted(pts, index.keyframe_pts), len(pts)])
    if not len(pts) or index.keyframe_pts[:1].tolist() != pts[:1].tolist() or waits.max() > LONGEST_WAIT:
        worst = waits.max() if len(waits) else len(pts)
        raise UserError(
            f"{path} has {len(pts)} frames and {len(keyframes)} keyframes, up to {worst} frames apart; expected at most "
            f"{LONGEST_WAIT}, since a picture is decoded from the keyframe before it. Encode it again "
            "(ffmpeg -i IN -g 2 OUT), or give a memory-gb in which the whole dataset fits"
        )
    return index


def enter_video(path: Path, size: tuple[int, int]) -> tuple[Any, Any]:
    """(open container, video stream) of a video whose pictures are (height, width) `size`."""
    import av

    if not path.is_file():
        raise UserError(f"{path} is missing; copy the dataset's videos/ folder completely")
    container = av.open(str(path))
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise UserError(f"{path} can't be decoded (no decoder for its video); the file is damaged, copy it again")
    _require_size(path, (stream.height, stream.width), size)
    return container, stream


@contextlib.contextmanager
def damage(path: Path) -> Iterator[None]:
    """Turns what libav raises over a damaged video into a UserError."""
    import av

    try:
        yield
    except UserError:
        raise
    except (av.FFmpegError, IndexError, ValueError, MemoryError) as error:
        raise UserError(f"{path} can't be decoded ({error}); the file is damaged, copy it again") from error


def pixels_of(frame: Any, path: Path, size: tuple[int, int]) -> np.ndarray:
    """uint8 [height, width, 3] of a decoded frame.

    Raises:
        UserError: it has another size, is to be turned, or is a depth map.
    """
    _require_size(path, (frame.height, frame.width), size)
    if frame.rotation:
        raise UserError(
            f"{path}: its pictures are marked to be turned by {frame.rotation} degrees, which not every program does; write "
            "the video again, turned"
        )
    if len(frame.format.components) == 1 and frame.format.components[0].bits > 8:
        raise UserError(f"{path}: its pictures are {frame.format.name}, as depth maps are")
    pixels: np.ndarray = frame.to_ndarray(format="rgb24")
    return pixels


def _require_size(path: Path, got: tuple[int, int], size: tuple[int, int]) -> None:
    if got != size:
        raise UserError(f"{path}: frames are {got[0]} x {got[1]}; info.json says {size}")


def _require_all(path: Path, times: np.ndarray, found: np.ndarray) -> None:
    lacking = times[~found]
    if len(lacking):
        raise UserError(
            f"{path} lacks {len(lacking)} of the frames that meta/episodes points to, the first at {lacking[0]:.3f} s; "
            "the video is cut short or its from_timestamp values are wrong"
        )
