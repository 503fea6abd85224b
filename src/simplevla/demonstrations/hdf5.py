"""HDF5 files that others wrote: nothing but what the file itself holds is read, within bounds; each fault is one line.

HDF5 links can name other files, and datasets can keep their values in them: both are refused.
"""

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from simplevla.demonstrations.images import read_image
from simplevla.errors import UserError, brief

LONGEST_EPISODE, WIDEST_VECTOR, MOST_NUMBERS, LARGEST_SIDE = 1_000_000, 10_000, 100_000_000, 8192
LARGEST_FRAME = 3 * LARGEST_SIDE**2
LARGEST_CHUNK = 2**30
"""Bytes that HDF5 decompresses at once."""
READ_BYTES = 2**26
"""Bytes of pictures that are read at once."""
LONGEST_TEXT = 2**20

PICTURES = "expected uint8 [frames, height, width, 3], or JPEG files as uint8 [frames, bytes]"


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """The file, open for reading; what h5py raises in the block becomes a UserError that names it.

    Raises:
        UserError: it is no HDF5 file, or damaged, or somebody writes to it.
        OSError: it can't be opened at all.
    """
    with path.open("rb"):
        pass
    if not h5py.is_hdf5(path):
        raise UserError(f"{path} is no HDF5 file, or cut off; expected one of the layouts act, robomimic, libero")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except UserError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise UserError(
            f"{path} can't be read ({error}); it is damaged, cut off or still being written: copy it again"
        ) from error


def natural(name: str) -> list[tuple[int, str]]:
    """Sorting key that puts `demo_2` before `demo_10`."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d{1,18})", name)]


def find(file: h5py.File, name: str) -> h5py.Group | h5py.Dataset | None:
    """The group or dataset called `name`, such as `data/demo_0/actions`; None if there is none.

    Raises:
        UserError: a part of the name is a link to another place, perhaps in another file.
    """
    node = file
    for part in filter(None, name.split("/")):
        key = part.encode(errors="surrogateescape")
        if not isinstance(node, h5py.Group) or not node.id.links.exists(key):
            return None
        # Opening it would follow the link, so its kind is asked first.
        if node.id.links.get_info(key).type != h5py.h5l.TYPE_HARD:
            raise UserError(
                f"{file.filename}: {name!r} goes through a link, {part!r}, which may lead to another file; expected the data themselves: copy them into this file"
            )
        node = node[part]
    return node if isinstance(node, h5py.Group | h5py.Dataset) else None


def members(file: h5py.File, name: str) -> list[str]:
    """Names of what the group called `name` holds, in natural order; none if there is no such group."""
    group = find(file, name)
    return sorted(map(str, group), key=natural) if isinstance(group, h5py.Group) else []


def check_storage(data: h5py.Dataset) -> None:
    """Refuses a dataset that isn't wholly in its file, or that can't be decompressed here.

    Raises:
        UserError: says what is wrong and what to do.
    """
    where = f"{data.file.filename}: {data.name[1:]!r}"
    if data.is_virtual or data.external:
        raise UserError(f"{where} keeps its values in other files; expected them in this one: copy them into it")
    filters = data.id.get_create_plist()
    for number in range(filters.get_nfilters()):
        code, _, _, label = filters.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            raise UserError(
                f"{where} is compressed by the filter {code} ({label.decode(errors='replace')}), which isn't installed here; write "
                "it with gzip where the filter is: h5repack -f GZIP=1 OLD NEW"
            )
    if data.shape is None or 0 in data.shape:
        return
    if data.chunks is None:
        missing = int(data.id.get_storage_size() == 0)
    else:
        missing = math.prod(-(-n // c) for n, c in zip(data.shape, data.chunks, strict=True)) - data.id.get_num_chunks()
        if math.prod(data.chunks) * data.dtype.itemsize > LARGEST_CHUNK:
            raise UserError(
                f"{where} has chunks {data.chunks} of over {LARGEST_CHUNK} bytes; expected smaller ones: h5repack -l"
            )
    if missing:
        raise UserError(
            f"{where} is incomplete: {missing} of its blocks were never written, so the recording was cut off; record it again or "
            "leave it out with --skip-broken"
        )


def vector_width(data: h5py.Dataset) -> int:
    """Dimensions of a vector in [frames, dimensions]; 1 for [frames].

    Raises:
        UserError: it holds something else than numbers, or is larger than any recording.
    """
    where = f"{data.file.filename}: {data.name[1:]!r}"
    shape, kind = data.shape, data.dtype
    if shape is None or len(shape) not in (1, 2) or kind.kind not in "fiub":
        raise UserError(f"{where} holds {kind} {shape}; expected numbers [frames, dimensions]")
    width = shape[1] if len(shape) == 2 else 1
    if not 1 <= width <= WIDEST_VECTOR or shape[0] > LONGEST_EPISODE or shape[0] * width > MOST_NUMBERS:
        raise UserError(
            f"{where} has the shape {shape}; expected 1 to {WIDEST_VECTOR} dimensions, {LONGEST_EPISODE} frames and "
            f"{MOST_NUMBERS} numbers at most"
        )
    return int(width)


def read_vectors(data: h5py.Dataset) -> np.ndarray:
    """float32 [frames, dimensions].

    Raises:
        UserError: a number is NaN or infinite, or isn't within float32; names the frame.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.asarray(data[()]).reshape(len(data), -1).astype(np.float32)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        frame, dimension = bad[0].tolist()
        raise UserError(
            f"{data.file.filename}: {data.name[1:]!r}, frame {frame}, dimension {dimension} is {values[frame, dimension]}; expected a "
            f"finite number ({len(bad)} aren't): mend it or leave it out with --skip-broken"
        )
    return values


