"""What removing waste is worth: both sides of a comparison in one process tree, interleaved: `simplevla bench [NAME]`.

Prints median, lowest and highest of the repetitions and the ratio, and writes benchmarks/results/latest.json.
"""

import os
import platform
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

import rollout_benchmarks
import update_benchmarks

from simplevla.evaluation.provenance import commit, read_json, write_json

RESULTS = Path(__file__).parent / "results" / "latest.json"

Side = Callable[[], float]
"""One measurement, in the benchmark's unit; more is better."""

BENCHMARKS: dict[str, tuple[str, Callable[[], AbstractContextManager[tuple[Side, Side]]]]] = {
    "rollout_tabletop_vs_reference": ("episodes/s", rollout_benchmarks.tabletop_vs_reference),
    "simulator_utilisation_tabletop": ("env steps/s", rollout_benchmarks.tabletop_utilisation),
    "update_vs_bare": ("decisions/s", update_benchmarks.vs_bare),
    "update_vs_padded": ("episodes/s", update_benchmarks.vs_padded),
    "bytes_per_decision_vs_reference": ("decisions/MB", update_benchmarks.bytes_per_decision),
}
"""Name -> (unit, a context that gives our side and the other)."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure one benchmark, or all of them."""

    name: tyro.conf.Positional[str] = ""
    repetitions: int = 3


def measure(name: str, repetitions: int) -> dict:
    """Interleave the two sides, after one unmeasured turn of each."""
    unit, sides = BENCHMARKS[name]
    ours: list[float] = []
    theirs: list[float] = []
    with sides() as (our_side, their_side):
        our_side(), their_side()
        for _ in range(repetitions):
            ours.append(our_side())
            theirs.append(their_side())
    return {
        "name": name,
        "ours": median(ours),
        "theirs": median(theirs),
        "ratio": median(ours) / median(theirs),
        "unit": unit,
        "repetitions": repetitions,
        "ours_range": [min(ours), max(ours)],
        "theirs_range": [min(theirs), max(theirs)],
        "commit": commit(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
    }


def main(arguments: Arguments) -> None:
    names = [arguments.name] if arguments.name else list(BENCHMARKS)
    if unknown := set(names) - set(BENCHMARKS):
        raise SystemExit(f"error: unknown benchmark {unknown}; there are: {', '.join(BENCHMARKS)}")
    known = {row["name"]: row for row in read_json(RESULTS)["benchmarks"]} if RESULTS.exists() else {}
    table = Table("benchmark", "ours", "theirs", "ratio", "unit", title="median (lowest to highest)")
    for name in names:
        row = known[name] = measure(name, arguments.repetitions)
        cells = (
            f"{row[side]:.4g} ({row[f'{side}_range'][0]:.4g} to {row[f'{side}_range'][1]:.4g})"
            for side in ("ours", "theirs")
        )
        table.add_row(name, *cells, f"{row['ratio']:.2f}", row["unit"])
        write_json(RESULTS, {"benchmarks": [known[each] for each in BENCHMARKS if each in known]})
    Console(width=120).print(table)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
