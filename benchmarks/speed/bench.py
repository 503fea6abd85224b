"""What removing waste is worth: both sides of a comparison in one process tree, interleaved: `simplevla bench [NAME]`.

Prints median, lowest and highest of the repetitions and the ratio, and writes docs/results/performance.json and
docs/results/performance.md.
"""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.speed import rollout_benchmarks, sft_benchmarks, update_benchmarks
from benchmarks.support.machine import this_machine
from simplevla.evaluation.provenance import commit
from simplevla.storage import write_atomically

PAGE = Path(__file__).parents[2] / "docs" / "results" / "performance.md"
RESULTS = PAGE.with_suffix(".json")

Side = Callable[[], float]
"""One measurement, in the benchmark's unit; more is better."""


@dataclass(frozen=True)
class Benchmark:
    """Two sides of a comparison."""

    unit: str
    sides: Callable[[], AbstractContextManager[tuple[Side, Side]]]
    """A context that gives ours and the other."""
    slow: bool = False
    """A repetition takes more than a minute: two of them unless told otherwise, and no unmeasured first turn of the other side."""
    warm: bool = True
    """Ours has an unmeasured first turn."""
    extra: bool = False
    """Measured only where it is named, so that all the others take less than 20 minutes."""
    wanted: float = 0.0
    """The ratio that we set ourselves; 0 where there is none."""
    note: str = ""
    """What the two sides are."""


REFERENCE = "ours against the reference's schedule (benchmarks/support/reference.py)"
BENCHMARKS = {
    "rollout_tabletop_vs_reference": Benchmark(
        "episodes/s", rollout_benchmarks.tabletop_vs_reference, wanted=10, note=REFERENCE
    ),
    "rollout_tabletop_vs_torchrl": Benchmark(
        "env steps/s",
        rollout_benchmarks.tabletop_vs_torchrl,
        wanted=3,
        note="TorchRL's Collector, ParallelEnv of 16, chunks through MultiAction as in its own recipe, an image per env step",
    ),
    "rollout_tabletop_vs_torchrl_chunked": Benchmark(
        "env steps/s",
        rollout_benchmarks.tabletop_vs_torchrl_chunked,
        extra=True,
        note="the same with chunks executed by our environment, an image per chunk: no recipe of TorchRL's does that",
    ),
    "rollout_libero_stock_vs_reference": Benchmark(
        "episodes/s",
        rollout_benchmarks.libero_stock_vs_reference,
        slow=True,
        warm=False,
        wanted=8,
        note=f"stock visuals and stepping, 64 px; {REFERENCE}, which drives LIBERO's own OffScreenRenderEnv",
    ),
    "rollout_libero_lite_fast_vs_reference": Benchmark(
        "episodes/s",
        rollout_benchmarks.libero_lite_fast_vs_reference,
        slow=True,
        note="ours with `lite` visuals and `fast` stepping; theirs as above, stock",
    ),
    "simulator_utilisation_tabletop": Benchmark(
        "env steps/s",
        rollout_benchmarks.tabletop_utilisation,
        wanted=0.75,
        note="ours against as many processes that do again what our workers did, without a policy to wait for",
    ),
    "simulator_utilisation_tabletop_bfloat16": Benchmark(
        "env steps/s",
        rollout_benchmarks.tabletop_utilisation_bfloat16,
        extra=True,
        wanted=0.75,
        note="the same with rollout.bfloat16",
    ),
    "simulator_utilisation_libero": Benchmark(
        "env steps/s", rollout_benchmarks.libero_utilisation, slow=True, wanted=0.9, note="stock"
    ),
    "simulator_utilisation_libero_lite_fast": Benchmark(
        "env steps/s",
        rollout_benchmarks.libero_lite_fast_utilisation,
        slow=True,
        extra=True,
        wanted=0.9,
        note="lite and fast",
    ),
    "simulator_utilisation_maniskill": Benchmark(
        "env steps/s", rollout_benchmarks.maniskill_utilisation, slow=True, extra=True, wanted=0.9, note="stock"
    ),
    "simulator_utilisation_maniskill_lite": Benchmark(
        "env steps/s", rollout_benchmarks.maniskill_lite_utilisation, extra=True, note="lite"
    ),
    "update_vs_bare": Benchmark(
        "decisions/s",
        update_benchmarks.vs_bare,
        wanted=0.9,
        note="ours against forward and backward over the same valid decisions, ready in memory",
    ),
    "update_vs_padded": Benchmark(
        "episodes/s",
        update_benchmarks.vs_padded,
        wanted=2.5,
        note="ours against the reference's: padded, log-probabilities again, for groups without signal too",
    ),
    "sft_vs_bare": Benchmark(
        "batches/s",
        sft_benchmarks.vs_bare,
        wanted=0.95,
        note="ours against forward, backward, clipping and step over batches that are ready in memory",
    ),
    "sft_streaming_vs_memory": Benchmark(
        "batches/s",
        sft_benchmarks.streaming_vs_memory,
        note="pictures decoded by a worker process while the policy trains, against all of them decoded before",
    ),
    "bytes_per_decision_vs_reference": Benchmark(
        "decisions/MB",
        update_benchmarks.bytes_per_decision,
        wanted=10,
        note="valid decisions stored per megabyte; theirs are padded, images twice normalised in float32 (4 x 2 x padding)",
    ),
}


