"""Files and folders that are whole or absent, even if the process is killed."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from simplevla.errors import UserError


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes `target`, whole and flushed, if the block succeeds.

    An existing `target` is replaced. On any error the temporary folder is removed and `target` is left as it was.

    Raises:
        OSError: the disk is full or not writable, saying so in one sentence.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    replaced = target.with_name(f".{target.name}.replaced.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _put_back(replaced, target)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        _flush_tree(temporary)
        if target.exists():
            os.rename(target, replaced)
        os.rename(temporary, target)
        _flush(target.parent)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        message = f"{target} could not be written: {reason}. Free space or fix the permissions, then run again."
        raise OSError(message) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _put_back(replaced, target)


def _put_back(replaced: Path, target: Path) -> None:
    """Undo, or complete, the exchange of a folder that already existed."""
    if replaced.exists() and not target.exists():
        os.rename(replaced, target)
    shutil.rmtree(replaced, ignore_errors=True)


def _flush_tree(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` so that `path` is the old file or the whole new one, even if the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: dict[str, Any]) -> None:
    """`value` as indented JSON, atomically; NaN is refused, since JSON has none."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        UserError: no such file, not JSON, or not an object; the message names the file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); write it again or restore it") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}; expected an object")
    return value
