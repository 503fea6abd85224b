"""The records of a run: metrics.jsonl, TensorBoard, a live table in the terminal, and where it ran."""

import dataclasses
import datetime
import errno
import json
import math
import os
import platform
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from simplevla.checked import Count, from_dict, part
from simplevla.errors import UserError, brief
from simplevla.evaluation import provenance
from simplevla.progress import duration
from simplevla.storage import LONGEST_JSON, parse_json, storage_errors
from simplevla.terminal import Console
from simplevla.training.curves import curves
from simplevla.training.health import HealthWarning
from simplevla.training.tracking import Tracker

METRICS = "metrics.jsonl"
LARGEST = 1e300
"""Largest absolute number in a row; nothing here comes near it."""
ROWS_SHOWN = 20
"""Rows of the live table; the whole history is in metrics.jsonl."""


def _percent(value: float) -> str:
    return f"{value:.1%}"


COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("update", "update", lambda value: f"{value:.0f}"),
    ("train_success", "train", _percent),
    ("eval_success", "eval", _percent),
    ("groups_mixed", "mixed", lambda value: f"{value:.0f}"),
    ("groups_sampled", "of groups", lambda value: f"{value:.0f}"),
    ("env_steps_per_s", "env steps/s", lambda value: f"{value:.0f}"),
    ("approx_kl", "approx kl", lambda value: f"{value:.5f}"),
    ("entropy", "entropy", lambda value: f"{value:.3f}"),
    ("elapsed_s", "time", duration),
)
"""(key in a row, heading, format) of what the terminal shows."""


class MetricsFile:
    """Appends rows to metrics.jsonl and their curves to TensorBoard and a tracker. Use as a context manager.

    Args:
        keep_bytes: length that a checkpoint says; what lies after it is newer than the checkpoint, and is dropped.
        first: value of `key` in the first row to come.
        key: name of the x-axis, which every row has.
        check: raises OSError if the run folder is gone.
        group: as in `curves`.

    Raises:
        OSError: metrics.jsonl can't be written.
    """

    def __init__(
        self,
        run: Path,
        keep_bytes: int,
        first: int,
        key: str,
        check: Callable[[], None] = lambda: None,
        group: str = "",
        tracker: Tracker | None = None,
    ) -> None:
        self.file = run / METRICS
        self._key, self._group, self._tracker, self.check = key, group, tracker, check
        with storage_errors(self.file):
            self._stream = self.file.open("ab", buffering=0)
            self._stream.truncate(keep_bytes)
            self._stream.seek(0, os.SEEK_END)
        self._tensorboard = SummaryWriter(str(run / "tensorboard"), purge_step=first)

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._tensorboard.close()

    @property
    def length(self) -> int:
        """Bytes of metrics.jsonl so far, for the checkpoint."""
        return self._stream.tell()

    def write(self, row: dict[str, Any]) -> dict[str, Any]:
        """Appends `row`, its NaN and infinity as null, flushes it to the disk, and returns it as it was written."""
        self.check()
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
        with storage_errors(self.file):
            line = json.dumps(finite).encode() + b"\n"
            if self._stream.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._stream.fileno())
        values = curves(finite, self._key, self._group)
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, row[self._key])
        self._tensorboard.flush()
        if self._tracker is not None:
            self._tracker.log(values, row[self._key])
        return finite


