"""Structures of continual training side by side: `python -m benchmarks.experiments.continual tabletop_continual --base 'runs/tabletop_nano_seed{seed}/sft/policy'`.

Every structure, order and seed is one run of `simplevla continual`; interrupted ones go on. Writes docs/results/RECIPE.json after each run,
and .md and .png at the end. Runs that are there are not made again; so it goes on in another session.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import matplotlib
import numpy as np
import tyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.support.machine import this_machine
from simplevla import recipes
from simplevla.adapters.config import ContinualConfig, Structure
from simplevla.adapters.metrics import FORMULAS, SuccessMatrix
from simplevla.report.continual import draw_matrix, matrix_table
from simplevla.storage import read_json, write_atomically, write_json
from simplevla.training.continual import continual

RESULTS = Path(__file__).parents[2] / "docs" / "results"
METRICS = ("AVG", "NBT", "FWT", "ZS", "AUC")
FULL_LR = 1.5e-4
"""Full fine-tuning takes the learning rate of the recipe's ordinary RL; adapters a larger one."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Which recipe, from which base, in how many orders, with which training seeds."""

    recipe: tyro.conf.Positional[str]
    base: str
    """Folder of the base policy; `{seed}` in it is replaced by the training seed."""
    runs: Path = Path("runs/continual")
    orders: int = 2
    """The recipe's order, and then its reverse."""
    seeds: tuple[int, ...] = (0, 1, 2)
    structures: tuple[Structure, ...] = get_args(Structure)


def settings(arguments: Arguments, structure: Structure, order: int, seed: int) -> ContinualConfig:
    config = recipes.CONTINUAL[arguments.recipe]()
    optimizer = replace(config.train.optimizer, lr=FULL_LR) if structure == "full" else config.train.optimizer
    train = replace(config.train, policy=arguments.base.format(seed=seed), seed=seed, optimizer=optimizer)
    tasks = config.tasks if order == 0 else tuple(reversed(config.tasks))
    return replace(config, train=train, structure=structure, tasks=tasks)


def mean_matrix(results: list[dict[str, Any]]) -> SuccessMatrix:
    """Of runs with the same order: episodes added up over the seeds."""
    first = results[0]
    counts = np.sum([result["n"] for result in results], axis=0)
    solved = np.sum([np.round(np.array(result["matrix"]) * np.array(result["n"])) for result in results], axis=0)
    return SuccessMatrix(
        tasks=tuple(first["tasks"]),
        order=tuple(first["order"]),
        solved=tuple(map(tuple, solved.astype(int).tolist())),
        n=tuple(map(tuple, counts.tolist())),
    )


def main(arguments: Arguments) -> None:
    file = RESULTS / f"{arguments.recipe}.json"
    results: list[dict[str, Any]] = read_json(file)["runs"] if file.exists() else []
    for seed in arguments.seeds:
        for order in range(arguments.orders):
            for structure in arguments.structures:
                if any(one["seed"] == seed for one in of(results, structure, order)):
                    continue
                run = arguments.runs / f"{arguments.recipe}_{structure}_order{order}_seed{seed}"
                config = settings(arguments, structure, order, seed)
                result = continual(config, run, resume=(run / "config.json").exists()) | {"order_number": order}
                for stage in result["stages"]:
                    # It names folders of this machine.
                    del stage["message"]
                results.append(result)
                write_json(file, {"runs": results, "machine": this_machine()})
    plot(arguments, results)
    write_atomically(RESULTS / f"{arguments.recipe}.md", page(arguments, results, this_machine()).encode())


def of(results: list[dict[str, Any]], structure: str, order: int | None = None) -> list[dict[str, Any]]:
    return [r for r in results if r["structure"] == structure and order in (None, r["order_number"])]


def grid(arguments: Arguments) -> list[tuple[int, str]]:
    """All orders, and all structures in each."""
    return [(order, structure) for order in range(arguments.orders) for structure in arguments.structures]


