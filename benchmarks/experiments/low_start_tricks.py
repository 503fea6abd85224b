"""The exploration tricks from a start that solves 5 to 20 %, at equal updates and at equal episodes:
`python -m benchmarks.experiments.low_start_tricks --seeds 0 1 2`, about an hour and a half on two cores.

Writes docs/results/low_start_tricks.json after each run, and .md and .png at the end. Rows that are there are not measured again, nor
runs that are finished in --runs. Those that were made with other settings are refused. --quick is the test's, in folders of its own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import tyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.support.machine import machines, this_machine
from benchmarks.support.recorded import claim_runs, quick_apart, read_recorded, recipe_digest
from simplevla.config import EvalConfig, SamplingConfig, TrainConfig
from simplevla.demonstrations.generate import generate
from simplevla.evaluation.evaluate import evaluate
from simplevla.evaluation.provenance import commit
from simplevla.evaluation.result import read_result, write_result
from simplevla.recipes import tabletop
from simplevla.storage import write_atomically, write_json
from simplevla.training.checkpoint import list_checkpoints
from simplevla.training.imitation import sft
from simplevla.training.loop import train
from simplevla.training.runlog import read_rows

RESULTS = Path(__file__).parents[2] / "docs" / "results"
NAME = "low_start_tricks"
DEMONSTRATIONS = 18
"""Of all six tasks together: of the amounts in start_against_gain the one that starts between 5 and 20 %."""
HEADS = {"token": (tabletop.sft, tabletop.train), "diffusion": (tabletop.diffusion_sft, tabletop.diffusion_train)}


def sampled(**changes: Any) -> Callable[[TrainConfig], TrainConfig]:
    return lambda config: replace(config, sampling=replace(config.sampling, **changes))


def clipped(high: float) -> Callable[[TrainConfig], TrainConfig]:
    return lambda config: replace(config, loss=replace(config.loss, clip_high=high))


COMMON: dict[str, Callable[[TrainConfig], TrainConfig]] = {
    "recipe": lambda config: config,
    "without dynamic sampling": sampled(dynamic=False),
    "clip 0.2 / 0.2": clipped(0.2),
    "clip 0.2 / 0.4": clipped(0.4),
    "groups of 4": sampled(group_size=4),
    "groups of 16": sampled(group_size=16),
}
VARIANTS = {
    "token": COMMON | {f"T {value}": sampled(temperature=value) for value in (0.7, 1.3, 1.6)},
    "diffusion": COMMON,
}
"""Head -> name -> what it changes in the recipe, which is T 1.0, clip 0.2 / 0.28, groups of 8, dynamic sampling."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Where the runs go, which training seeds and heads, and how long RL is."""

    runs: Path = Path("runs/low_start_tricks")
    seeds: tuple[int, ...] = (0, 1, 2)
    heads: tuple[str, ...] = ("token", "diffusion")
    variants: tuple[str, ...] = ()
    """None: all."""
    groups: int = 16
    updates: int = 12
    episodes: int = 4800
    """Every run goes on until it has had so many updates and so many episodes."""
    out: Path = RESULTS
    quick: bool = False
    """A short imitation and updates of few groups; the figures mean nothing then."""


def start(arguments: Arguments, head: str, seed: int) -> Path:
    """The imitator that all variants of a head and a seed start from."""
    demos, run = arguments.runs / f"demos_seed{seed}", arguments.runs / f"sft_{head}_seed{seed}"
    generate(replace(tabletop.demos(), seed=seed, episodes=DEMONSTRATIONS), demos, progress=False)
    config = replace(HEADS[head][0](), dataset=str(demos), seed=seed, eval_episodes_per_task=0)
    if arguments.quick:
        config = replace(config, batches=150, batch_size=64)
    if not (run / "policy").exists():
        sft(config, run, resume=(run / "config.json").exists())
    return run / "policy"


def trained(config: TrainConfig, run: Path, episodes: int) -> list[dict[str, Any]]:
    """Rows of a run that has had the config's updates and so many episodes, or ended for want of a mixed group."""
    while True:
        rows = read_rows(run) if (run / "config.json").exists() else []
        done, had = (rows[-1]["update"], rows[-1].get("episodes_total", 0)) if rows else (0, 0)
        if had:
            config = replace(config, updates=max(config.updates, math.ceil(done * episodes / had)))
        if done >= config.updates and had >= episodes:
            return rows
        print(train(config, run, resume=(run / "config.json").exists()).message)
        after = read_rows(run)
        if not after or after[-1]["update"] == done:
            return after


def settings_of(arguments: Arguments) -> dict[str, Any]:
    """Arguments that change the figures, but for those that a row is found by."""
    chosen = recipe_digest(tabletop.demos(), *(recipe() for head in HEADS.values() for recipe in head))
    return {"recipe": chosen, **{key: getattr(arguments, key) for key in ("groups", "updates", "episodes", "quick")}}


