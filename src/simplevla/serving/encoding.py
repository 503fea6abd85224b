"""Messages as msgpack with NumPy arrays, as openpi-client and vla-eval encode them; nothing of them is executed."""

import math
from typing import Any

import msgpack
import numpy as np

from simplevla.errors import UserError, brief, one_line

KINDS = "biuf"
"""Kinds of numbers that an array may have: truth values, whole numbers, floats."""
LONGEST_DTYPE = 8


def pack(message: Any, text_keys: bool = False) -> bytes:
    """The message in msgpack; an array is a map of its bytes, dtype and shape.

    Args:
        text_keys: names these by text, as vla-eval does, and not by bytes, as openpi-client does.
    """

    def described(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            raise TypeError(f"{type(value).__name__} has no place in a message")
        fields = {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": value.shape}
        return fields if text_keys else {name.encode(): field for name, field in fields.items()}

    return msgpack.packb(message, default=described)


def unpack(data: bytes | str) -> dict[str, Any]:
    """The map of a message whose arrays are read-only views into it.

    Raises:
        UserError: it isn't msgpack, no map with text for keys, or an array contradicts itself.
    """
    if isinstance(data, str):
        raise UserError(f"got text, {brief(data)}; expected a binary message in msgpack")
    try:
        message = msgpack.unpackb(data, object_hook=_array)
    except UserError:
        raise
    except Exception as error:  # whatever a broken message brings about
        reason = one_line(str(error)) or type(error).__name__
        raise UserError(f"got {len(data)} bytes that aren't msgpack ({reason}); expected a map of keys") from None
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise UserError(f"got a message of type {type(message).__name__}; expected a map with text for keys")
    return message


def _array(found: dict[Any, Any]) -> Any:
    """The array or number that a map describes; any other map as it is."""
    fields = {key.decode(errors="replace") if isinstance(key, bytes) else key: value for key, value in found.items()}
    if not fields.keys() & {"__ndarray__", "__npgeneric__"}:
        return found
    dtype, data = fields.get("dtype"), fields.get("data")
    if not isinstance(dtype, str) or len(dtype) > LONGEST_DTYPE:
        raise UserError(f"an array has dtype {brief(dtype)}; expected one of NumPy's, such as '|u1' or '<f4'")
    try:
        kind = np.dtype(dtype)
    except TypeError:
        raise UserError(
            f"an array has dtype {dtype!r}, which NumPy doesn't know; expected '|u1', '<f4' or so"
        ) from None
    if kind.kind not in KINDS:
        raise UserError(f"an array has dtype {dtype!r}; expected numbers")
    if "__npgeneric__" in fields:
        return np.asarray(data).astype(kind)
    shape = fields.get("shape")
    if not isinstance(shape, list) or not all(type(side) is int and side >= 0 for side in shape):
        raise UserError(f"an array has shape {brief(shape)}; expected a list of whole numbers")
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * kind.itemsize:
        held = len(data) if isinstance(data, bytes) else "no"
        raise UserError(
            f"an array of {dtype!r} and shape {brief(shape)} has {held} bytes; expected {math.prod(shape) * kind.itemsize}"
        )
    return np.frombuffer(data, kind).reshape(shape)
