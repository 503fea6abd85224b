"""Camera images to and from bytes: PNG in parquet files, frames in videos."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError


def encode_png(image: np.ndarray) -> bytes:
    """Lossless PNG of uint8 [height, width, 3]; the fastest compression level, since sizes differ little."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode_image(data: bytes, target: np.ndarray, where: str) -> None:
    """Decode PNG or JPEG `data` into `target` uint8 [height, width, 3]; `where` names the frame in errors."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(
            f"{where}: the image can't be decoded ({error}); the file is damaged, copy it again"
        ) from error
    if pixels.shape != target.shape:
        raise ValueError(f"{where}: the image is {pixels.shape}; meta/info.json says {target.shape}")
    target[...] = pixels


def decode_video(path: Path, times: np.ndarray, fps: float, rows: Sequence[int], target: np.ndarray) -> None:
    """Decode the frames shown at `times` [n] (seconds in the file) into `target[rows]`, reading the file once.

    Raises:
        ValueError: the file is missing or damaged, its frames have another size, or it lacks one of the frames.
    """
    import av

    if not path.is_file():
        raise ValueError(f"{path} is missing; copy the dataset's videos/ folder completely")
    wanted: dict[int, list[int]] = {}
    for time, row in zip(times, rows, strict=True):
        wanted.setdefault(round(float(time) * fps), []).append(row)
    last = max(wanted)
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                number = round(float(frame.time or 0.0) * fps)
                found = wanted.pop(number, ())
                if found:
                    if (frame.height, frame.width, 3) != target.shape[1:]:
                        raise ValueError(
                            f"{path}: frames are {frame.height} x {frame.width}; info.json says {target.shape[1:3]}"
                        )
                    target[found] = frame.to_ndarray(format="rgb24")
                if number >= last:
                    break
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path} can't be decoded ({error}); the file is damaged, copy it again") from error
    if wanted:
        first = min(wanted)
        raise ValueError(
            f"{path} lacks {len(wanted)} of the frames that meta/episodes points to, the first at {first / fps:.3f} s; "
            "the video is cut short or its from_timestamp values are wrong"
        )
