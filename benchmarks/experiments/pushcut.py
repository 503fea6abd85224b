"""Does RL find a way without lifting where every demonstration lifts? `python -m benchmarks.experiments.pushcut --seeds 0 1 2`, about
15 minutes a seed on two cores.

Writes docs/results/tabletop_pushcut.json after each run, and .md and .png at the end. Rows that are there are not measured again, nor
runs that are finished in --runs. Those that were made with other settings are refused. --quick is the test's, in folders of its own.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import tyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.experiments.training_seeds import interval
from benchmarks.support.machine import machines, this_machine
from benchmarks.support.recorded import claim_runs, quick_apart, read_recorded, recipe_digest
from simplevla import recipes
from simplevla.config import DemosConfig
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.demonstrations.expert import Attempt
from simplevla.errors import UserError
from simplevla.evaluation.provenance import commit
from simplevla.evaluation.result import Rate
from simplevla.novelty.behaviour import Behaviour, Novelty, Reference
from simplevla.recipes.demo import demo
from simplevla.report.novelty import paired_sentence, read_novelty
from simplevla.runs import novelty_of_run
from simplevla.storage import write_atomically, write_json
from simplevla.suites.registry import make_suite
from simplevla.suites.tabletop.environment import HEAVY_KG, LIGHT_KG, is_heavy
from simplevla.training.runlog import read_rows

SUITE = "tabletop_pushcut"
RESULTS = Path(__file__).parents[2] / "docs" / "results"
EVENT = "lifts blue"
ATTEMPTS = 5
"""Attempts of the demonstrator from a held-out state; a heavy block takes them all in vain."""
OTHER_SEED = 1000
"""Plus the training seed: of demonstrations that no reference has."""
MOST = 4
"""Orders of events of each run that are kept: the commonest."""
GOAL = 0.5
"""Share of solved episodes without lifting that was hoped for."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Where the runs go, and which training seeds."""

    runs: Path = Path("runs/tabletop_pushcut")
    seeds: tuple[int, ...] = (0, 1, 2)
    out: Path = RESULTS
    quick: bool = False
    """Few demonstrations and updates; the figures mean nothing then."""


def quick_recipes() -> None:
    """Makes the recipe short, in this process."""
    demos, sft, train = recipes.DEMOS[SUITE](), recipes.SFT[SUITE](), recipes.TRAIN[SUITE]()
    sampling = replace(train.sampling, groups=4, group_size=4)
    recipes.DEMOS[SUITE] = lambda: replace(demos, episodes=150)
    recipes.SFT[SUITE] = lambda: replace(sft, batches=200, batch_size=64, eval_episodes_per_task=0)
    recipes.TRAIN[SUITE] = lambda: replace(train, updates=2, sampling=sampling, eval_every=0)


def settings_of(arguments: Arguments) -> dict[str, Any]:
    """Arguments that change the figures, but for the seed."""
    recipe = (kind[SUITE]() for kind in (recipes.DEMOS, recipes.SFT, recipes.TRAIN))
    return {"quick": arguments.quick, "recipe": recipe_digest(*recipe)}


def measured(arguments: Arguments, seed: int) -> dict[str, Any]:
    """One training seed: success, and how it was solved."""
    run = arguments.runs / f"{SUITE}_seed{seed}"
    summary = demo(run, seed, SUITE)
    found, _ = read_novelty(run / "rl")
    if not found and not (summary["sft_success"] or summary["rl_success"]):
        raise UserError(
            f"neither policy of {run} solved an episode, so there is no row of seed {seed}: nothing says how it would be solved. "
            "Its success is in summary.json"
        )
    found = found or novelty_of_run(run / "rl")
    return {
        "seed": seed,
        "n": summary["n"],
        "sft_success": summary["sft_success"],
        "rl_success": summary["rl_success"],
        "unlifted_demos": portion(found.demonstrations.without(EVENT)),
        "unlifted_sft": portion(found.before.without(EVENT)),
        "unlifted_rl": portion(found.after.without(EVENT)),
        "counts": {
            "unlifted_demos": share(found.demonstrations.without(EVENT)),
            "unlifted_sft": share(found.before.without(EVENT)),
            "unlifted_rl": share(found.after.without(EVENT)),
            "novel_sft": share(found.before.novel),
            "novel_rl": share(found.after.novel),
            "novel_among_unlifted": novel_among(found, lifted=False),
            "dragged_among_unlifted_rl": dragged(found),
            "unlifted_light_rl": share(light(found.after).without(EVENT)),
            "novel_among_lifted_rl": novel_among(replace(found, before=replace(found.before, solved=())), lifted=True),
            "novel_demonstrations": novel_demonstrations(run, seed),
        },
        "paired": paired_sentence(found),
        "orders_rl": dict(found.after.orders.most_common(MOST)),
        "minutes": summary["minutes_total"],
        "curve": [
            [row["update"], row["train_success"]] for row in read_rows(run / "rl") if "train_success" in row
        ],
        "settings": settings_of(arguments),
        "commit": summary["commit"] or commit(),
        "machine": this_machine(),
    }  # fmt: skip