def measured(arguments: Arguments, head: str, name: str, seed: int) -> dict[str, Any]:
    """Held-out success of one variant: at the start, after equal updates, after equal episodes."""
    run = arguments.runs / f"{head}_{name.replace(' ', '_').replace('/', '')}_seed{seed}"
    config = HEADS[head][1]()
    config = replace(
        config,
        policy=str(start(arguments, head, seed)),
        sampling=SamplingConfig(groups=arguments.groups, group_size=8, temperature=1.0),
        updates=arguments.updates,
        eval_every=0,
        seed=seed,
        keep_checkpoints=1000,
    )
    config, evaluation = VARIANTS[head][name](config), EvalConfig()
    if arguments.quick:
        few = replace(config.sampling, groups=2, max_oversampling=30.0)
        config, evaluation = replace(config, minibatches=1, sampling=few), EvalConfig(episodes_per_task=1)
    rows = trained(config, run, arguments.episodes)
    checkpoints = {
        int(path.name.removeprefix("update_")): path / "policy" for path in list_checkpoints(run / "checkpoints")
    }
    checkpoints[0] = Path(config.policy)
    last = max(checkpoints)
    enough = next((row["update"] for row in rows if row.get("episodes_total", 0) >= arguments.episodes), last)
    ends = {"sft": 0, "updates": min(arguments.updates, last), "episodes": min(enough, last)}
    rates = {}
    for key, update in ends.items():
        # One start for all variants.
        file = (Path(config.policy).parent if key == "sft" else run) / f"test_{update}.json"
        if not file.exists():
            write_result(file, evaluate(checkpoints[update], config.suite, config.rollout, evaluation))
        rates[key] = read_result(file).overall
    return {
        "head": head,
        "variant": name,
        "seed": seed,
        "n": rates["sft"].n,
        "sft_success": rates["sft"].rate,
        "success_at_equal_updates": rates["updates"].rate,
        "success_at_equal_episodes": rates["episodes"].rate,
        "updates": ends["updates"],
        "updates_at_equal_episodes": ends["episodes"],
        "episodes_at_equal_updates": next((r["episodes_total"] for r in rows if r["update"] == ends["updates"]), 0),
        "episodes": arguments.episodes,
        "first_sampled_success": next((row["train_success"] for row in rows if "train_success" in row), None),
        "curve": [[row["episodes_total"], row["train_success"]] for row in rows if "train_success" in row],
        "settings": settings_of(arguments),
        "commit": commit(),
        "machine": this_machine(),
    }


def main(arguments: Arguments) -> None:
    arguments = quick_apart(arguments, NAME)
    file, settings = arguments.out / f"{NAME}.json", settings_of(arguments)
    rows = read_recorded(file, settings)
    wanted = [
        (head, name, seed)
        for head in arguments.heads
        for seed in arguments.seeds
        for name in arguments.variants or VARIANTS[head]
    ]
    for key in wanted:
        if key not in {(row["head"], row["variant"], row["seed"]) for row in rows}:
            claim_runs(arguments.runs, settings)
            rows.append(measured(arguments, *key))
            write_json(file, rows)
    write_atomically(arguments.out / f"{NAME}.md", page(rows).encode())
    plot(rows, arguments.out / f"{NAME}.png")


