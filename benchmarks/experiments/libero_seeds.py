"""RL on LIBERO from few demonstrations, on several suites and training seeds:
`python -m benchmarks.experiments.libero_seeds --suites libero_object --seeds 0 1 2`, 25 to 100 minutes a run on two cores.

Writes docs/results/libero_seeds.json after each run, and .md and .png at the end. Rows that are there are not measured again, nor runs
that are finished in --runs. Those that were made with other settings are refused. --quick is the test's, in folders of its own.
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import tyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.experiments.training_seeds import interval
from benchmarks.support.machine import machines, this_machine
from benchmarks.support.recorded import claim_runs, quick_apart, read_recorded, recipe_digest, require_settings
from simplevla import recipes
from simplevla.config import DemosConfig, SFTConfig, TrainConfig
from simplevla.novelty.behaviour import shares
from simplevla.recipes.demo import demo
from simplevla.report.novelty import read_novelty
from simplevla.runs import novelty_of_run
from simplevla.storage import write_atomically, write_json
from simplevla.suites.libero.conventions import PICK_AND_PLACE
from simplevla.suites.registry import make_suite
from simplevla.training.runlog import read_rows

RESULTS = Path(__file__).parents[2] / "docs" / "results"
NAME = "libero_seeds"
EVENTS = "after each physics step, of what lies about and what hangs on a joint; a grasp has fingers on opposite sides"
MOST = 4
"""Orders of events of each run that the page shows."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Where the runs go, which suites and training seeds."""

    runs: Path = Path("runs/libero_seeds")
    suites: tuple[Literal["libero_object", "libero_spatial", "libero_goal"], ...] = ("libero_object",)
    seeds: tuple[int, ...] = (0, 1, 2)
    demos_per_task: int = 3
    out: Path = RESULTS
    quick: bool = False
    """One task, a short imitation and an update of few groups; the figures mean nothing then."""


def changed_recipes(arguments: Arguments, suite: str) -> tuple[DemosConfig, SFTConfig, TrainConfig]:
    """The suite's recipes, with these demonstrations."""
    name, tasks = f"{suite}_nano", len(PICK_AND_PLACE[suite]) or 10
    demos, sft, train = recipes.DEMOS[name](), recipes.SFT[name](), recipes.TRAIN[name]()
    demos = replace(demos, episodes=arguments.demos_per_task * tasks)
    if arguments.quick:
        one = replace(train.suite, tasks=(make_suite(train.suite).tasks[:5][-1].name,))
        few = replace(train.sampling, groups=2, group_size=4, max_oversampling=8.0)
        demos, sft = replace(demos, suite=one, episodes=24), replace(sft, batches=250, batch_size=64)
        train = replace(train, suite=one, updates=1, sampling=few, minibatches=1, eval_every=0)
        train = replace(train, rollout=replace(train.rollout, workers=2))
    return demos, sft, train


def change_recipes(arguments: Arguments, suite: str) -> str:
    """Sets the suite's recipes to these in this process; returns their name."""
    name, (demos, sft, train) = f"{suite}_nano", changed_recipes(arguments, suite)
    recipes.DEMOS[name], recipes.SFT[name], recipes.TRAIN[name] = lambda: demos, lambda: sft, lambda: train
    return name


def settings_of(arguments: Arguments) -> dict[str, Any]:
    """Arguments that change the figures, but for those that a row is found by."""
    return {"quick": arguments.quick}


def settings_on(arguments: Arguments, suite: str) -> dict[str, Any]:
    """The same, and the recipe of `suite` with these demonstrations."""
    return {**settings_of(arguments), "recipe": recipe_digest(*changed_recipes(arguments, suite))}


