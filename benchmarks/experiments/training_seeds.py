"""The main job of a recipe with several training seeds: `python -m benchmarks.experiments.training_seeds tabletop_nano --seeds 0 1 2`.

Writes docs/results/RECIPE.json after each seed, and .md and .png at the end. Seeds that are there are not measured again, nor runs that
are finished in --runs.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import tyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.support.machine import machines, this_machine
from simplevla.errors import UserError
from simplevla.evaluation.result import read_result
from simplevla.evaluation.statistics import hierarchical_bootstrap, wilson
from simplevla.recipes.demo import demo
from simplevla.report.continual import short_names
from simplevla.storage import write_atomically, write_json
from simplevla.training.runlog import read_rows

RESULTS = Path(__file__).parents[2] / "docs" / "results"
GOAL = 0.9
STAGES = {"sft": "before", "rl": "after"}
"""Stage -> name of its evaluation in a run."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Which recipe, where the runs go, and which training seeds."""

    recipe: tyro.conf.Positional[str]
    runs: Path = Path("runs")
    seeds: tuple[int, ...] = (0, 1, 2)


def first_at_goal(run: Path) -> dict[str, float | None]:
    """Episodes and minutes of RL until the greedy evaluation on train states first reaches 90 %."""
    for row in read_rows(run):
        if row.get("eval_success", 0.0) >= GOAL:
            return {"episodes_to_90": row.get("episodes_total", 0), "minutes_to_90": row.get("elapsed_s", 0.0) / 60}
    return {"episodes_to_90": None, "minutes_to_90": None}


def curve(run: Path, key: str) -> list[list[float]]:
    """[minutes of RL, value] wherever the run's metrics have `key`."""
    return [[row.get("elapsed_s", 0.0) / 60, row[key]] for row in read_rows(run) if key in row]


def measured(run: Path, recipe: str, seed: int) -> dict[str, Any]:
    """One training seed: the whole main job."""
    summary = demo(run, seed, recipe)
    stages = {stage: read_result(run / "rl" / "eval" / f"{name}.json") for stage, name in STAGES.items()}
    return {
        **summary,
        **first_at_goal(run / "rl"),
        "curves_of_minutes": {key: curve(run / "rl", key) for key in ("train_success", "eval_success")},
        "by_task": {
            stage: {task: [rate.solved, rate.n] for task, rate in evaluated.by_task.items()}
            for stage, evaluated in stages.items()
        },
        "protocol": dict(stages["rl"].protocol),
        "machine": this_machine(),
    }


def main(arguments: Arguments) -> None:
    file = RESULTS / f"{arguments.recipe}.json"
    recorded = json.loads(file.read_text()) if file.exists() else []
    listed = recorded["seeds"] if isinstance(recorded, dict) else recorded
    if older := [str(row["seed"]) for row in listed if "by_task" not in row]:
        raise UserError(
            f"{file} has seeds {', '.join(older)} of an earlier version, without each task's success; others can't stand beside them. "
            "Move the file away to measure all of them again"
        )
    rows = {row["seed"]: row for row in listed}
    for seed in arguments.seeds:
        if seed not in rows:
            rows[seed] = measured(arguments.runs / f"{arguments.recipe}_seed{seed}", arguments.recipe, seed)
        result = result_of(arguments.recipe, [rows[seed] for seed in sorted(rows)])
        write_json(file, result)
    write_atomically(RESULTS / f"{arguments.recipe}.md", page(result).encode())
    plot(result)
    print(json.dumps(result["over_seeds"], indent=1))


