"""The folder of a run: who may begin one, who may go on with it, and what a failed start leaves behind."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Ge

from simplevla.checked import Count, NotNegative, dataclass, from_dict, part
from simplevla.config import OptimizerConfig, to_dict
from simplevla.errors import UserError
from simplevla.record import RUN_LOG, begin_records, recorded
from simplevla.storage import LOCK, FolderLock, is_leftover, read_as, read_json, remove_leftovers, write_json
from simplevla.training import tracking
from simplevla.training.checkpoint import Checkpoint, load_latest
from simplevla.training.runlog import METRICS, Environment, read_rows

T = TypeVar("T")

CONFIG = "config.json"
"""The first file of a run: without it a folder holds none."""
OWN_SETTING = {"train": "updates", "sft": "dataset", "continual": "structure"}
"""Command -> a setting that no other command's runs have."""
START = {LOCK, CONFIG, RUN_LOG, "environment.json", METRICS, "tensorboard", tracking.FILE, "wandb"}
"""All that a run has before it has learned anything."""


@dataclass(kw_only=True)
class Progress:
    """The counters that a checkpoint carries on."""

    update: int = 0
    episodes: int = 0
    env_steps: int = 0
    elapsed_s: float = 0.0


@part(frozen=True, kw_only=True)
class RunState:
    """The part of a checkpoint's `state.json` that every run has."""

    update: Count
    metrics_bytes: Annotated[int, Ge(0)]


@part(frozen=True, kw_only=True)
class TrainState(RunState):
    """The part that an RL run has."""

    optimizer_steps: Count
    progress: Progress
    sampler: dict[str, int | list[tuple[NotNegative, NotNegative]]]


@contextlib.contextmanager
def open_run(run: Path, resume: bool, command: str) -> Iterator[FolderLock]:
    """Holds the folder of a run, a new one or, with `resume`, an old one; removes what killed processes left.

    Where a new run fails before it has learned anything, its folder is removed, so that the same command can be given
    again.

    Raises:
        UserError: a new run's folder holds something, a resumed one holds no run, or another process is in it.
    """
    if resume:
        _require_run(run)
    else:
        _require_unused(run, command)
    existed = run.is_dir()
    with FolderLock(run) as lock, recorded(run):
        if not resume:
            # Again, since another process may have used it and ended.
            _require_unused(run, command)
        remove_leftovers(run)
        try:
            yield lock
        except Exception:
            if not resume and _learned_nothing(run):
                for path in run.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                if not existed:
                    run.rmdir()
            raise


def write_config(run: Path, config: Any) -> None:
    """Writes config.json, which makes the folder `run` one of a run, and lets its run.log begin."""
    write_json(run / CONFIG, to_dict(config))
    begin_records()


def load_config(cls: type[T], run: Path) -> T:
    """The config, of class `cls`, that `run` was started with.

    Raises:
        UserError: `run` isn't the folder of such a run.
    """
    _require_run(run)
    found = read_json(run / CONFIG)
    if "architecture" in found:
        raise UserError(f"{run} is the folder of a policy, expected one of a run, such as {run.parent}")
    settings = {setting.name for setting in fields(cls)}  # type: ignore[arg-type]
    expected = next(command for command, setting in OWN_SETTING.items() if setting in settings)
    kind = next((command for command, setting in OWN_SETTING.items() if setting in found), expected)
    if kind != expected and OWN_SETTING[expected] not in found:
        raise UserError(
            f"{run} is a run of `{kind}`, expected one of `{expected}`; it goes on by: simplevla {kind} --resume {run}"
        )
    return from_dict(cls, found, source=str(run / CONFIG))


