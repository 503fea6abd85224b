"""RL on three tasks of ManiSkill with several training seeds, and how PokeCube is solved:
`python -m benchmarks.experiments.maniskill_seeds --seeds 0 1 2`, about 25 minutes a seed on two cores.

Writes docs/results/maniskill_nano.json, .md and .png. Runs that are finished in --runs are not run again.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from benchmarks.experiments import training_seeds
from benchmarks.experiments.training_seeds import RESULTS
from simplevla.report.novelty import read_novelty
from simplevla.runs import novelty_of_run
from simplevla.storage import read_json, write_atomically, write_json

RECIPE = "maniskill_nano"
POKE = "PokeCube-v1"
SIDES = ("demonstrations", "before", "after")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Where the runs go, and which training seeds."""

    runs: Path = Path("runs")
    seeds: tuple[int, ...] = (0, 1, 2)


def without_peg(run: Path) -> dict[str, list[int]]:
    """Side -> [how many, of all] solved episodes of PokeCube in which the peg is never grasped."""
    found, _ = read_novelty(run)
    found = found or novelty_of_run(run)
    rates = {}
    for side, behaviour in found.sides.items():
        poked = tuple(one for one in behaviour.solved if one.task == POKE)
        rates[side] = replace(behaviour, solved=poked).without("grasps peg")
    return {side: [rate.solved, rate.n] for side, rate in rates.items()}


def main(arguments: Arguments) -> None:
    training_seeds.main(training_seeds.Arguments(recipe=RECIPE, runs=arguments.runs, seeds=arguments.seeds))
    result = read_json(RESULTS / f"{RECIPE}.json")
    rows: list[dict[str, Any]] = [
        {**row, "without_peg": without_peg(arguments.runs / f"{RECIPE}_seed{row['seed']}" / "rl")}
        for row in result["seeds"]
    ]
    write_json(RESULTS / f"{RECIPE}.json", rows)
    command = result["command"].replace(f"training_seeds {RECIPE}", "maniskill_seeds")
    page = (RESULTS / f"{RECIPE}.md").read_text().replace(result["command"], command)
    lines = [
        "",
        "## How PokeCube is solved",
        "",
        "The task asks for a push with the peg, and its success only where the cube lies. Solved episodes in which the peg is never "
        "grasped, by [replays](../novelty.md):",
        "",
        "| seed | demonstrations | SFT | SFT + RL |",
        "|---|---|---|---|",
    ]
    for row in rows:
        lines.append(f"| {row['seed']} | {' | '.join('{}/{}'.format(*row['without_peg'][side]) for side in SIDES)} |")
    write_atomically(RESULTS / f"{RECIPE}.md", (page + "\n".join(lines) + "\n").encode())


if __name__ == "__main__":
    main(tyro.cli(Arguments))
