"""Pictures of datasets of any size, each decoded when it is asked for; any process may ask, in any order."""

import contextlib
import functools
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from simplevla.demonstrations.images import decode_image
from simplevla.demonstrations.videos import damage, enter_video, pixels_of, read_index
from simplevla.errors import UserError
from simplevla.storage import storage_errors

ROWS_PER_READ = 512
"""Frames read at a time: bounds the memory for encoded images."""
OPEN_VIDEOS = 16
"""Videos that a process keeps open."""


class Pictures(Protocol):
    """The pictures of one camera, F in all: an array in memory, or one of the classes below."""

    def __getitem__(self, frames: np.ndarray) -> np.ndarray:
        """uint8 [B, height, width, 3] of the frames int64 [B]."""


def require_images(path: Path, file: pq.ParquetFile, key: str) -> None:
    """Refuses a data file whose column `key` holds no images.

    Raises:
        UserError: the column is missing or of another type.
    """
    kind = file.schema_arrow.field(key).type if key in file.schema_arrow.names else None
    if kind is None or not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise UserError(f"{path}: {key!r} is {kind}; expected a struct of bytes and path")


class EmbeddedPictures:
    """Images in parquet files, which can only be read by the row group: hundreds of pictures for one.

    When a row group is first needed, its pictures are copied as they are, still encoded, to a file of their own in
    `spill`, where each can be read alone.

    Args:
        key: the camera's feature.
        size: (height, width).
        places: data file -> int64, which frame each of its rows is; -1 for rows that aren't wanted.

    Raises:
        UserError: a data file is damaged or holds no images.
    """

    def __init__(self, key: str, size: tuple[int, int], places: Mapping[Path, np.ndarray], spill: Path) -> None:
        self.key, self.size, self.spill = key, size, spill
        self.paths = list(places)
        self.group_starts = []
        frames = 1 + max(int(rows.max(initial=-1)) for rows in places.values())
        self.file, self.row = np.full(frames, -1), np.zeros(frames, np.int64)
        self.encoded_bytes = 0
        for number, (path, rows) in enumerate(places.items()):
            with _damage(path), pq.ParquetFile(path) as file:
                require_images(path, file, key)
                groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
            self.group_starts.append(np.cumsum([0, *(group.num_rows for group in groups)]))
            self.encoded_bytes += sum(_bytes_of(group, key) for group in groups)
            wanted = np.flatnonzero(rows >= 0)
            self.file[rows[wanted]], self.row[rows[wanted]] = number, wanted

    def __getitem__(self, frames: np.ndarray) -> np.ndarray:
        pictures = np.empty((len(frames), *self.size, 3), np.uint8)
        for picture, frame in zip(pictures, frames.tolist(), strict=True):
            where = f"{self.paths[self.file[frame]]}, {self.key}, frame {frame}"
            data = self._encoded(int(self.file[frame]), int(self.row[frame]))
            if not data:
                raise UserError(f"{where}: the image isn't in the parquet file; write it with the images embedded")
            decode_image(data, picture, where)
        return pictures

    def _encoded(self, file: int, row: int) -> bytes:
        starts = self.group_starts[file]
        group = int(np.searchsorted(starts, row, "right")) - 1
        rows = int(starts[group + 1] - starts[group])
        copy = self.spill / f"{self.key}_{file}_{group}"
        if not copy.exists():
            self._spill(file, group, copy)
        with copy.open("rb", buffering=0) as stream:
            at = 8 * (row - int(starts[group]))
            begin, end = np.frombuffer(os.pread(stream.fileno(), 16, at), np.int64).tolist()
            return os.pread(stream.fileno(), end - begin, 8 * (rows + 1) + begin)

    def _spill(self, file: int, group: int, copy: Path) -> None:
        """Writes the offsets int64 [rows + 1] of a row group's pictures, then the pictures."""
        path = self.paths[file]
        lengths: list[int] = []
        temporary = copy.with_name(f".{copy.name}.{os.getpid()}")
        with _damage(path), pq.ParquetFile(path) as source, storage_errors(copy), temporary.open("wb") as out:
            out.seek(8 * (source.metadata.row_group(group).num_rows + 1))
            for batch in source.iter_batches(ROWS_PER_READ, row_groups=[group], columns=[f"{self.key}.bytes"]):
                for data in batch[self.key].field("bytes").to_pylist():
                    lengths.append(out.write(data or b""))
            out.seek(0)
            out.write(np.cumsum([0, *lengths], dtype=np.int64).tobytes())
        os.replace(temporary, copy)