def portion(rate: Rate) -> float | None:
    """The rate; None without episodes."""
    return rate.rate if rate.n else None


def share(rate: Rate) -> list[int]:
    """[how many, of all]."""
    return [rate.solved, rate.n]


def novel_among(found: Novelty, *, lifted: bool) -> list[int]:
    """[novel, all] of the episodes of both policies that were solved with lifting, or without."""
    solved = [e for e in found.before.solved + found.after.solved if (EVENT in (e.events or "").split(" > ")) == lifted]
    return share(Behaviour(solved=tuple(solved), episodes=len(solved)).novel)


def light(side: Behaviour) -> Behaviour:
    """The solved episodes whose block could have been lifted."""
    solved = tuple(e for e in side.solved if e.initial_state is not None and not is_heavy(e.initial_state))
    return Behaviour(solved=solved, episodes=side.episodes)


def dragged(found: Novelty) -> list[int]:
    """[grasped, all] of the episodes that were solved after RL without lifting: it is dragged then, and not pushed."""
    orders = [(e.events or "").split(" > ") for e in found.after.solved]
    unlifted = [order for order in orders if EVENT not in order]
    return [sum("grasps blue" in order for order in unlifted), len(unlifted)]


def novel_demonstrations(run: Path, seed: int) -> list[int]:
    """[novel, all] of demonstrations from held-out initial states, which no reference has."""
    config: DemosConfig = replace(recipes.DEMOS[SUITE](), seed=OTHER_SEED + seed)
    suite = make_suite(config.suite)
    reference = Reference.of(LeRobotDataset(run / "demos"), suite)
    (task,) = suite.tasks
    environment = suite.make_environment()
    found = []
    for number, state in enumerate(suite.initial_states(task, "test")):
        # An attempt from one state can't move on to another, as those of `demos` do, so it may be made five times.
        attempts = (
            Attempt(config=config, episode=number, number=k, task=task, initial_state=state) for k in range(ATTEMPTS)
        )
        shown = next(filter(None, (attempt.run(suite, environment, lambda: None) for attempt in attempts)), None)
        if shown is not None:
            path = reference.columns.path(shown.state)
            found.append(reference.tasks[task.name].nearest(path)[0] > reference.tasks[task.name].threshold)
    environment.close()
    return [sum(found), len(found)]


def main(arguments: Arguments) -> None:
    arguments = quick_apart(arguments, SUITE)
    if arguments.quick:
        quick_recipes()
    file, settings = arguments.out / f"{SUITE}.json", settings_of(arguments)
    rows = read_recorded(file, settings)
    for seed in arguments.seeds:
        if all(row["seed"] != seed for row in rows):
            claim_runs(arguments.runs, settings)
            rows.append(measured(arguments, seed))
            rows.sort(key=lambda row: row["seed"])
            write_json(file, rows)
    write_atomically(arguments.out / f"{SUITE}.md", page(rows).encode())
    plot(rows, arguments.out / f"{SUITE}.png")


def percent(counts: list[int]) -> str:
    """A share with its 95 % Wilson interval."""
    if not counts[1]:
        return "none solved"
    return interval(counts[0] / counts[1], counts[1])


def pooled(rows: list[dict[str, Any]], key: str) -> list[int]:
    """[how many, of all] over the seeds."""
    return [sum(row["counts"][key][i] for row in rows) for i in range(2)]