FINDINGS = {
    "rollout_tabletop_vs_reference": "rollouts on `tabletop`",
    "rollout_libero_stock_vs_reference": "rollouts on LIBERO",
    "update_vs_padded": "updates",
}
"""Rows that the page's first sentence names."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure one benchmark, or all that are not extra."""

    name: tyro.conf.Positional[str] = ""
    """One of the benchmarks; without it, all that are not extra."""
    repetitions: int | None = None
    """Of every side; 3, of slow ones 2, where nothing is said."""


def measure(name: str, repetitions: int | None) -> dict:
    """Interleave the two sides, after one unmeasured turn of each."""
    benchmark = BENCHMARKS[name]
    repetitions = repetitions or (2 if benchmark.slow else 3)
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
        "machine": this_machine(),
    }


def main(arguments: Arguments) -> None:
    names = [arguments.name] if arguments.name else [name for name, one in BENCHMARKS.items() if not one.extra]
    if unknown := set(names) - set(BENCHMARKS):
        raise SystemExit(f"error: unknown benchmark {unknown}; there are: {', '.join(BENCHMARKS)}")
    known = {row["name"]: row for row in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    table = Table("benchmark", "ours", "theirs", "ratio", "unit", title="median (lowest to highest)")
    for number, name in enumerate(names, start=1):
        print(f"{number} of {len(names)}: {name}", flush=True)
        row = known[name] = measure(name, arguments.repetitions)
        table.add_row(name, *both_sides(row), f"{row['ratio']:.2f}", row["unit"])
        rows = [known[each] for each in BENCHMARKS if each in known]
        write_atomically(RESULTS, json.dumps(rows, indent=1).encode())
    write_atomically(PAGE, page(rows).encode())
    Console(width=140).print(table)


def both_sides(row: dict) -> list[str]:
    """Median (lowest to highest) of ours and of theirs."""
    return [
        f"{row[side]:.4g} ({row[f'{side}_range'][0]:.4g} to {row[f'{side}_range'][1]:.4g})"
        for side in ("ours", "theirs")
    ]


def page(rows: list[dict]) -> str:
    ratios = {row["name"]: row["ratio"] for row in rows}
    found = ", ".join(f"{what} {ratios[name]:.1f} times as fast" for name, what in FINDINGS.items() if name in ratios)
    lines, conditions = [], []
    for row in rows:
        benchmark = BENCHMARKS[row["name"]]
        wanted = f"{benchmark.wanted:g}" if benchmark.wanted else ""
        lines.append(f"| {row['name']} | {' | '.join(both_sides(row))} | {row['unit']} | **{row['ratio']:.2f}** |")
        conditions.append(
            f"| {row['name']} | {benchmark.note} | {wanted} | {row['repetitions']} | {row['commit'][:12]} |"
        )
    return f"""# Side by side

Compared with the reference's schedule on the same two cores: {found}.

| benchmark | ours | theirs | unit | ratio |
|---|---|---|---|---|
{chr(10).join(lines)}

Medians, lowest and highest in brackets. What each row compares, and the ratio that we want:

| benchmark | what is compared | wanted | repetitions | commit |
|---|---|---|---|---|
{chr(10).join(conditions)}

- Command: `simplevla bench`, or `simplevla bench NAME` for one row. Machine: {rows[0]["machine"]}.
- Both sides of a row ran in one process tree, in turns. Data: `performance.json`.
- The policy is the half-trained nano policy (benchmarks/support/half_trained.py). LIBERO is libero_object.
- [What the figures mean](../performance.md). [What each removed waste is worth](wastes.md). [Curves](scaling.md).
"""


if __name__ == "__main__":
    main(tyro.cli(Arguments, prog="simplevla bench"))