def measured(arguments: Arguments, suite: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """One run: success on all held-out states, and how it was solved."""
    run = arguments.runs / f"{suite}_demos{arguments.demos_per_task}" / f"seed{seed}"
    summary = demo(run, seed, change_recipes(arguments, suite))
    found, _ = read_novelty(run / "rl")
    solved = summary["sft_success"] or summary["rl_success"]
    found = found or (novelty_of_run(run / "rl") if solved and arguments.demos_per_task > 1 else None)
    sides = found.sides if found else {}
    return {
        "suite": suite,
        "seed": seed,
        "demos_per_task": arguments.demos_per_task,
        "n": summary["n"],
        "sft_success": summary["sft_success"],
        "rl_success": summary["rl_success"],
        "minutes_rl": summary["minutes_rl"],
        "minutes_total": summary["minutes_total"],
        "updates": summary["updates"],
        "episodes": summary["episodes"],
        "unlifted": {side: unlifted(behaviour.solved) for side, behaviour in sides.items()},
        "novel": {side: [behaviour.novel.solved, behaviour.novel.n] for side, behaviour in sides.items()},
        "orders": {side: dict(behaviour.orders.most_common()) for side, behaviour in sides.items()},
        "steps": {
            side: behaviour.mean("env_steps") if behaviour.solved else None for side, behaviour in sides.items()
        },
        "curve": [
            [row["elapsed_s"] / 60, row["train_success"]] for row in read_rows(run / "rl") if "train_success" in row
        ],
        "events": EVENTS,
        "settings": settings,
        "commit": summary["commit"],
        "machine": this_machine(),
    }  # fmt: skip


def unlifted(solved: tuple[Any, ...]) -> list[int]:
    """[how many, of all whose events are known] solved episodes in which nothing is ever lifted."""
    known = [episode.events for episode in solved if episode.events is not None]
    return [sum("lifts" not in events for events in known), len(known)]


def main(arguments: Arguments) -> None:
    arguments = quick_apart(arguments, NAME)
    file = arguments.out / f"{NAME}.json"
    rows = read_recorded(file, settings_of(arguments))
    for suite in arguments.suites:
        of = [row for row in rows if (row["suite"], row["demos_per_task"]) == (suite, arguments.demos_per_task)]
        # Before a run changes the recipes of this process.
        settings = settings_on(arguments, suite)
        require_settings(file, of, settings)
        for seed in arguments.seeds:
            if all(row["seed"] != seed for row in of):
                claim_runs(arguments.runs / f"{suite}_demos{arguments.demos_per_task}", settings)
                rows.append(measured(arguments, suite, seed, settings))
                rows.sort(key=lambda row: (-row["demos_per_task"], row["suite"], row["seed"]))
                write_json(file, rows)
    write_atomically(arguments.out / f"{NAME}.md", page(rows).encode())
    plot(rows, arguments.out / f"{NAME}.png")


def groups(rows: list[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """(suite, demonstrations per task) -> its rows."""
    keys = dict.fromkeys((row["suite"], row["demos_per_task"]) for row in rows)
    return {key: [row for row in rows if (row["suite"], row["demos_per_task"]) == key] for key in keys}


def page(rows: list[dict[str, Any]]) -> str:
    """The result as Markdown."""
    said = []
    for (suite, demos), of in groups(rows).items():
        before, after = (np.mean([row[f"{stage}_success"] for row in of]) for stage in ("sft", "rl"))
        seeds = f"{len(of)} training {'seed' if len(of) == 1 else 'seeds'}"
        said.append(f"from {before:.0%} to {after:.0%} on {suite} with {demos} a task ({seeds})")
    lines = [
        "# LIBERO from few demonstrations",
        "",
        f"With few demonstrations RL takes held-out success {', '.join(said)}.",
        "",
        "| suite, demonstrations a task | seed | after SFT (95 % Wilson) | after RL (95 % Wilson) | minutes of RL |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = " | ".join(interval(row[f"{stage}_success"], row["n"]) for stage in ("sft", "rl"))
        lines.append(f"| {row['suite']}, {row['demos_per_task']} | {row['seed']} | {cells} | {row['minutes_rl']:.0f} |")
    lines += [
        "",
        f"![sampled success against minutes]({NAME}.png)",
        "",
        "What RL changed in how episodes are solved, by [replays](../novelty.md) of the solved held-out ones:",
        "",
        "| suite, seed | nothing lifted: demonstrations, SFT, RL | novel: SFT, RL | env steps: demonstrations, SFT, RL |",
        "|---|---|---|---|",
    ]
    for row in rows:
        if row["unlifted"]:
            sides = ("demonstrations", "before", "after")
            counts = (
                ", ".join(f"{row[key][side][0]}/{row[key][side][1]}" for side in sides[start:])
                if key in row
                else "not measured"
                for key, start in (("unlifted", 0), ("novel", 1))
            )
            steps = ", ".join(f"{row['steps'][side]:.0f}" if row["steps"][side] else "none" for side in sides)
            lines.append(f"| {row['suite']}, {row['seed']} | {' | '.join(counts)} | {steps} |")
    ordered = [row for row in rows if row.get("orders")]
    if ordered:
        lines += [
            "",
            "The commonest orders of events in solved episodes; A is the thing that something happens to first, B the next:",
            "",
            "| suite, seed | order of events | demonstrations | SFT | RL |",
            "|---|---|---|---|---|",
        ]
    for row in ordered:
        sides = [anonymous(row["orders"][side]) for side in ("demonstrations", "before", "after")]
        found = shares(sides)
        unseen = [(sum(side[order] for order in side if order not in sides[0]), side.total()) for side in sides]
        for order, counts in [*found[:MOST], ("all that no demonstration has", unseen)]:
            cells = " | ".join(f"{count}/{total}" for count, total in counts)
            lines.append(f"| {row['suite']}, {row['seed']} | {shortened(order)} | {cells} |")
    commits = ", ".join(dict.fromkeys(row["commit"][:12] for row in rows))
    commands = [
        f"`python -m benchmarks.experiments.{NAME} --suites {suite} --demos-per-task {demos} --seeds {' '.join(str(row['seed']) for row in of)}`"
        for (suite, demos), of in groups(rows).items()
    ]
    earlier = [f"{row['suite']}, {row['seed']}" for row in ordered if row.get("events") != EVENTS]
    lines += [
        "",
        f"- Commands: {'; '.join(commands)}. Machine: {machines(rows)}. Data: `{NAME}.json`.",
        f"- Commits: {commits}. The recipes `SUITE_nano`: {', '.join(str(n) for n in dict.fromkeys(row['updates'] for row in rows))} updates, `lite`, `fast`.",
        f"- Success is greedy, on {' or '.join(str(n) for n in dict.fromkeys(row['n'] for row in rows))} held-out initial states. libero_goal's is on the five tasks that the expert solves.",
        "- Novel means farther from the demonstrations than 99 % of them are from another; with three a task it says little.",
        "- One demonstration a task (`--demos-per-task 1`) has no other to be compared with: its behaviour isn't measured.",
    ]
    if earlier:
        lines.append(
            f"- Events of {'; '.join(earlier)} are an earlier version's: at the ends of env steps alone, of what moves freely alone, and "
            "`grasps` says that all fingers touch."
        )
    return "\n".join(lines) + "\n"


def anonymous(orders: dict[str, int]) -> Counter[str]:
    """The same orders of events with A for the first thing in each, B for the next and so on."""
    found: Counter[str] = Counter()
    for order, count in orders.items():
        events = [event.partition(" ") for event in order.split(" > ")]
        names = list(dict.fromkeys(thing for _, _, thing in events if thing))
        told = [f"{verb} {chr(ord('A') + names.index(thing))}" if thing else verb for verb, _, thing in events]
        found[" > ".join(told)] += count
    return found


def shortened(order: str) -> str:
    """The first five events at most of an order."""
    events = order.split(" > ")
    return " > ".join(events[:5]) + (" …" if len(events) > 5 else "")


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Sampled success on train states, a line for each run."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for number, ((suite, demos), of) in enumerate(groups(rows).items()):
        for i, row in enumerate(of):
            minutes, success = np.array(row["curve"]).reshape(-1, 2).T
            label = f"{suite}, {demos} demonstrations a task" if i == 0 else None
            axes.plot(minutes, 100 * success, f"C{number}", alpha=0.8, label=label)
    axes.set(xlabel="minutes of RL on two cores", ylabel="sampled success on train states, %", ylim=(0, 100))
    axes.legend()
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
