"""What a run leaves to read: metrics.jsonl, TensorBoard, a live table in the terminal, and where it ran."""

import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from simplevla.config import from_dict
from simplevla.errors import UserError
from simplevla.evaluation import provenance
from simplevla.storage import read_json
from simplevla.training.health import HealthWarning

T = TypeVar("T")

ROWS_SHOWN = 20
"""Of the live table; the whole history is in metrics.jsonl."""


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
    ("elapsed_s", "time", lambda value: f"{int(value) // 60}:{int(value) % 60:02d}"),
)
"""(key in a row, heading, format) of what the terminal shows."""


class RunLog:
    """Appends one row per update to metrics.jsonl and TensorBoard, and shows the last rows in the terminal.

    Rows are flat: numbers become TensorBoard scalars; anything else (`success_by_task`) is kept in the file alone.
    """

    def __init__(self, run: Path, keep_bytes: int = 0, first_update: int = 0, console: Console | None = None) -> None:
        """Rows after the first `keep_bytes` bytes are dropped: they are newer than the checkpoint that is resumed."""
        self._stream = (run / "metrics.jsonl").open("ab")
        self._stream.truncate(keep_bytes)
        self._stream.seek(0, os.SEEK_END)
        self.rows = read_rows(run)
        """All that metrics.jsonl holds."""
        self._warned: set[str] = set()
        self._tensorboard = SummaryWriter(str(run / "tensorboard"), purge_step=first_update)
        self._console = console or Console()
        self._live = Live(console=self._console, refresh_per_second=4) if self._console.is_terminal else None

    def __enter__(self) -> "RunLog":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(self._table())
            self._live.stop()
        self._stream.close()
        self._tensorboard.close()

    @property
    def length(self) -> int:
        """Bytes of metrics.jsonl so far, for the checkpoint."""
        return self._stream.tell()

    def stage(self, text: str) -> None:
        """Say what is going on between two rows; a terminal shows it, a log file needn't."""
        if self._live is not None:
            self._live.update(Group(self._table(), Spinner("dots", text)), refresh=True)

    def write(self, row: dict[str, Any]) -> None:
        """Append `row` (its key `update` is the x-axis) and flush it to the disk; NaN and infinity become null.

        Raises:
            OSError: metrics.jsonl can't be written.
        """
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}
        self._stream.write(json.dumps(finite).encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        for key, value in finite.items():
            if key != "update" and isinstance(value, int | float):
                self._tensorboard.add_scalar(key, value, row["update"])
        self._tensorboard.flush()
        self.rows.append(finite)
        if self._live is not None:
            self._live.update(self._table())
        else:
            cells = (f"{heading} {_cell(finite, key, form)}" for key, heading, form in COLUMNS if key in finite)
            self._console.print("  ".join(cells), highlight=False, soft_wrap=True)

    def warn(self, warnings: Iterable[HealthWarning]) -> None:
        """Show the first warning of each metric; the others are in the rows."""
        for warning in warnings:
            if warning.metric not in self._warned:
                self._warned.add(warning.metric)
                self._console.print(
                    f"warning: {warning}", style="yellow", highlight=False, markup=False, soft_wrap=True
                )

    def _table(self) -> Table:
        table = Table(*(heading for _, heading, _ in COLUMNS))
        for row in self.rows[-ROWS_SHOWN:]:
            table.add_row(*(_cell(row, key, form) for key, _, form in COLUMNS))
        return table


def _cell(row: dict[str, Any], key: str, form: Callable[[float], str]) -> str:
    value = row.get(key)
    return "" if value is None else form(value)


def read_rows(run: Path) -> list[dict[str, Any]]:
    """All rows of the run's metrics.jsonl, oldest first."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def load_config(cls: type[T], run: Path) -> T:
    """The config, of class `cls`, that `run` was started with.

    Raises:
        UserError: `run` isn't the folder of such a run.
    """
    path = run / "config.json"
    if not path.is_file():
        raise UserError(f"{run} has no config.json: it isn't the folder of a run. Start a new one with --run.")
    return from_dict(cls, read_json(path))


def environment_facts(seed: int, protocol: dict[str, Any]) -> dict[str, Any]:
    """Where and with what a run was made: what somebody needs to repeat it, for environment.json."""
    commit = provenance.commit()
    return {
        "commit": commit.removesuffix("+changes"),
        "dirty": commit.endswith("+changes"),
        "versions": provenance.versions(),
        "cpu_count": os.cpu_count(),
        "platform": platform.platform(),
        "suite_protocol": protocol,
        "seed": seed,
        "command": sys.argv,
    }