class RunLog(MetricsFile):
    """The rows of an RL run, one per update, whose last ones the terminal shows, and the time left."""

    def __init__(
        self,
        run: Path,
        keep_bytes: int = 0,
        first_update: int = 0,
        updates: int = 0,
        console: Console | None = None,
        check: Callable[[], None] = lambda: None,
        tracker: Tracker | None = None,
    ) -> None:
        super().__init__(run, keep_bytes, first_update, "update", check, tracker=tracker)
        self._first, self._updates = first_update, updates
        self._began = time.monotonic()
        self._shown = deque(read_rows(run), maxlen=ROWS_SHOWN)
        self._left = ""
        self._warned: set[str] = set()
        self._console = console or Console()
        self._live = Live(console=self._console, refresh_per_second=4) if self._console.is_terminal else None

    def __enter__(self) -> "RunLog":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(self._table())
            self._live.stop()
        super().__exit__()

    def stage(self, text: str, detail: object = "") -> None:
        """Says what is going on between two rows; a terminal shows it, a log file needn't.

        Args:
            detail: its text is taken anew whenever the terminal is redrawn.
        """
        if self._live is not None:
            self._live.update(Group(self._table(), _Stage(text, detail, self._left)), refresh=True)

    def write(self, row: dict[str, Any]) -> dict[str, Any]:
        written = super().write(row)
        self._shown.append(written)
        done = written["update"] - self._first + 1
        if done > 0:
            left = (time.monotonic() - self._began) / done * (self._updates - written["update"])
            self._left = f"{duration(left)} left" if left > 0 else ""
        if self._live is not None:
            self._live.update(self._table())
        cells = [f"{heading} {_cell(written, key, form)}" for key, heading, form in COLUMNS if key in written]
        self._console.say("  ".join([*cells, *filter(None, [self._left])]))
        return written

    def warn(self, warnings: Iterable[HealthWarning]) -> None:
        """Shows the first warning of each metric; the others are in the rows."""
        for warning in warnings:
            if warning.metric not in self._warned:
                self._warned.add(warning.metric)
                self._console.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table(*(heading for _, heading, _ in COLUMNS))
        for row in self._shown:
            table.add_row(*(_cell(row, key, form) for key, _, form in COLUMNS))
        return table


class _Stage:
    """A line that turns, and says how far things are at the moment it is drawn."""

    def __init__(self, *said: object) -> None:
        self._said = said
        self._spinner = Spinner("dots")

    def __rich__(self) -> Spinner:
        self._spinner.update(text=", ".join(filter(None, map(str, self._said))))
        return self._spinner


def _cell(row: dict[str, Any], key: str, form: Callable[[float], str]) -> str:
    value = row.get(key)
    return "" if value is None else form(value)


@part(frozen=True, kw_only=True)
class Texts:
    """Those values of a row that aren't numbers."""

    success_by_task: dict[str, tuple[Count, Count]] | None = None
    eval_by_task: dict[str, tuple[Count, Count]] | None = None
    held_out_by_task: dict[str, tuple[Count, Count]] | None = None
    errors: dict[str, Count] | None = None
    eval_errors: dict[str, Count] | None = None
    last_error: str | None = None
    eval_last_error: str | None = None
    warnings: list[str] | None = None


TEXTS = {field.name for field in dataclasses.fields(Texts)}


def read_rows(run: Path) -> list[dict[str, Any]]:
    """All rows of the run's metrics.jsonl, oldest first; a last line that a kill cut off is left out.

    Raises:
        UserError: naming the line that isn't one of this program's.
    """
    rows: list[dict[str, Any]] = []
    with (run / METRICS).open("rb") as stream:
        while (line := stream.readline(LONGEST_JSON)).endswith(b"\n"):
            rows.append(_read_row(line, f"{stream.name}, line {len(rows) + 1}"))
        if len(line) == LONGEST_JSON:
            raise UserError(
                f"{stream.name}, line {len(rows) + 1} is longer than {LONGEST_JSON} bytes; restore the file"
            )
    return rows


def _read_row(line: bytes, source: str) -> dict[str, Any]:
    row = parse_json(line, source)
    from_dict(Texts, row, source)
    for key, value in row.items():
        if key not in TEXTS and value is not None and not (isinstance(value, int | float) and abs(value) < LARGEST):
            raise UserError(f"{source}: {key} is {brief(value)}; expected a finite number or null. Restore the file")
    return row


@part(frozen=True, kw_only=True)
class Environment:
    """The part of environment.json that is read again."""

    suite_protocol: dict[str, Any]
    start_policy_sha256: str | None = None
    resumed: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def environment_facts(seed: int, protocol: dict[str, Any]) -> dict[str, Any]:
    """Facts for environment.json: the code, versions and machine that somebody needs to repeat a run."""
    commit = provenance.commit()
    return {
        "commit": commit.removesuffix("+changes"),
        "dirty": commit.endswith("+changes"),
        "versions": provenance.versions(),
        "cpu_count": os.cpu_count(),
        "platform": platform.platform(),
        "suite_protocol": protocol,
        "seed": seed,
        "date": datetime.date.today().isoformat(),
        "command": sys.argv,
    }
