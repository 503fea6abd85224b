"""Reads the statistics pickle that TinyVLA's training writes, without running anything that stands in it.

A pickle names the functions that rebuild its objects. The four that numpy arrays and numbers need are replaced here by
ones of our own, which check what they get and make plain arrays of numbers; any other name is an error before anything
is called.
"""

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from simplevla.errors import UserError

LARGEST_FILE = 256 * 2**20
"""Bytes. Statistics take kilobytes; one episode's states, which stand beside them, at most some megabytes."""
MOST_STEPS, MOST_VALUES, DEEPEST = 200_000, 1_000_000, 50
"""Limits of a pickle: instructions, values (counted at each reference), and levels of nesting."""

NUMBERS = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")


def read_pickle(path: Path) -> Any:
    """Content of a pickle of dictionaries, lists, tuples, strings, numbers and numpy arrays of numbers.

    Raises:
        UserError: it holds or names anything else, or is damaged. Nothing in it has been run then.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise UserError(f"{path} has {path.stat().st_size} bytes; expected statistics, of at most {LARGEST_FILE}")
    content = path.read_bytes()
    try:
        _check_steps(content)
        return _plain(_Reader(io.BytesIO(content)).load(), {}, 0)[0]
    except _Refused as error:
        raise UserError(
            f"{path} {error}; expected arrays and numbers only. Nothing in it was run. Was this file made by "
            "TinyVLA's training?"
        ) from None
    except Exception as error:  # a damaged pickle raises almost anything
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); use another checkpoint") from error


class _Refused(Exception):
    """Error of a file with another content than expected."""


class _Maker:
    """A function that a pickle may call; a pickle can't change it, since it has no attributes of its own."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _Refused("tries to change a function")


class _Dtype:
    """Stands for `numpy.dtype`, of numbers only."""

    __slots__ = ("dtype",)

    def __init__(self, name: Any, *_: Any) -> None:
        if not isinstance(name, str) or not NUMBERS.fullmatch(name):
            raise _Refused(f"has an array of {name!r}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # (version, byte order, sub-array, names, fields, size, alignment, flags): a number has only the second.
        if not isinstance(state, tuple) or any(part is not None for part in state[2:5]) or state[1] not in "<>=|":
            raise _Refused("has an array of something else than numbers")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for a numpy array, until its content comes."""

    __slots__ = ("value",)

    def __init__(self, *_: Any) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        self.value = _filled(content, dtype, shape, "F" if fortran else "C")


def _filled(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or not isinstance(content, bytes | bytearray):
        raise _Refused("has an array without numbers")
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise _Refused(f"has an array of shape {shape!r}")
    if len(content) != math.prod(shape) * dtype.dtype.itemsize or order not in ("C", "F"):
        raise _Refused(f"has an array of shape {shape} with {len(content)} bytes")
    return np.frombuffer(content, dtype.dtype).reshape(shape, order=order)


def _scalar(dtype: Any, content: Any) -> Any:
    return _filled(content, dtype, (), "C")[()]


def _array_from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    return _filled(content, dtype, shape, order)


MAKERS = {
    "numpy.ndarray": _Maker(_Array),
    "numpy.dtype": _Maker(_Dtype),
    **{
        f"numpy.{core}.{name}": _Maker(make)
        for core in ("core", "_core")
        for name, make in (
            ("multiarray._reconstruct", _Array),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", _array_from_buffer),
        )
    },
}
"""Names that a pickle may use; numpy 1 and 2 keep their rebuilding functions in different modules."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        wanted = f"{module}.{name}"
        if wanted not in MAKERS:
            raise _Refused(f"names {wanted!r}, which could run code")
        return MAKERS[wanted]


def _check_steps(content: bytes) -> None:
    """Refuses a pickle of too many instructions, or one that asks for more memory than they need."""
    for number, (step, argument, _) in enumerate(pickletools.genops(content)):
        if number > MOST_STEPS or ("PUT" in step.name and int(argument or 0) > MOST_STEPS):
            raise _Refused(f"has more than {MOST_STEPS} values")


def _plain(value: Any, done: dict[int, tuple[Any, int]], depth: int) -> tuple[Any, int]:
    """Value with our stand-ins resolved, and its number of values; `done` has what was seen before, by id."""
    if id(value) in done:
        return done[id(value)]
    if depth > DEEPEST:
        raise _Refused(f"is nested more than {DEEPEST} levels deep")
    plain, size = value, 1
    if isinstance(value, _Array):
        if value.value is None:
            raise _Refused("has an array without content")
        plain = value.value
    elif isinstance(value, dict | list | tuple):
        items = [item for pair in value.items() for item in pair] if isinstance(value, dict) else value
        parts = [_plain(item, done, depth + 1) for item in items]
        size += sum(part[1] for part in parts)
        if size > MOST_VALUES:
            raise _Refused(f"holds more than {MOST_VALUES} values")
        found = [part[0] for part in parts]
        plain = dict(zip(found[::2], found[1::2], strict=True)) if isinstance(value, dict) else type(value)(found)
    elif value is not None and not isinstance(value, str | int | float | np.ndarray | np.number | np.bool_):
        raise _Refused(f"holds a {type(value).__name__}")
    done[id(value)] = plain, size
    return plain, size