def require_same(run: Path, config: T, extending: Mapping[str, str] = {}) -> T:
    """The config that `run` goes on with, if `config` is the run's own but for keys of `extending`.

    A learning rate that isn't given is the run's.

    Args:
        extending: keys that may change, and for each why it might not; empty if it always may.

    Raises:
        UserError: naming each setting that differs.
    """
    before = load_config(type(config), run)
    if isinstance(optimizer := getattr(config, "optimizer", None), OptimizerConfig) and optimizer.lr is None:
        config = replace(config, optimizer=replace(optimizer, lr=before.optimizer.lr))  # type: ignore[type-var, attr-defined]
    got, expected = _flatten(to_dict(config)), _flatten(to_dict(before))
    differing = [key for key in expected if got.get(key) != expected[key] and extending.get(key) != ""]
    if differing:
        pairs = "; ".join(
            f"{key} is {got.get(key)!r}, the run has {expected[key]!r}{extending.get(key, '')}" for key in differing
        )
        raise UserError(
            f"{run} was started with another config: {pairs}. Resume without these flags, or use another --run."
        )
    return config


def newest_checkpoint(run: Path, key: str, every: int) -> Checkpoint | None:
    """The checkpoint that `run` goes on from, if its history is whole; None if it was stopped before its first one.

    Args:
        key: what metrics.jsonl counts by, such as `update`.
        every: the `key` of the first checkpoint.

    Raises:
        UserError: metrics.jsonl or the checkpoints are missing, with what going on would lose.
    """
    checkpoint = load_latest(run / "checkpoints")
    if checkpoint is not None:
        kind = TrainState if key == "update" else RunState
        from_dict(kind, checkpoint.state, source=str(checkpoint.folder / "state.json"))
    history = run / METRICS
    length = history.stat().st_size if history.is_file() else 0
    if checkpoint is not None:
        expected = checkpoint.state["metrics_bytes"]
        if length < expected:
            what = f"has {length} bytes" if history.is_file() else "is missing"
            raise UserError(
                f"{history} {what}; {checkpoint.folder.name} was written when it had {expected}, and going on would lose this "
                f"history. Put the file back, or start a new run from {checkpoint.policy} with --policy"
            )
        return checkpoint
    rows = read_rows(run) if length else []
    done = max((int(row[key]) for row in rows), default=0)
    finished = (run / "policy").exists() and not (run / "stopped.json").exists()
    if done > every or (finished and (done > 0 or not history.is_file())):
        raise UserError(
            f"{run / 'checkpoints'} holds no checkpoint, though {key} {done} was reached: going on would start again and lose "
            f"the {len(rows)} rows of {METRICS}. Put the checkpoints back, or start a new run with --run"
        )
    return None


def record_facts(run: Path, facts: dict[str, Any], done: int) -> None:
    """Writes `facts` to environment.json: as the run's own at its beginning, later to the list of its resumptions."""
    file = run / "environment.json"
    if file.exists():
        earlier = read_as(file, Environment).resumed
        write_json(file, {**read_json(file), "resumed": [*earlier, {**facts, "after_update": done}]})
    else:
        write_json(file, {**facts, "resumed": []})


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        # As JSON has it: a tuple comes back as a list.
        flat |= _flatten(value, f"{name}.") if isinstance(value, dict) else {name: _plain(value)}
    return flat


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _require_run(run: Path) -> None:
    if not (run / CONFIG).is_file():
        raise UserError(
            f"{run} has no {CONFIG}: it isn't the folder of a run. Expected one that --run made, as runs/NAME"
        )


def _require_unused(run: Path, command: str) -> None:
    if not run.exists():
        return
    if not run.is_dir():
        raise UserError(f"{run} exists already and is a file; give another --run")
    held = sorted(path.name for path in run.iterdir() if not is_leftover(path))
    if CONFIG in held:
        raise UserError(
            f"{run} exists already; give another --run, or go on with it: simplevla {command} --resume {run}"
        )
    if held:
        raise UserError(f"{run} exists already and holds {', '.join(held[:3])}, not a run; give another --run")


def _learned_nothing(run: Path) -> bool:
    names = {path.name for path in run.iterdir()} if run.is_dir() else None
    history = run / METRICS
    return names is not None and names <= START and (not history.exists() or history.stat().st_size == 0)
