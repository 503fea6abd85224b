"""What each waste of the reference's rollout costs, alone and together: `python benchmarks/wastes.py`.

Writes docs/results/rollout_wastes.json and .md.
"""

import os
import platform
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from statistics import median

from reference import Wastes
from rollout_benchmarks import tabletop_vs_reference

from simplevla.evaluation.provenance import commit, write_atomically, write_json

RESULTS = Path(__file__).parent.parent / "docs" / "results"
REPETITIONS = 3
TITLES = {
    "new_process": "a process and an environment per episode",
    "every_image": "images after every env step",
    "feed_finished": "finished episodes fed to the policy until the horizon",
    "float_images": "observations stored as normalised float32",
}


def main() -> None:
    names = [field.name for field in fields(Wastes)]
    variants = {"the reference's schedule, with all of them": Wastes()}
    variants |= {f"without: {TITLES[name]}": Wastes(**{name: False}) for name in names}
    variants["without any of them, still in lock-step, one group at a time"] = Wastes(**dict.fromkeys(names, False))
    measured: dict[str, list[float]] = {title: [] for title in [*variants, "our engine"]}
    with ExitStack() as stack:
        sides = {title: stack.enter_context(tabletop_vs_reference(wastes)) for title, wastes in variants.items()}
        for repetition in range(REPETITIONS + 1):
            turns = {title: theirs for title, (_, theirs) in sides.items()}
            turns["our engine"] = next(iter(sides.values()))[0]
            for title, side in turns.items():
                rate = side()
                if repetition > 0:
                    measured[title].append(rate)
    base = median(measured["the reference's schedule, with all of them"])
    rows = [
        {
            "schedule": title,
            "episodes_per_s": median(rates),
            "range": [min(rates), max(rates)],
            "times": median(rates) / base,
        }
        for title, rates in measured.items()
    ]
    result = {
        "command": "python benchmarks/wastes.py",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "commit": commit(),
        "repetitions": REPETITIONS,
        "rows": rows,
    }
    write_json(RESULTS / "rollout_wastes.json", result)
    write_atomically(RESULTS / "rollout_wastes.md", page(result).encode())
    print(page(result))


def page(result: dict) -> str:
    lines = [
        "# What each waste of the reference's rollout costs",
        "",
        f"Command: `{result['command']}`. Machine: {result['machine']}. Commit {result['commit'][:12]}. `tabletop`, half-trained nano policy, groups of 8; median of "
        f"{result['repetitions']} interleaved repetitions after one unmeasured. The schedule is SPEC 6's, written anew in benchmarks/reference.py. Data: `rollout_wastes.json`.",
        "",
        "| schedule | episodes/s | lowest to highest | times the reference |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        low, high = row["range"]
        lines.append(
            f"| {row['schedule']} | {row['episodes_per_s']:.1f} | {low:.1f} to {high:.1f} | {row['times']:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
