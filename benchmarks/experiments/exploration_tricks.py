"""The three exploration tricks and their absence, from the same supervised policies, seeds and number of updates:
`python -m benchmarks.experiments.exploration_tricks --seeds 0 1 2` after benchmarks/experiments/training_seeds.py has made the policies.

Writes docs/results/exploration_tricks.json, .md and .png. Runs that are finished in --runs are not run again.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
import tyro

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.support.machine import this_machine
from simplevla.config import EvalConfig, TrainConfig
from simplevla.evaluation.evaluate import evaluate
from simplevla.evaluation.provenance import commit
from simplevla.evaluation.result import read_result, write_result
from simplevla.recipes import tabletop
from simplevla.storage import write_atomically, write_json
from simplevla.training.loop import train
from simplevla.training.runlog import read_rows

RESULTS = Path(__file__).parents[2] / "docs" / "results"
Variants = dict[str, tuple[str, Callable[[TrainConfig], TrainConfig]]]
"""Name -> (title, what it changes in the recipe)."""
VARIANTS: Variants = {
    "recipe": ("T 1.0, clip 0.2 / 0.28, dynamic sampling", lambda c: c),
    "static": ("without dynamic sampling", lambda c: replace(c, sampling=replace(c.sampling, dynamic=False))),
    "clip02": ("clip 0.2 both ways", lambda c: replace(c, loss=replace(c.loss, clip_high=0.2))),
    "T1.6": ("temperature 1.6", lambda c: replace(c, sampling=replace(c.sampling, temperature=1.6))),
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Where the runs go, which seeds, and how long."""

    runs: Path = Path("runs")
    seeds: tuple[int, ...] = (0, 1, 2)
    updates: int = 20


def run_one(run: Path, name: str, variants: Variants, seed: int, arguments: Arguments) -> dict:
    """One variant with one seed: curve on train states while training, success on the held-out states at the end."""
    config = variants[name][1](replace(tabletop.train(), updates=arguments.updates, seed=seed, eval_every=5))
    config = replace(config, policy=str(arguments.runs / f"tabletop_nano_seed{seed}" / "sft" / "policy"))
    final = run / "eval" / f"test_{arguments.updates}.json"
    if not final.exists():
        stopped = train(config, run, resume=(run / "config.json").exists())
        print(name, seed, stopped.message)
        write_result(final, evaluate(run / "policy", config.suite, config.rollout, EvalConfig()))
    rows = read_rows(run)
    rate = read_result(final).overall
    return {
        "variant": name,
        "seed": seed,
        "test_success": rate.rate,
        "wilson": [rate.low, rate.high],
        "n": rate.n,
        "updates": rows[-1]["update"],
        "episodes": rows[-1].get("episodes_total", 0),
        "minutes": rows[-1].get("elapsed_s", 0.0) / 60,
        "sampled_per_kept": float(np.mean([row["sampled_per_kept"] for row in rows if "sampled_per_kept" in row])),
        "curve": [[row.get("episodes_total", 0), row["eval_success"]] for row in rows if "eval_success" in row],
    }


def main(arguments: Arguments) -> None:
    measure("exploration_tricks", "The exploration tricks and their absence", "tricks", VARIANTS, arguments)


def measure(script: str, title: str, prefix: str, variants: Variants, arguments: Arguments) -> None:
    """Run all variants with all seeds, then write the page called `script`."""
    runs = [
        run_one(arguments.runs / f"{prefix}_{name}_seed{seed}", name, variants, seed, arguments)
        for seed in arguments.seeds
        for name in variants
    ]
    result = {
        "command": f"python -m benchmarks.experiments.{script} --seeds {' '.join(map(str, arguments.seeds))} "
        f"--updates {arguments.updates}",
        "machine": this_machine(),
        "commit": commit(),
        "runs": runs,
    }
    write_json(RESULTS / f"{script}.json", result)
    write_atomically(RESULTS / f"{script}.md", page(script, title, variants, result).encode())
    plot(RESULTS / f"{script}.png", variants, runs)


def page(script: str, title: str, variants: Variants, result: dict) -> str:
    means = {
        text: np.mean([run["test_success"] for run in result["runs"] if run["variant"] == name])
        for name, (text, _) in variants.items()
    }
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    seeds = {run["seed"] for run in result["runs"]}
    # Records of before 2026-11 have no `sampled_per_kept`.
    costs = {"minutes": "minutes per run", "sampled_per_kept": "groups sampled per kept one"}
    costs = {key: head for key, head in costs.items() if key in result["runs"][0]}
    lines = [
        f"# {title}",
        "",
        f'Mean held-out success is lowest with "{low}", {means[low]:.1%}, and highest with "{high}", {means[high]:.1%} '
        f"({len(seeds)} training seeds).",
        "",
        "| variant | success per seed | mean | std | episodes per run |",
        "|---|---|---|---|---|",
    ]
    more = [f"| variant | {' | '.join(costs.values())} |", "|---" * (1 + len(costs)) + "|"]
    for name, (text, _) in variants.items():
        rows = [run for run in result["runs"] if run["variant"] == name]
        rates = [run["test_success"] for run in rows]
        each = ", ".join(f"{rate:.1%}" for rate in rates)
        std = f"{np.std(rates, ddof=1):.1%}" if len(rates) > 1 else "-"
        episodes = np.mean([run["episodes"] for run in rows])
        lines.append(f"| {text} | {each} | {np.mean(rates):.1%} | {std} | {episodes:.0f} |")
        more.append(f"| {text} | {' | '.join(f'{np.mean([run[key] for run in rows]):.2f}' for key in costs)} |")
    lines += [
        "",
        f"![success against episodes]({script}.png)",
        "",
        *more,
        "",
        f"- Command: `{result['command']}`. Machine: {result['machine']}. Commit {result['commit'][:12]}. Data: `{script}.json`.",
        "- For each seed every variant starts from the same supervised policy and takes the same number of updates.",
        f"- Success is greedy, on {result['runs'][0]['n']} held-out initial states for each run.",
    ]
    return "\n".join(lines) + "\n"


def plot(file: Path, variants: Variants, runs: list[dict]) -> None:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for number, (name, (title, _)) in enumerate(variants.items()):
        for i, run in enumerate(run for run in runs if run["variant"] == name):
            x, y = np.array(run["curve"]).reshape(-1, 2).T
            axes.plot(x, 100 * y, f"C{number}", alpha=0.8, marker=".", label=title if i == 0 else None)
    axes.set(xlabel="RL episodes", ylabel="greedy success on train states, %", ylim=(0, 100))
    axes.legend()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
