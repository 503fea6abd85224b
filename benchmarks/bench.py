"""What removing waste is worth: both sides of a comparison in one process tree, interleaved: `simplevla bench [NAME]`.

Prints median, lowest and highest of the repetitions and the ratio, and writes benchmarks/results/latest.json.
"""

import json
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

from simplevla.allocation import keep_freed_memory
from simplevla.evaluation.provenance import commit, write_atomically

RESULTS = Path(__file__).parent / "results" / "latest.json"

Side = Callable[[], float]
"""One measurement, in the benchmark's unit; more is better."""


@dataclass(frozen=True)
class Benchmark:
    """Two sides of a comparison."""

    unit: str
    sides: Callable[[], AbstractContextManager[tuple[Side, Side]]]
    """A context that gives ours and the other."""
    slow: bool = False
    """A repetition takes more than a minute: two of them, and no unmeasured first turn of the other side."""
    warm: bool = True
    """Ours has an unmeasured first turn."""


BENCHMARKS = {
    "rollout_tabletop_vs_reference": Benchmark("episodes/s", rollout_benchmarks.tabletop_vs_reference),
    "rollout_tabletop_vs_torchrl": Benchmark("env steps/s", rollout_benchmarks.tabletop_vs_torchrl),
    "rollout_tabletop_vs_torchrl_chunked": Benchmark("env steps/s", rollout_benchmarks.tabletop_vs_torchrl_chunked),
    "rollout_libero_stock_vs_reference": Benchmark(
        "episodes/s", rollout_benchmarks.libero_stock_vs_reference, slow=True, warm=False
    ),
    "rollout_libero_lite_fast_vs_reference": Benchmark(
        "episodes/s", rollout_benchmarks.libero_lite_fast_vs_reference, slow=True
    ),
    "simulator_utilisation_tabletop": Benchmark("env steps/s", rollout_benchmarks.tabletop_utilisation),
    "simulator_utilisation_tabletop_bfloat16": Benchmark(
        "env steps/s", rollout_benchmarks.tabletop_utilisation_bfloat16
    ),
    "simulator_utilisation_libero": Benchmark(
        "env steps/s", rollout_benchmarks.libero_utilisation, slow=True, warm=False
    ),
    "simulator_utilisation_libero_lite_fast": Benchmark(
        "env steps/s", rollout_benchmarks.libero_lite_fast_utilisation, slow=True
    ),
    "update_vs_bare": Benchmark("decisions/s", update_benchmarks.vs_bare),
    "update_vs_padded": Benchmark("episodes/s", update_benchmarks.vs_padded),
    "bytes_per_decision_vs_reference": Benchmark("decisions/MB", update_benchmarks.bytes_per_decision),
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure one benchmark, or all of them."""

    name: tyro.conf.Positional[str] = ""
    repetitions: int = 3
    """Slow ones have two at most."""


def measure(name: str, repetitions: int) -> dict:
    """Interleave the two sides, after one unmeasured turn of each."""
    benchmark = BENCHMARKS[name]
    if benchmark.slow:
        repetitions = min(repetitions, 2)
    ours: list[float] = []
    theirs: list[float] = []
    with benchmark.sides() as (our_side, their_side):
        if benchmark.warm:
            our_side()
        if not benchmark.slow:
            their_side()
        for _ in range(repetitions):
            ours.append(our_side())
            theirs.append(their_side())
    return {
        "name": name,
        "ours": median(ours),
        "theirs": median(theirs),
        "ratio": median(ours) / median(theirs),
        "unit": benchmark.unit,
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
    keep_freed_memory()
    known = {row["name"]: row for row in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    table = Table("benchmark", "ours", "theirs", "ratio", "unit", title="median (lowest to highest)")
    for number, name in enumerate(names, start=1):
        print(f"{number} of {len(names)}: {name}", flush=True)
        row = known[name] = measure(name, arguments.repetitions)
        cells = (
            f"{row[side]:.4g} ({row[f'{side}_range'][0]:.4g} to {row[f'{side}_range'][1]:.4g})"
            for side in ("ours", "theirs")
        )
        table.add_row(name, *cells, f"{row['ratio']:.2f}", row["unit"])
        rows = [known[each] for each in BENCHMARKS if each in known]
        write_atomically(RESULTS, json.dumps(rows, indent=1).encode())
    Console(width=140).print(table)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
