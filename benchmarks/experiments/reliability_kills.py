"""Kills commands at any moment, lets the same command go on, and compares the end with the uninterrupted one."""

import json
import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments.reliability_commands import (
    BY_THE_CLOCK,
    Case,
    Commands,
    cases,
    differences,
    end_of,
    leftovers,
    prepare,
    remove,
)
from benchmarks.experiments.reliability_tally import Tally

NEW_PROCESSES = 2
"""Kills of each command in a process of its own, imports included."""
COMMANDS = ("demos", "sft", "train", "continual", "demo")
SEED = 15


@dataclass(frozen=True)
class Reference:
    """The uninterrupted run of a case."""

    end: dict[str, str]
    seconds: float
    operations: int
    """On files."""
    before_checkpoint: int


def reference(commands: Commands, case: Case, folder: Path) -> Reference:
    """Runs a case twice, so that what differs by itself would be seen."""
    ends = []
    for _ in range(2):
        remove(folder)
        started = time.monotonic()
        count = commands.work / "count"
        ended = commands.run(case.command(folder), under=str(folder), count=str(count), **case.order)
        assert ended.code == 0, f"{case.name} can't even run: {ended.errors}"
        ends.append((end_of(folder), time.monotonic() - started))
    assert ends[0][0] == ends[1][0], f"two runs of {case.name} differ in {differences(ends[0][0], ends[1][0])}"
    counts = json.loads(count.read_text())
    return Reference(ends[1][0], ends[1][1], counts["all"], counts["before_checkpoint"] or counts["all"])


def finish(
    commands: Commands,
    case: Case,
    folder: Path,
    expected: dict[str, str],
    tally: Tally,
    ignored: re.Pattern[str] = BY_THE_CLOCK,
) -> list[str]:
    """Go on with what a killed or failed command left; the problems, counted where they are losses."""
    ended = commands.run(case.command(folder), **case.order)
    problems = tally.look_at(ended)
    if ended.code != 0:
        tally.results_lost += 1
        return [*problems, f"doesn't go on (exit code {ended.code}): {ended.last}"]
    if wrong := differences(end_of(folder, ignored), expected):
        tally.results_lost += 1
        problems.append(f"ends otherwise: {', '.join(wrong[:5])}")
    if left := leftovers(folder):
        tally.left_behind += len(left)
        problems.append(f"leaves {', '.join(left[:5])}")
    return problems


def moments(case: Case, straight: Reference, points: int, rng: random.Random) -> Iterator[tuple[str, dict[str, Any]]]:
    """`points` random moments, and each file operation up to the first checkpoint; `continual` and `demo` have several
    stages, so there `points` later operations too, spread evenly."""
    for _ in range(points):
        yield "random moment", {"kill_after_s": rng.uniform(0, straight.seconds)}
    first, last = straight.before_checkpoint, straight.operations
    later = np.linspace(first + 1, last, points).round() if case.name in ("continual", "demo") else []
    for number in [*range(1, first + 1), *later]:
        yield "file operation", {"kill_at": int(number)}


def kills(work: Path, command: str, points: int) -> Tally:
    """Kills of a command: `points` at random moments, one before each file operation to the first checkpoint, and a few
    of new processes."""
    tally, rng = Tally(), random.Random(f"{SEED} {command}")
    with Commands(work) as commands:
        case = next(case for case in cases(*prepare(commands, work)) if case.name == command)
        folder = work / "killed" / "run"
        folder.parent.mkdir(parents=True)
        straight = reference(commands, case, folder)
        print(
            f"{straight.seconds:.1f} s, {straight.operations} operations on files, {straight.before_checkpoint} to the first "
            "checkpoint",
            flush=True,
        )
        for kind, when in moments(case, straight, points, rng):
            remove(folder)
            killed = commands.run(case.command(folder), under=str(folder), **when, **case.order)
            problems = tally.look_at(killed)
            problems += finish(commands, case, folder, straight.end, tally)
            tally.add(kind, [f"{when}", *problems] if problems else [])
        for _ in range(NEW_PROCESSES if not case.order else 0):
            remove(folder)
            seconds = rng.uniform(1, 8 + straight.seconds)
            problems = tally.look_at(commands.run_new(case.command(folder), seconds))
            problems += finish(commands, case, folder, straight.end, tally)
            tally.add("new process", [f"after {seconds:.1f} s", *problems] if problems else [])
    return tally