def plot(arguments: Arguments, results: list[dict[str, Any]]) -> None:
    """Two matrices side by side, so that their numbers can be read on the page."""
    shown = [pair for pair in grid(arguments) if of(results, pair[1], pair[0])]
    rows = -(-len(shown) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(8.4, 3.4 * rows), layout="constrained", squeeze=False)
    for axis, (order, structure) in zip(axes.flat, shown, strict=False):
        draw_matrix(axis, mean_matrix(of(results, structure, order)))
        axis.set_title(f"{structure}, order {order + 1}", fontsize=10)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    figure.savefig(RESULTS / f"{arguments.recipe}.png", dpi=120)


def spread(values: list[float | None]) -> str:
    """Mean and standard deviation over runs, in points."""
    known = [100 * value for value in values if value is not None]
    if not known:
        return "–"
    return f"{np.mean(known):.1f}" + (f" ± {np.std(known, ddof=1):.1f}" if len(known) > 1 else "")


def finding(arguments: Arguments, results: list[dict[str, Any]]) -> str:
    """The page's first sentence."""

    def extremes(metric: str, unit: str) -> str:
        means = {name: 100 * np.mean([run[metric] for run in of(results, name)]) for name in arguments.structures}
        low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
        return f"{means[low]:.1f} {unit} (`{low}`) to {means[high]:.1f} {unit} (`{high}`)"

    runs = len(of(results, arguments.structures[0]))
    return (
        f"After all tasks, mean success on them is {extremes('AVG', '%')}, and forgetting is {extremes('NBT', 'points')} "
        f"({runs} {'run' if runs == 1 else 'runs'} for each structure)."
    )


def page(arguments: Arguments, results: list[dict[str, Any]], machine: str) -> str:
    first = results[0]
    rows, costs = [], []
    for structure in arguments.structures:
        runs = of(results, structure)
        cells = [spread([run[name] for run in runs]) for name in METRICS]
        episodes = np.mean([run["episodes"] for run in runs])
        trained = runs[0]["stages"][0]["trained_parameters"]
        size = runs[0]["stages"][0]["adapter_bytes"]
        kilobytes = f"{size / 1000:.0f}" if size else "–"
        rows.append(f"| {structure} | {' | '.join(cells[:4])} |")
        costs.append(f"| {structure} | {cells[4]} | {episodes:.0f} | {trained} | {kilobytes} |")
    formulas = "\n".join(f"- {name}: {FORMULAS[name]}" for name in METRICS)
    tables = []
    for order, structure in grid(arguments):
        if runs := of(results, structure, order):
            counted = f"{len(runs)} training {'seed' if len(runs) == 1 else 'seeds'}"
            table = matrix_table(mean_matrix(runs).to_dict(structure, runs[0]["seed"]))
            tables.append(f"### {structure}, order {order + 1}, {counted}\n\n{table}")
    commits = ", ".join(sorted({run["commit"][:12] for run in results}))
    protocol = ", ".join(f"{key} {value}" for key, value in first["protocol"].items())
    joined = "\n".join(tables)
    seeds = " ".join(map(str, arguments.seeds))
    return f"""# {arguments.recipe}: structures of continual training side by side

{finding(arguments, results)}

| structure | {" | ".join(METRICS[:4])} |
|---|---|---|---|---|
{chr(10).join(rows)}

In points: mean ± standard deviation over the runs of a structure, one for each order and seed.

{formulas}

| structure | {METRICS[4]} | episodes of RL | trained parameters | kB per adapter |
|---|---|---|---|---|
{chr(10).join(costs)}

![success matrices: the framed task has just been trained]({arguments.recipe}.png)

- Command: `python -m benchmarks.experiments.continual {arguments.recipe} --base ... --orders {arguments.orders} --seeds {seeds}`. Machine: {machine}. Commit {commits}.
- Training seeds: {len({run["seed"] for run in results})}, each with its own base policy; orders: {arguments.orders}. Success is greedy, on held-out initial states.
- Protocol: {protocol}. Data: `{arguments.recipe}.json`.

## Matrices

Episodes added up over the seeds; 95 % Wilson intervals, which don't know that seeds differ.

{joined}"""


if __name__ == "__main__":
    main(tyro.cli(Arguments))
