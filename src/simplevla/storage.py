"""Files and folders that are whole or absent, even if the process is killed, and folders that one process holds."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic_core import from_json
from safetensors import SafetensorError

from simplevla.checked import from_dict
from simplevla.errors import UserError

T = TypeVar("T")

LOCK = ".lock"
"""The file in a folder that says which process holds it. It stays behind: removing it could let two processes in."""
LONGEST_JSON = 100_000_000
ADVICE = {
    errno.ENOSPC: "Free space, then run again",
    errno.EDQUOT: "Free space, then run again",
    errno.EACCES: "Choose a folder that you may write to",
    errno.EPERM: "Choose a folder that you may write to",
    errno.EROFS: "Choose a folder that you may write to",
}


class FolderLock:
    """Makes and holds a folder for this process alone, until it is closed or the process ends, however that happens.

    Raises:
        UserError: another process holds it, named by pid and host.
        OSError: the folder can't be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open = False
        self._file = folder / LOCK
        with storage_errors(folder):
            self._take()

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the folder; may be called more than once."""
        if self._open:
            os.close(self._descriptor)
            self._open = False

    def check(self) -> None:
        """Raises OSError if the folder has been deleted, moved or replaced since."""
        if not self._in_place():
            raise OSError(
                f"{self.folder} has been deleted or moved while this process was writing into it; nothing more is written. "
                "Don't move a folder in use, and start again"
            )

    def _take(self) -> None:
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(self._descriptor, 300).decode(errors="replace").strip() or "another process"
                os.close(self._descriptor)
                raise UserError(
                    f"{self.folder} is in use by {holder}. Wait until it ends, or use another folder"
                ) from None
            except OSError as error:
                warnings.warn(
                    f"{self.folder} can't be locked ({error.strerror}): use it in one process alone", stacklevel=4
                )
            if self._in_place():
                self._open = True
                break
            # It was deleted in between.
            os.close(self._descriptor)
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"process {os.getpid()} on host {platform.node()}".encode())

    def _in_place(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._file))
        except FileNotFoundError:
            return False


@contextlib.contextmanager
def storage_errors(target: Path) -> Iterator[None]:
    """Rewords errors of the disk: one sentence says what was written, what went wrong, and what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError):
            if error.errno is None:
                # It says so already.
                raise
            number = error.errno
        else:
            told = re.search(r"os error (\d+)", str(error))
            number = int(told[1]) if told else 0
        reason = os.strerror(number) if number else str(error)
        advice = ADVICE.get(number, "Check the folder, then run again")
        raise OSError(f"{target} could not be written: {reason}. {advice}.") from error


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A temporary file beside `target` that becomes `target`, whole and flushed, if the block succeeds.

    Its mode follows the umask, whatever made it in the block.

    Raises:
        OSError: the disk is full or not writable, saying so in one sentence.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with storage_errors(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)
            _flush(temporary)
            os.replace(temporary, target)
            _flush(target.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` that becomes `target`, whole and flushed, if the block succeeds.

    An existing `target` is replaced. On any error the temporary folder is removed and `target` is left as it was.
    Modes of its files follow the umask, as in `atomic_file`.

    Raises:
        OSError: the disk is full or not writable, saying so in one sentence.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    replaced = target.with_name(f".{target.name}.replaced.tmp")
    with storage_errors(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _put_back(replaced, target)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            mode = temporary.stat().st_mode & 0o666
            yield temporary
            _flush_tree(temporary, mode)
            if target.exists():
                os.rename(target, replaced)
            os.rename(temporary, target)
            _flush(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            _put_back(replaced, target)


def remove_leftovers(folder: Path) -> None:
    """Removes from `folder`, which this process holds, what killed processes had begun to write.

    Folders with a lock of their own are left alone.
    """
    for path in sorted(folder.iterdir()):
        if path.name.endswith(".replaced.tmp"):
            _put_back(path, path.with_name(path.name[1:].removesuffix(".replaced.tmp")))
        elif path.name != LOCK and is_leftover(path):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        elif path.is_dir() and not path.is_symlink() and not (path / LOCK).exists():
            remove_leftovers(path)


def is_leftover(path: Path) -> bool:
    """True for the lock and for what a killed process had begun to write."""
    return path.name == LOCK or (path.name.startswith(".") and path.name.endswith(".tmp"))


def require_writable(target: Path | None, overwrite: bool = False) -> None:
    """Refuses a file for a result before the work that gives it; None is none.

    Raises:
        UserError: it exists, without `overwrite`; or there is none, with it.
        OSError: nothing can be written there.
    """
    if target is None:
        if overwrite:
            raise UserError("--overwrite without --out; expected the file to replace, or neither")
        return
    if target.is_dir():
        raise UserError(f"{target} is a folder; expected the name of a file")
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists already; give another name, or --overwrite to replace it")
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        trial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        trial.touch()
        trial.unlink()


def _put_back(replaced: Path, target: Path) -> None:
    """Undoes, or completes, the exchange of a folder that already existed."""
    if replaced.exists() and not target.exists():
        os.rename(replaced, target)
    shutil.rmtree(replaced, ignore_errors=True)


def _flush_tree(folder: Path, mode: int) -> None:
    for path in [*folder.rglob("*"), folder]:
        if path.is_file():
            path.chmod(mode)
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `data` so that `path` is the old file or the whole new one, even if the process is killed."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes `value` as JSON, atomically: a line per entry of an object, and lists of numbers or words on one line.

    NaN is refused, since JSON has none.
    """
    write_atomically(path, (_lines(value, "") + "\n").encode())


def _lines(value: Any, indent: str) -> str:
    inner = indent + "  "
    if isinstance(value, dict) and value:
        entries = [f"{inner}{json.dumps(str(key))}: {_lines(entry, inner)}" for key, entry in value.items()]
        return "{\n" + ",\n".join(entries) + f"\n{indent}}}"
    if isinstance(value, list | tuple) and any(isinstance(entry, dict) for entry in value):
        return "[\n" + ",\n".join(inner + _lines(entry, inner) for entry in value) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, of at most `LONGEST_JSON` bytes and 200 levels.

    Raises:
        UserError: no such file, not JSON, or not an object; the message names the file.
    """
    if not path.is_file():
        raise UserError(f"no file {path}")
    if path.stat().st_size > LONGEST_JSON:
        raise UserError(f"{path} has {path.stat().st_size} bytes; expected a JSON file of at most {LONGEST_JSON}")
    return parse_json(path.read_bytes(), str(path))


def parse_json(text: bytes | str, source: str) -> dict[str, Any]:
    """Reads JSON as `read_json`, from `text`; errors name `source`."""
    try:
        value = from_json(text)
        # JSON has neither NaN nor infinity, though readers take the one, and 1e999 for the other.
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise UserError(f"{source} is not valid JSON ({error}); write it again or restore it") from None
    if not isinstance(value, dict):
        raise UserError(f"{source} holds a JSON {type(value).__name__}; expected an object")
    return value


def read_as(path: Path, cls: type[T]) -> T:
    """The JSON object in `path` as the checked dataclass `cls`.

    Raises:
        UserError: as `read_json` and `from_dict`; the message names the file.
    """
    return from_dict(cls, read_json(path), source=str(path))
