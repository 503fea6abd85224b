"""A run's `run.log`: what the console says while the run is at work, as plain text with the time of each line."""

import contextlib
import logging
import os
import shlex
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simplevla.errors import UserError, one_line, printable

RUN_LOG = "run.log"
EXIT_TERMINATED = 128 + signal.SIGTERM


class Terminated(SystemExit):
    """SIGTERM: a scheduler's time is up, or somebody ended the process with `kill`."""


_records: list["_Record"] = []
"""The open ones; a run within a continual run or a demo writes to both."""


class _Record:
    """Lines for one file; held back until `begin`, so that a run that is refused leaves no trace."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._held = ""
        self._descriptor: int | None = None
        self._failed = False

    def begin(self) -> None:
        if self._descriptor is None and not self._failed:
            with self._forgiven():
                self._descriptor = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                again = os.fstat(self._descriptor).st_size > 0
                # The last line of a killed run may have no end.
                held, self._held = "\n" * again + self._held, ""
                self._put(held)

    def write(self, text: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {printable(text.rstrip())}\n"
        if self._descriptor is not None:
            with self._forgiven():
                self._put(line)
        elif not self._failed:
            self._held += line

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _put(self, text: str) -> None:
        data = text.encode()
        assert self._descriptor is not None
        if os.write(self._descriptor, data) < len(data):
            raise OSError("no space left")

    @contextlib.contextmanager
    def _forgiven(self) -> Iterator[None]:
        """Goes on without the file where it can't be written, and says so once: no result depends on it."""
        try:
            yield
        except OSError as error:
            self._failed = True
            self.close()
            reason = error.strerror or error
            warnings.warn(f"{self._file} can't be written ({reason}): the run goes on without it", stacklevel=2)


def record(text: str) -> None:
    """Writes `text` to the run.log of each run at work; nothing where there is none."""
    if text.strip():
        for one in _records:
            one.write(text)


def begin_records() -> None:
    """Lets the lines that were held back into their files: the run's folder is a run's now."""
    for one in _records:
        one.begin()


@contextlib.contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Records in `folder`/run.log, after what is there, what is said in the block, warnings, and how it ends.

    A file that can't be written, on a full disk for example, is gone on without, with a warning.

    Raises:
        Terminated: SIGTERM came, and nothing else handles it.
    """
    one = _Record(folder / RUN_LOG)
    one.write(f"started: {shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}")
    started, show = time.monotonic(), warnings.showwarning

    def show_and_record(message: Warning | str, *where: Any, **more: Any) -> None:
        show(message, *where, **more)
        one.write(f"warning: {one_line(str(message))}")

    _records.append(one)
    warnings.showwarning = show_and_record
    logging.getLogger("simplevla").addHandler(_HANDLER)
    try:
        with _sigterm_raised():
            yield
    except (UserError, OSError) as error:
        one.write(f"error: {one_line(str(error))}")
        raise
    except (KeyboardInterrupt, Terminated) as end:
        one.write("terminated by SIGTERM" if isinstance(end, Terminated) else "interrupted")
        raise
    except BaseException:
        one.write(traceback.format_exc())
        raise
    finally:
        one.write(f"ended after {(time.monotonic() - started) / 60:.1f} minutes")
        warnings.showwarning = show
        _records.remove(one)
        one.close()
        if not _records:
            logging.getLogger("simplevla").removeHandler(_HANDLER)


@contextlib.contextmanager
def _sigterm_raised() -> Iterator[None]:
    """Lets SIGTERM raise `Terminated`, so that the run ends as by Ctrl-C; a handler that is there already stays."""
    alone = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not alone:
        yield
        return

    def leave(*_: object) -> None:
        raise Terminated(EXIT_TERMINATED)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Handler(logging.Handler):
    """Records what is logged, which is seen on stderr all the same where nobody has set logging up."""

    def emit(self, entry: logging.LogRecord) -> None:
        record(self.format(entry))
        if logging.lastResort is not None and not logging.getLogger().handlers:
            logging.lastResort.handle(entry)


_HANDLER = _Handler(logging.WARNING)