def grouped(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Rows of each head and variant, in the order of `VARIANTS`."""
    keys = [(head, name) for head in VARIANTS for name in VARIANTS[head]]
    found = {key: [row for row in rows if (row["head"], row["variant"]) == key] for key in keys}
    return {key: of for key, of in found.items() if of}


def mean(rows: list[dict[str, Any]], key: str) -> float:
    return float(np.mean([row[key] for row in rows]))


def spread(rows: list[dict[str, Any]], key: str) -> str:
    """Mean, and standard deviation over the seeds."""
    values = [row[key] for row in rows]
    return f"{np.mean(values):.1%}" + (f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else "")


def gaps(of: dict[tuple[str, str], list[dict[str, Any]]], head: str, key: str) -> dict[str, list[float]]:
    """Variant -> what it ends above the recipe with each seed, points."""
    recipe = {row["seed"]: row[key] for row in of.get((head, "recipe"), [])}
    return {
        name: found
        for (its_head, name), rows in of.items()
        if its_head == head
        and name != "recipe"
        and (found := [100 * (row[key] - recipe[row["seed"]]) for row in rows if row["seed"] in recipe])
    }


def findings(of: dict[tuple[str, str], list[dict[str, Any]]], head: str) -> list[str]:
    """Sentences on what the variants do to the recipe's result, at equal updates and at equal episodes."""
    said, one_sided, compared, by_chance = [], 0, 0, 0.0
    for key, what in zip(ENDS, ("updates", "episodes"), strict=True):
        if found := gaps(of, head, key):
            means, listed = [np.mean(of_seeds) for of_seeds in found.values()], []
            for name, of_seeds in found.items():
                if len(of_seeds) == 1:
                    continue
                if min(of_seeds) > 0 or max(of_seeds) < 0:
                    listed.append(f"{name} ({np.mean(of_seeds):+.1f})")
                compared, by_chance = compared + 1, by_chance + 2 ** (1 - len(of_seeds))
            one_sided += len(listed)
            said.append(
                f"{head}, equal {what}: changes of one setting end {min(means):+.1f} to {max(means):+.1f} points beside the "
                f"recipe. On one side of it with every seed: {', '.join(listed) or 'none'}."
            )
    if compared:
        said.append(
            f"{head}: {one_sided} of {compared} comparisons are on one side with every seed; by chance {by_chance:.0f} would be."
        )
    return said


def verdict(of: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """What leaving out or changing one trick is worth at most, over all heads and both ends."""
    means = [np.mean(f) for head in HEADS for key in ENDS for f in gaps(of, head, key).values()]
    if not means:
        return "Nothing was compared yet."
    return (
        f"Changing one trick costs {abs(min(*means, 0)):.1f} points at most and gains {max(*means, 0):.1f} at most "
        "(the paper's ablations differ by 10 to 15)."
    )


def page(rows: list[dict[str, Any]]) -> str:
    """The result as Markdown."""
    of = grouped(rows)
    token = {name: found for (head, name), found in of.items() if head == rows[0]["head"]}
    lines = ["# The exploration tricks from a low start", ""]
    seeds = sorted({row["seed"] for row in rows})
    start = [row for row in rows if row["head"] == rows[0]["head"]]
    reached = [f"{mean(token['recipe'], key):.0%}" if "recipe" in token else "an unmeasured rate" for key in ENDS]
    lines += [
        verdict(of),
        "",
        f"From {mean(start, 'sft_success'):.0%} greedy success the recipe with a {rows[0]['head']} head comes to {reached[0]} in {rows[0]['updates']} updates and to "
        f"{reached[1]} in {rows[0]['episodes']} episodes ({len(seeds)} training {'seed' if len(seeds) == 1 else 'seeds'}, "
        f"n = {rows[0]['n']} each).",
        "",
        *(f"- {sentence}" for head in dict.fromkeys(row["head"] for row in rows) for sentence in findings(of, head)),
        "",
        f"| head, variant | after {rows[0]['updates']} updates | episodes until there | after {rows[0]['episodes']} episodes | updates until there |",
        "|---|---|---|---|---|",
    ]
    for (head, name), found in of.items():
        lines.append(
            f"| {head}, {name} | {spread(found, ENDS[0])} | {mean(found, 'episodes_at_equal_updates'):.0f} "
            f"| {spread(found, ENDS[1])} | {mean(found, 'updates_at_equal_episodes'):.0f} |"
        )
    lines += [
        "",
        f"![held-out success of each variant]({NAME}.png)",
        "",
        "Success is greedy, on held-out states: mean and standard deviation over the seeds, in points.",
        "The recipe has T 1.0, clip 0.2 / 0.28, groups of 8, dynamic sampling. Every other line changes one of them.",
        "",
        "| head, variant | seeds | start | at equal updates, per seed | at equal episodes, per seed |",
        "|---|---|---|---|---|",
    ]
    for (head, name), found in of.items():
        cells = (", ".join(f"{row[key]:.1%}" for row in found) for key in ("sft_success", *ENDS))
        lines.append(f"| {head}, {name} | {', '.join(str(row['seed']) for row in found)} | {' | '.join(cells)} |")
    commits = ", ".join(dict.fromkeys(row["commit"][:12] for row in rows))
    lines += [
        "",
        f"- Command: `python -m benchmarks.experiments.{NAME} --seeds {' '.join(map(str, seeds))}`. Machine: {machines(rows)}. Data: `{NAME}.json`.",
        f"- Commits: {commits}. The nano policy, six table-top tasks, imitation of {DEMONSTRATIONS} demonstrations, one imitator for a head and a seed.",
    ]
    return "\n".join(lines) + "\n"


ENDS = ("success_at_equal_updates", "success_at_equal_episodes")


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """A mark for each seed and a bar for the mean, for both ends; the start is a dotted line."""
    of = grouped(rows)
    figure, panels = plt.subplots(1, 2, figsize=(10, 0.8 + 0.35 * len(of)), sharey=True, layout="constrained")
    for axes, key in zip(panels, ENDS, strict=True):
        for place, found in enumerate(of.values()):
            values = [100 * row[key] for row in found]
            axes.barh(place, np.mean(values), color="0.85")
            axes.plot([100 * mean(found, "sft_success")] * 2, [place - 0.4, place + 0.4], color="grey", linestyle=":")
            axes.plot(values, [place] * len(values), "o", color=f"C{list(VARIANTS).index(found[0]['head'])}")
        axes.set(xlabel=key.replace("_", " ") + ", %", xlim=(0, None))
    panels[0].set_yticks(range(len(of)), [f"{head}, {name}" for head, name in of])
    panels[0].invert_yaxis()
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
