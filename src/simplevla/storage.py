"""Folders that are whole or absent, even if the process is killed."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError


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
