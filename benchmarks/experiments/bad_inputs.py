"""Gives simplevla more than a thousand bad inputs: each must end well or with one line, within ten seconds.

    PYTHONPATH=tests python -m benchmarks.experiments.bad_inputs [--seed 0] [--count 1200]

Some are written by hand (bad_input_changes.py), the others are made from valid files by chance. They run in child processes, one
after another, so that one that hangs is one that hangs.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

SECONDS = 10.0
MEMORY = 24 * 2**30
"""Bytes of addresses; what needs more is an error of memory, and counts as a traceback."""
START_S = 120.0
"""A child process imports everything and makes the valid files."""
COUNT = 1200
OFFENDERS = 20


class Inputs:
    """Bad inputs by number, made in `work` from valid folders that are made once."""

    def __init__(self, seed: int, work: Path) -> None:
        from benchmarks.experiments.bad_input_kinds import KINDS

        self._seed, self._work = seed, work
        self._kinds = KINDS
        (work / "valid").mkdir()
        for name, kind in KINDS.items():
            kind.make(work / "valid" / name)

    def check_valid(self) -> None:
        """Let each kind be read unchanged, so that it isn't refused for another reason than the change."""
        for name, kind in self._kinds.items():
            if name != "arguments":
                folder = self._work / "valid" / name
                with _quiet(self._work):
                    kind.use(shutil.copytree(folder, self._work / "unchanged" / name.replace(" ", "_")))

    def attempt(self, number: int) -> tuple[str, str]:
        """(what was tried, the traceback of what no user may see, or nothing)."""
        from benchmarks.experiments.bad_input_changes import WRITTEN, change_arguments, change_file
        from simplevla.errors import UserError

        chance = random.Random(f"{self._seed} {number}")
        written = number < len(WRITTEN)
        name = WRITTEN[number][0] if written else list(self._kinds)[number % len(self._kinds)]
        folder = self._work / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._work / "valid" / name, folder)
        what = f"{number}, {name}"
        if written:
            WRITTEN[number][1](folder)
        elif name == "arguments":
            change_arguments(folder, chance)
        else:
            files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
            # The small ones say what the others are.
            files += [path for path in files if path.suffix in (".json", ".jsonl", ".pkl", ".parquet")] * 3
            file = chance.choice(files)
            what += f", {file.relative_to(folder)}"
            change_file(file, chance)
        try:
            with _quiet(self._work):
                self._kinds[name].use(folder)
        except (UserError, OSError):
            pass
        except BaseException:
            return what, traceback.format_exc()
        return what, ""


@contextlib.contextmanager
def _quiet(work: Path) -> Iterator[None]:
    """Shows nothing, but what a command's traceback was, and keeps what commands write in `work`."""
    with contextlib.chdir(work), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            try:
                yield
            except Exception as error:
                if "Traceback" in said.getvalue():
                    error.add_note(said.getvalue())
                raise


def _child(seed: int, first: int, count: int, work: str, reports: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.setrecursionlimit(1000)
    inputs = Inputs(seed, Path(work))
    if first == 0:
        inputs.check_valid()
    reports.send(None)
    for number in range(first, count):
        reports.send((number, *inputs.attempt(number)))


def campaign(seed: int, count: int = COUNT) -> dict[str, Any]:
    """Numbers of bad inputs, of tracebacks and of hangs, and the first of these."""
    tracebacks, hangs, offenders, first = 0, 0, [], 0
    context = multiprocessing.get_context("spawn")
    while first < count:
        with tempfile.TemporaryDirectory(prefix="bad_inputs_") as work:
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(seed, first, count, work, theirs), daemon=True)
            process.start()
            theirs.close()
            limit = START_S
            while first < count:
                died = False
                try:
                    report = mine.recv() if mine.poll(limit) else "hang"
                except EOFError:
                    report, died = "hang", True
                if report == "hang":
                    assert limit == SECONDS, "a child process could not begin"
                    process.kill()
                    process.join()
                    tracebacks, hangs = tracebacks + died, hangs + (not died)
                    how = f"the process ended with {process.exitcode}" if died else f"more than {SECONDS:.0f} s"
                    offenders.append(f"{first}: {how}")
                    first += 1
                    break
                limit = SECONDS
                if report is not None:
                    number, what, trace = report
                    first = number + 1
                    if trace:
                        tracebacks += 1
                        offenders.append(f"{what}:\n{trace}")
            process.kill()
            process.join()
    return {"bad_inputs": count, "tracebacks": tracebacks, "hangs": hangs, "offenders": offenders[:OFFENDERS]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=COUNT)
    parsed = parser.parse_args()
    started = time.monotonic()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = campaign(parsed.seed, parsed.count)
    print("\n\n".join(found.pop("offenders")))
    print(json.dumps(found), f"in {time.monotonic() - started:.0f} s")
