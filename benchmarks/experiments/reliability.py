"""Breaks simplevla's commands in every way that people met, and records how many were survived.

    MUJOCO_GL=egl PYTHONPATH=tests python -m benchmarks.experiments.reliability [--parts kills workers disk inputs soak] [--kill-points 12] [--soak-minutes 60]

Parts may be run one by one: each replaces its own in docs/results/reliability.json, and the page beside it is written anew.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.experiments.bad_inputs import campaign
from benchmarks.experiments.reliability_disk import full_disk
from benchmarks.experiments.reliability_kills import COMMANDS, SEED, kills
from benchmarks.experiments.reliability_page import page
from benchmarks.experiments.reliability_soak import soak
from benchmarks.experiments.reliability_tally import Tally
from benchmarks.experiments.reliability_workers import worker_faults
from benchmarks.support.machine import this_machine
from simplevla.evaluation.provenance import commit
from simplevla.storage import write_json

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "reliability.json"
SHARED_MEMORY = Path("/dev/shm")


def in_memory() -> set[str]:
    """Names in shared memory."""
    return {path.name for path in SHARED_MEMORY.iterdir()} if SHARED_MEMORY.is_dir() else set()


def run_part(part: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """A part's record, with what it left in shared memory."""
    before, started = in_memory(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="reliability_") as work:
        record = part(Path(work))
    left = sorted(in_memory() - before)
    record["left_behind"] = record.get("left_behind", 0) + len(left)
    if left:
        record["left_in_shared_memory"] = left[:20]
    command = shlex.join(["PYTHONPATH=tests", "python", "-m", "benchmarks.experiments.reliability", *sys.argv[1:]])
    return {**record, "minutes": (time.monotonic() - started) / 60, "command": command, "commit": commit()}


def counted(part: Callable[[Path], Tally]) -> Callable[[Path], dict[str, Any]]:
    return lambda work: asdict(part(work))


def bad_inputs(_: Path) -> dict[str, Any]:
    """The campaign of `bad_inputs.py`; of what it found the input and the last line, without this machine's paths."""
    found = campaign(SEED)
    offenders = [one.strip().splitlines() for one in found.pop("offenders")]
    return {**found, "failures": [f"{lines[0]} {lines[-1]}" for lines in offenders]}


def totals(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The numbers of all parts together; null where a part hasn't been run."""

    def of(part: str, key: str) -> Any:
        return parts.get(part, {}).get(key)

    def total(key: str, start: str = "") -> int:
        return sum(record.get(key, 0) for name, record in parts.items() if name.startswith(start))

    return {
        "kill_points": total("tried", "kills"),
        "kill_survived": total("survived", "kills"),
        "worker_faults": of("workers", "tried"),
        "worker_survived": of("workers", "survived"),
        "full_disk": of("disk", "tried"),
        "full_disk_survived": of("disk", "survived"),
        "bad_inputs": of("inputs", "bad_inputs"),
        "tracebacks": total("tracebacks"),
        "hangs": total("hangs"),
        "results_lost": total("results_lost"),
        "left_behind": total("left_behind"),
    }


def main() -> None:
    def killed(command: str) -> Callable[[Path], Tally]:
        return lambda work: kills(work, command, arguments.kill_points)

    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        **{f"kills-{command}": counted(killed(command)) for command in COMMANDS},
        "workers": counted(worker_faults),
        "disk": counted(full_disk),
        "inputs": bad_inputs,
        "soak": lambda work: soak(work, arguments.soak_minutes),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", choices=["kills", *parts], default=list(parts), help="kills: of each command"
    )
    parser.add_argument("--kill-points", type=int, default=12, help="kills of each command at random moments")
    parser.add_argument("--soak-minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the .json; the page is the .md beside it")
    arguments = parser.parse_args()
    records = json.loads(arguments.out.read_text())["parts"] if arguments.out.exists() else {}
    for name in [part for asked in arguments.parts for part in parts if part == asked or asked == part.split("-")[0]]:
        print(f"== {name}", flush=True)
        records[name] = run_part(parts[name])
        print({key: value for key, value in totals(records).items() if value is not None}, flush=True)
        about = {"machine": this_machine(), "seed": SEED, "commit": commit()}
        result = {**totals(records), **about, "parts": {name: records[name] for name in parts if name in records}}
        write_json(arguments.out, result)
        arguments.out.with_suffix(".md").write_text(page(result))


if __name__ == "__main__":
    main()