def picture_size(data: h5py.Dataset) -> tuple[int, int]:
    """(height, width) of the pictures, read from the first where they are compressed.

    Raises:
        UserError: it holds something else than pictures, or larger ones than a camera has.
    """
    where = f"{data.file.filename}: {data.name[1:]!r}"
    shape: tuple[int, ...] = data.shape or ()
    if shape and shape[0] > LONGEST_EPISODE:
        raise UserError(f"{where} has the shape {shape}; expected at most {LONGEST_EPISODE} frames")
    height = width = 0
    if data.dtype == np.uint8 and len(shape) == 4 and shape[3] == 3:
        height, width = shape[1:3]
    elif _holds_files(data) and shape[0]:
        first = bytes(next(pictures(data, 1)))
        height, width, _ = read_image(first, f"{where}, frame 0").shape
    if 1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE:
        return int(height), int(width)
    hint = ": multiply by 255 if they lie in [0, 1], and write them as uint8" if data.dtype.kind == "f" else ""
    if len(shape) == 4 and shape[1] == 3 and shape[3] != 3:
        hint = ": move the channels to the end"
    raise UserError(f"{where} holds {data.dtype} {shape}; {PICTURES}{hint}")


def pictures(data: h5py.Dataset, count: int) -> Iterator[np.ndarray | bytes]:
    """The first `count` pictures: pixels uint8 [height, width, 3], or a file's bytes without what fills them up."""
    files = _holds_files(data)
    frame = max(1, math.prod(data.shape[1:])) * data.dtype.itemsize
    # Whole chunks at a time, since each is decompressed as a whole.
    chunk = data.chunks[0] if data.chunks else 1
    step = min(max(1, READ_BYTES // (frame * chunk)) * chunk, max(1, LARGEST_CHUNK // frame))
    for start in range(0, count, step):
        for picture in data[start : min(start + step, count)]:
            yield np.asarray(picture).tobytes().rstrip(b"\0") if files else picture


def _holds_files(data: h5py.Dataset) -> bool:
    """True for uint8 [frames, bytes], or one string of bytes a frame."""
    if len(data.shape or ()) == 2:
        return bool(data.dtype == np.uint8) and 1 <= data.shape[1] <= LARGEST_FRAME
    loose = h5py.check_vlen_dtype(data.dtype) == np.uint8
    return len(data.shape or ()) == 1 and (loose or (data.dtype.kind == "S" and data.dtype.itemsize <= LARGEST_FRAME))


def read_text(node: h5py.Group | h5py.Dataset, attribute: str | None = None) -> str:
    """Text of an attribute, or of a dataset of one string.

    Raises:
        UserError: it is no text, not UTF-8, or empty.
    """
    where = f"{node.file.filename}: {node.name[1:] or '/'!r}" + (f", attribute {attribute!r}" if attribute else "")
    place = node.attrs.get_id(attribute) if attribute else node
    shape, kind = place.shape, place.dtype
    if shape is None or math.prod(shape) != 1 or kind.kind not in "SO" or kind.itemsize > LONGEST_TEXT:
        raise UserError(f"{where} holds {kind} {shape}; expected one text of at most {LONGEST_TEXT} bytes")
    value = node.attrs[attribute] if attribute else node[()]
    value = value.reshape(-1)[0] if isinstance(value, np.ndarray) else value
    try:
        # h5py hides bytes that aren't UTF-8 in surrogates.
        text = value.decode() if isinstance(value, bytes) else str(value)
        text.encode()
    except UnicodeError:
        raise UserError(
            f"{where} is {brief(value)}, which isn't UTF-8; write it again, or give --instruction"
        ) from None
    if not isinstance(value, bytes | str) or not text.strip() or len(text) > LONGEST_TEXT:
        raise UserError(f"{where} is {brief(text)}; expected words: write them, or give --instruction")
    return text
