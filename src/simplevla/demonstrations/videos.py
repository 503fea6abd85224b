"""Camera images in video files: which part of which file belongs to an episode, and the pictures at given times."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from simplevla.errors import UserError


def video_places(
    folder: Path, info: dict[str, Any], episodes: Sequence[dict[str, Any]], key: str, fps: float
) -> dict[Path, list[tuple[int, float]]]:
    """Video file -> (episode, the second of the file where it begins), for the camera feature `key`.

    Raises:
        UserError: the pointers are missing, aren't files and times, are of a shorter episode, or let two episodes
            overlap by half a frame or more.
    """
    names = [f"videos/{key}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
    places: dict[Path, list[tuple[int, float]]] = {}
    for number, episode in enumerate(episodes):
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
        places.setdefault(path, []).append((number, float(begin)))
    for path, parts in places.items():
        in_time = sorted(parts, key=lambda part: part[1])
        for (number, begin), (later, next_begin) in pairwise(in_time):
            end = begin + episodes[number]["length"] / fps
            if next_begin < end - 0.5 / fps:
                raise UserError(
                    f"{folder}/meta/episodes: episode {number} is in {path.name} of {key} from {begin:.4g} to {end:.4g} s and "
                    f"episode {later} from {next_begin:.4g} s: the same pictures can't be both; correct {names[2]}"
                )
    return places


def decode_video(path: Path, times: np.ndarray, fps: float, rows: np.ndarray, target: np.ndarray) -> None:
    """Decodes the pictures nearest to `times` [n] (seconds in the file) into `target[rows]`, reading the file once.

    Raises:
        UserError: the file is missing or damaged, its frames have another size or are to be turned, or none is within
            half a frame of a time.
    """
    import av

    if not path.is_file():
        raise UserError(f"{path} is missing; copy the dataset's videos/ folder completely")
    order = np.argsort(times)
    times, rows = times[order], rows[order]
    half = 0.5 / fps
    distance = np.full(len(times), np.inf)
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise UserError(
                    f"{path} can't be decoded (no decoder for its video); the file is damaged, copy it again"
                )
            stream.thread_type = "AUTO"
            if (stream.height, stream.width, 3) != target.shape[1:]:
                raise UserError(
                    f"{path}: frames are {stream.height} x {stream.width}; info.json says {target.shape[1:3]}"
                )
            for frame in container.decode(stream):
                if frame.time is None:
                    continue
                first, last = np.searchsorted(times, (frame.time - half, frame.time + half))
                if first == len(times):
                    break
                away = np.abs(times[first:last] - frame.time)
                nearer = np.arange(first, last)[away < distance[first:last]]
                if len(nearer):
                    if (frame.height, frame.width, 3) != target.shape[1:]:
                        raise UserError(
                            f"{path}: frames are {frame.height} x {frame.width}; info.json says {target.shape[1:3]}"
                        )
                    if frame.rotation:
                        raise UserError(
                            f"{path}: its pictures are marked to be turned by {frame.rotation} degrees, which not every program "
                            "does; write the video again, turned"
                        )
                    if len(frame.format.components) == 1 and frame.format.components[0].bits > 8:
                        raise UserError(f"{path}: its pictures are {frame.format.name}, as depth maps are")
                    target[rows[nearer]] = frame.to_ndarray(format="rgb24")
                    distance[nearer] = np.abs(times[nearer] - frame.time)
    except UserError:
        raise
    except (av.FFmpegError, IndexError, ValueError, MemoryError) as error:
        raise UserError(f"{path} can't be decoded ({error}); the file is damaged, copy it again") from error
    lacking = times[np.isinf(distance)]
    if len(lacking):
        raise UserError(
            f"{path} lacks {len(lacking)} of the frames that meta/episodes points to, the first at {lacking[0]:.3f} s; "
            "the video is cut short or its from_timestamp values are wrong"
        )