def page(rows: list[dict[str, Any]]) -> str:
    """The result as Markdown."""
    unlifted = {side: pooled(rows, f"unlifted_{side}") for side in ("demos", "sft", "rl")}
    shares = {side: counts[0] / max(counts[1], 1) for side, counts in unlifted.items()}
    sft, rl = (np.mean([row[f"{stage}_success"] for row in rows]) for stage in ("sft", "rl"))
    grasped, of = pooled(rows, "dragged_among_unlifted_rl")
    reached = sum(
        (row["unlifted_rl"] or 0) >= GOAL
        and (row["unlifted_sft"] or 0) <= 0.05
        and row["rl_success"] - row["sft_success"] >= 0.2
        for row in rows
    )
    both = sum(
        row["counts"]["novel_among_unlifted"][0] >= 0.9 * row["counts"]["novel_among_unlifted"][1]
        and row["counts"]["novel_demonstrations"][0] <= 0.05 * row["counts"]["novel_demonstrations"][1]
        for row in rows
    )
    light = [percent(row["counts"]["unlifted_light_rl"]) for row in rows]
    lines = [
        f"# {SUITE}: no lifting where every demonstration lifts",
        "",
        f"No demonstration moves the block without lifting it; after RL {shares['rl']:.0%} of solved episodes do, and success goes "
        f"from {sft:.0%} to {rl:.0%} ({len(rows)} training {'seed' if len(rows) == 1 else 'seeds'}, n = {rows[0]['n']} held-out states each).",
        "",
        f"Of {of} such solutions {grasped} hold the block between the fingers at the end of an env step, and drag it; the others push. The goal",
        f"was half of the solutions without lifting, at most 5 % after SFT, and 20 points of success. {reached} of {len(rows)} {'seed' if len(rows) == 1 else 'seeds'} "
        f"{'reaches' if 1 in (reached, len(rows)) else 'reach'} it.",
        "",
        "| seed | success after SFT | success after RL | solved without lifting, SFT | solved without lifting, RL |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        rates = [interval(row[f"{stage}_success"], row["n"]) for stage in ("sft", "rl")]
        lines.append(
            f"| {row['seed']} | {' | '.join(rates)} | {percent(row['counts']['unlifted_sft'])} | "
            f"{percent(row['counts']['unlifted_rl'])} |"
        )
    lines += [
        "",
        f"![success and how it was solved]({SUITE}.png)",
        "",
        f"The task is to move a block onto a strip. A third of the blocks weigh {LIGHT_KG} kg, the others {HEAVY_KG} kg, which the fingers can't lift.",
        "Nothing shows which is which. The demonstrator always grasps, lifts, carries and releases, so that it shows light blocks alone.",
        "Success asks only where the block comes to rest. Nothing rewards what isn't lifted.",
        "",
        f"Light blocks can be lifted. Of their solutions after RL, {', '.join(light)} are without lifting, seed by seed.",
        "",
        "| seed | novel, SFT | novel, RL | novel among un-lifted | novel among lifted, RL | novel among new demonstrations |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        keys = ("sft", "rl", "among_unlifted", "among_lifted_rl", "demonstrations")
        cells = (percent(row["counts"][f"novel_{key}"]) for key in keys)
        lines.append(f"| {row['seed']} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Over the seeds, {percent(pooled(rows, 'novel_among_unlifted'))} of the solutions without lifting are novel, and "
        f"{percent(pooled(rows, 'novel_demonstrations'))} of the new demonstrations. The goals were at least 90 % and at most 5 %. "
        f"Taken alone, {both} of {len(rows)} {'seed' if len(rows) == 1 else 'seeds'} {'meets' if 1 in (both, len(rows)) else 'meet'} both.",
        "",
        "Novel is farther from every demonstration than 99 % of them are from another one ([definition](../novelty.md)). New",
        "demonstrations are of held-out states. What RL still lifts may be novel by its path too, so the measure finds new ways",
        "of moving, and the events say which.",
        "",
        *(f"- Seed {row['seed']}: {row['paired']}" for row in rows),
        "",
        f"How episodes were solved after RL, by the order of events ({MOST} orders a seed at most):",
        "",
        "| seed | order | episodes |",
        "|---|---|---|",
    ]
    lines += [f"| {row['seed']} | {order} | {count} |" for row in rows for order, count in row["orders_rl"].items()]
    seeds = " ".join(str(row["seed"]) for row in rows)
    minutes = ", ".join(f"{row['minutes']:.1f}" for row in rows)
    lines += [
        "",
        f"- Command: `python -m benchmarks.experiments.pushcut --seeds {seeds}`. Machine: {machines(rows)}. Data: `{SUITE}.json`.",
        f"- Commits: {', '.join(dict.fromkeys(row['commit'][:12] for row in rows))}. Minutes a seed: {minutes}.",
        f"- Of {unlifted['demos'][1]} demonstrations {unlifted['demos'][0]} are without lifting. Success is greedy.",
        "- Intervals are 95 % Wilson intervals of one seed's episodes; those over the seeds treat all episodes alike.",
    ]
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Left: sampled success while RL trains; right: the share of solved episodes without lifting."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for row in rows:
        if row["curve"]:
            updates, success = np.array(row["curve"]).T
            left.plot(updates, 100 * success, label=f"seed {row['seed']}")
    left.set(xlabel="updates of RL", ylabel="sampled success on train states, %", ylim=(0, 100))
    left.legend()
    for place, side in enumerate(("demos", "sft", "rl")):
        rates = [100 * (row[f"unlifted_{side}"] or 0) for row in rows]
        right.bar(place + 0.25 * (np.arange(len(rows)) - 1), rates, 0.22, color=[f"C{i}" for i in range(len(rows))])
    right.set_xticks(range(3), ["demonstrations", "after SFT", "after RL"])
    right.set(ylabel="solved without lifting, %", ylim=(0, 100))
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