def make_spill(spill: Path, needed: int) -> None:
    """Makes the empty folder `spill`; what it held is removed.

    Raises:
        UserError: the disk has less than the `needed` bytes.
    """
    shutil.rmtree(spill, ignore_errors=True)
    spill.mkdir(parents=True)
    require_space(spill, needed)


def require_space(spill: Path, needed: int) -> None:
    """Refuses to begin where the disk has less than the `needed` bytes.

    Raises:
        UserError: it has less.
    """
    free = shutil.disk_usage(spill).free
    if needed > free:
        raise UserError(
            f"{spill} needs {needed / 1e9:.1f} GB for encoded pictures, and {free / 1e9:.1f} GB are free; make space, give a run "
            "folder on a larger disk, or a larger memory-gb so that nothing is streamed"
        )


def _bytes_of(group: Any, key: str) -> int:
    columns = (group.column(number) for number in range(group.num_columns))
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == f"{key}.bytes")


def encoded_bytes(images: Mapping[str, Pictures]) -> int:
    """Bytes that copies of the cameras' encoded pictures take."""
    return sum(pictures.encoded_bytes for pictures in images.values() if isinstance(pictures, EmbeddedPictures))


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, KeyError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); copy it again") from error


@functools.lru_cache(OPEN_VIDEOS)
def _open_video(path: Path, size: tuple[int, int]) -> Any:
    """A video's container and stream, kept open, with a decoder of one thread, since several processes decode."""
    container, stream = enter_video(path, size)
    stream.codec_context.thread_count = 1
    return container, stream


class VideoPictures:
    """Pictures in video files: those wanted that follow the same keyframe are decoded together.

    Args:
        size: (height, width).
        times: video file -> (frames int64 [n], their seconds in the file float64 [n]).
        fps: frames per second; a picture further than half a frame from its time isn't its frame's.

    Raises:
        UserError: a video is damaged, cut short, or can't be entered in the middle.
    """

    def __init__(self, size: tuple[int, int], times: Mapping[Path, tuple[np.ndarray, np.ndarray]], fps: float) -> None:
        self.size, self.paths = size, list(times)
        frames = 1 + max(int(numbers.max()) for numbers, _ in times.values())
        self.file, self.pts, self.keyframe = (np.full(frames, -1) for _ in range(3))
        self.keyframes = []
        """Decoding times of each file's keyframes, where it can be entered."""
        for number, (path, (numbers, seconds)) in enumerate(times.items()):
            index = read_index(path, size)
            self.file[numbers] = number
            self.pts[numbers] = index.nearest(seconds, fps)
            self.keyframe[numbers] = np.searchsorted(index.keyframe_pts, self.pts[numbers], "right") - 1
            self.keyframes.append(index.keyframe_dts)

    def __getitem__(self, frames: np.ndarray) -> np.ndarray:
        pictures = np.empty((len(frames), *self.size, 3), np.uint8)
        keys = np.stack([self.file[frames], self.keyframe[frames]])
        order = np.lexsort((self.pts[frames], *keys[::-1]))
        breaks = np.flatnonzero(np.diff(keys[:, order]).any(0)) + 1
        for part in np.split(order, breaks):
            file, keyframe = keys[:, part[0]].tolist()
            self._decode(file, keyframe, self.pts[frames[part]], pictures, part)
        return pictures

    def _decode(self, file: int, keyframe: int, pts: np.ndarray, pictures: np.ndarray, rows: np.ndarray) -> None:
        """Decodes the pictures at the times `pts`, in order, into the rows `rows`, from the keyframe on."""
        path = self.paths[file]
        # A keyframe's decoding time may be the next one's display time, which then is entered: begin one earlier.
        for begin in range(keyframe, -1, -1):
            found = 0
            with damage(path):
                container, stream = _open_video(path, self.size)
                container.seek(int(self.keyframes[file][begin]), stream=stream)
                for frame in container.decode(stream):
                    while found < len(pts) and frame.pts == pts[found]:
                        pictures[rows[found]] = pixels_of(frame, path, self.size)
                        found += 1
                    if found == len(pts):
                        return
                    if frame.pts is None or frame.pts > pts[found]:
                        break
        raise UserError(f"{path} can't be entered at {pts[0]}; the file is damaged, copy it again")
