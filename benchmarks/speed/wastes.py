"""What each waste of the reference costs, alone and together: `python -m benchmarks.speed.wastes`, about four minutes.

Writes docs/results/wastes.json and .md.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from statistics import median

from benchmarks.speed.rollout_benchmarks import tabletop_vs_reference
from benchmarks.speed.update_benchmarks import vs_padded
from benchmarks.support.machine import this_machine
from benchmarks.support.reference import UpdateWastes, Wastes
from simplevla.evaluation.provenance import commit
from simplevla.storage import write_atomically, write_json

RESULTS = Path(__file__).parents[2] / "docs" / "results"
REPETITIONS = 3
ROLLOUT_TITLES = {
    "new_process": "a process and an environment per episode",
    "every_image": "images after every env step",
    "feed_finished": "finished episodes fed to the policy until the horizon",
    "float_images": "observations stored as normalised float32",
}
UPDATE_TITLES = {
    "padding": "padding to the horizon",
    "score_again": "old log-probabilities computed again",
    "score_dropped": "those of groups without signal too",
}
ALL = "the reference's schedule, with all of them"
OURS = "ours"


def main() -> None:
    result = {
        "command": "python -m benchmarks.speed.wastes",
        "machine": this_machine(),
        "commit": commit(),
        "repetitions": REPETITIONS,
        "rollouts": ablate(
            Wastes, ROLLOUT_TITLES, tabletop_vs_reference, "without any of them: lock-step, one group at a time"
        ),
        "updates": ablate(UpdateWastes, UPDATE_TITLES, vs_padded, "without any of them: whole episodes"),
    }
    write_json(RESULTS / "wastes.json", result)
    write_atomically(RESULTS / "wastes.md", page(result).encode())
    print(page(result))


def ablate(switches: type, titles: dict[str, str], sides_of: Callable, none: str) -> list[dict]:
    """Episodes/s of the reference with all wastes, without each one, without any, and of ours; turns interleaved."""
    names = [field.name for field in fields(switches)]
    variants = {ALL: switches()}
    variants |= {f"without: {titles[name]}": switches(**{name: False}) for name in names}
    variants[none] = switches(**dict.fromkeys(names, False))
    measured: dict[str, list[float]] = {title: [] for title in [*variants, OURS]}
    with ExitStack() as stack:
        sides = {title: stack.enter_context(sides_of(wastes)) for title, wastes in variants.items()}
        for repetition in range(REPETITIONS + 1):
            turns = {title: theirs for title, (_, theirs) in sides.items()} | {OURS: sides[ALL][0]}
            for title, side in turns.items():
                rate = side()
                if repetition > 0:
                    measured[title].append(rate)
    base = median(measured[ALL])
    return [
        {
            "schedule": title,
            "episodes_per_s": median(rates),
            "range": [min(rates), max(rates)],
            "times": median(rates) / base,
        }
        for title, rates in measured.items()
    ]


def page(result: dict) -> str:
    return f"""# What each waste of the reference costs

Our rollouts are {result["rollouts"][-1]["times"]:.1f} times as fast as the reference's schedule and our updates {result["updates"][-1]["times"]:.1f} times.

## Rollouts

{table(result["rollouts"])}

## Updates

Episodes that train, per second.

{table(result["updates"])}

## How it was measured

- Command: `{result["command"]}`. Machine: {result["machine"]}. Commit {result["commit"]}. Data: `wastes.json`.
- `tabletop`, half-trained nano policy, groups of 8. Medians of {result["repetitions"]} interleaved repetitions, after one that isn't measured.
- The reference's schedule is that of SimpleVLA-RL's public code, written anew in benchmarks/support/reference.py.
"""


def table(rows: list[dict]) -> str:
    lines = ["| schedule | episodes/s | lowest to highest | times the reference |", "|---|---|---|---|"]
    for row in rows:
        low, high = row["range"]
        lines.append(
            f"| {row['schedule']} | {row['episodes_per_s']:.1f} | {low:.1f} to {high:.1f} | {row['times']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