def result_of(recipe: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The record of these seeds.

    Raises:
        UserError: their protocols differ.
    """
    protocol = rows[0]["protocol"]
    for row in rows:
        if row["protocol"] != protocol:
            raise UserError(
                f"{recipe}.json has seed {row['seed']} under {row['protocol']}, and seed {rows[0]['seed']} under {protocol}; "
                "expected one protocol. Delete the row that isn't meant"
            )
    counts = {stage: np.array([list(row["by_task"][stage].values()) for row in rows]) for stage in STAGES}
    return {
        "command": f"python -m benchmarks.experiments.training_seeds {recipe} --seeds {' '.join(str(row['seed']) for row in rows)}",
        "recipe": recipe,
        "machine": machines(rows),
        "protocol": protocol,
        "seeds": rows,
        "over_seeds": {
            stage: dict(
                zip(("mean", "low", "high"), hierarchical_bootstrap(solved[..., 0], solved[..., 1]), strict=True)
            )
            for stage, solved in counts.items()
        },
        "success_by_task": {
            stage: dict(zip(rows[0]["by_task"][stage], (np.divide(*solved.sum(0).T)).tolist(), strict=True))
            for stage, solved in counts.items()
        },
    }


def page(result: dict) -> str:
    """The result as Markdown."""
    name = result["recipe"]
    seeds, over_seeds = result["seeds"], result["over_seeds"]
    lines = [
        f"# {name}: demonstrations, SFT, RL",
        "",
        f"RL takes held-out success from {over_seeds['sft']['mean']:.1%} to {over_seeds['rl']['mean']:.1%} "
        f"({len(seeds)} training {'seed' if len(seeds) == 1 else 'seeds'}, n = {seeds[0]['n']}).",
        "",
        "| over seeds | mean | 95 % interval (bootstrap over seeds, tasks, episodes) | std over seeds |",
        "|---|---|---|---|",
    ]
    for stage, title in (("sft", "SFT"), ("rl", "SFT + RL")):
        row = over_seeds[stage]
        rates = [seed[f"{stage}_success"] for seed in seeds]
        spread = f"{np.std(rates, ddof=1):.1%}" if len(rates) > 1 else "one seed"
        lines.append(f"| {title} | {row['mean']:.1%} | {row['low']:.1%} to {row['high']:.1%} | {spread} |")
    lines += ["", f"![success against minutes, and per task]({name}.png)", ""]
    lines += ["| seed | SFT (95 % Wilson) | SFT + RL (95 % Wilson) | n | commit |", "|---|---|---|---|---|"]
    for row in seeds:
        sft, rl = (interval(row[f"{stage}_success"], row["n"]) for stage in ("sft", "rl"))
        lines.append(f"| {row['seed']} | {sft} | {rl} | {row['n']} | {row['commit'][:12]} |")
    lines += [
        "",
        "| seed | updates | episodes | episodes to 90 % | minutes to 90 % | min demos | min SFT | min RL | min total |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in seeds:
        goal = [f"{row['episodes_to_90']}", f"{row['minutes_to_90']:.1f}"] if row["episodes_to_90"] else ["-", "-"]
        minutes = " | ".join(f"{row[f'minutes_{stage}']:.1f}" for stage in ("demos", "sft", "rl", "total"))
        lines.append(f"| {row['seed']} | {row['updates']} | {row['episodes']} | {' | '.join(goal)} | {minutes} |")
    lines += [
        "",
        '"To 90 %" is until the greedy evaluation on train states, made every few updates, first shows 90 %.',
        "",
        "| task | SFT | SFT + RL |",
        "|---|---|---|",
    ]
    for task, sft in result["success_by_task"]["sft"].items():
        lines.append(f"| {task} | {sft:.1%} | {result['success_by_task']['rl'][task]:.1%} |")
    lines += [
        "",
        f"- Command: `{result['command']}`. Machine: {result['machine']}. Data: `{name}.json`.",
        f"- Success is greedy, on {seeds[0]['n']} held-out initial states of {len(result['success_by_task']['sft'])} tasks, each once.",
        "- Protocol: " + ", ".join(f"{key} {value}" for key, value in result["protocol"].items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def interval(rate: float, n: int) -> str:
    """`rate` with its 95 % Wilson interval."""
    low, high = wilson(round(rate * n), n)
    return f"{rate:.1%} ({low:.1%} to {high:.1%})"


def plot(result: dict) -> None:
    """Left: each seed's curves on train states; right: held-out success per task, mean over the seeds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained", width_ratios=(1, 1.2))
    for number, row in enumerate(result["seeds"]):
        for key, style in (("train_success", {"alpha": 0.35}), ("eval_success", {"marker": "o", "linewidth": 2})):
            minutes, success = np.array(row["curves_of_minutes"][key]).reshape(-1, 2).T
            left.plot(minutes, 100 * success, color=f"C{number}", **style)
        left.plot([], [], color=f"C{number}", label=f"seed {row['seed']}")
    left.plot([], [], color="grey", marker="o", label="greedy")
    left.plot([], [], color="grey", alpha=0.5, label="sampled, in training")
    left.axhline(100 * GOAL, color="grey", linewidth=0.8, linestyle=":")
    left.set(xlabel="minutes of RL on 2 cores", ylabel="success on train states, %", ylim=(0, 100))
    left.legend(loc="lower right")
    tasks = list(result["success_by_task"]["sft"])
    for offset, (stage, name, colour) in zip(
        (-0.2, 0.2), (("sft", "SFT", "C7"), ("rl", "SFT + RL", "C2")), strict=True
    ):
        heights = [100 * result["success_by_task"][stage][task] for task in tasks]
        right.barh(np.arange(len(tasks)) + offset, heights, 0.38, label=name, color=colour)
    right.set_yticks(range(len(tasks)), [task.replace("_", " ") for task in short_names(tasks)])
    right.invert_yaxis()
    right.set(xlabel="greedy success on held-out states, %", xlim=(0, 100))
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    figure.savefig(RESULTS / f"{result['recipe']}.png", dpi=140)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
