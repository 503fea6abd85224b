"""Where does RL start to work? Imitators of six amounts of demonstrations and one of a brisker demonstrator, and what RL makes of each:
`python -m benchmarks.experiments.start_against_gain --seeds 0 1 2`, an hour and a half on two cores.

Writes docs/results/start_against_gain.json after each run, and .md and .png at the end. Rows that are there are not measured again, nor
runs that are finished in --runs; so it goes on in another session. Those that were made with other settings are refused. --quick is the
test's, in folders of its own.
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
from simplevla.config import EvalConfig
from simplevla.demonstrations.generate import generate
from simplevla.evaluation.evaluate import evaluate
from simplevla.evaluation.provenance import commit
from simplevla.evaluation.result import read_result, write_result
from simplevla.recipes import tabletop
from simplevla.storage import write_atomically, write_json
from simplevla.training.imitation import sft
from simplevla.training.loop import train
from simplevla.training.runlog import read_rows

RESULTS = Path(__file__).parents[2] / "docs" / "results"
NAME = "start_against_gain"
REWRITTEN = {"6b05742433ff": "e5ecd8cbb087"}
"""Commits that rows name and that aren't there any more -> those that have the same code."""
RECIPE = tabletop.demos()
STARTS = (*((amount, RECIPE.hesitation) for amount in (6, 18, 60, 180, 450, 900)), (900, 0.5))
"""Demonstrations of all six tasks together, of which the recipe has 900, and how often the demonstrator hesitates.

A hesitant one's imitator runs out of time, so that no amount of its demonstrations starts above 52 %.
"""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Where the runs go, which training seeds, and how long RL is."""

    runs: Path = Path("runs/start_against_gain")
    seeds: tuple[int, ...] = (0, 1, 2)
    starts: tuple[tuple[int, float], ...] = STARTS
    updates: int = 20
    out: Path = RESULTS
    quick: bool = False
    """Ten SFT batches and one update of few groups; the figures mean nothing then."""


def settings_of(arguments: Arguments) -> dict[str, Any]:
    """Arguments that change the figures, but for those that a row is found by."""
    chosen = recipe_digest(RECIPE, tabletop.sft(), tabletop.train())
    return {"recipe": chosen, **{key: getattr(arguments, key) for key in ("updates", "quick")}}


def measured(arguments: Arguments, seed: int, amount: int, hesitation: float) -> dict[str, Any]:
    """One imitator before and after RL, on all held-out states."""
    demos = arguments.runs / f"demos_hesitation{hesitation}_seed{seed}"
    run = arguments.runs / f"demos{amount}_hesitation{hesitation}_seed{seed}"
    demos_config = replace(RECIPE, seed=seed, hesitation=hesitation)
    sft_config = replace(
        tabletop.sft(), dataset=str(demos), episodes=f"0:{amount}", seed=seed, eval_episodes_per_task=0
    )
    config = replace(
        tabletop.train(), policy=str(run / "sft" / "policy"), updates=arguments.updates, seed=seed, eval_every=0
    )
    evaluation = EvalConfig()
    if arguments.quick:
        demos_config = replace(demos_config, episodes=max(amount for amount, _ in arguments.starts))
        sft_config = replace(sft_config, batches=10, batch_size=32)
        config = replace(config, minibatches=1, sampling=replace(config.sampling, groups=2, group_size=2))
        evaluation = EvalConfig(episodes_per_task=1)
    generate(demos_config, demos, progress=False)
    if not (run / "sft" / "policy").exists():
        sft(sft_config, run / "sft", resume=(run / "sft" / "config.json").exists())
    if not (run / "rl" / "policy").exists():
        print(train(config, run / "rl", resume=(run / "rl" / "config.json").exists()).message)
    rates = {}
    for stage, folder in (("sft", run / "sft" / "policy"), ("rl", run / "rl" / "policy")):
        if not (run / f"{stage}.json").exists():
            write_result(run / f"{stage}.json", evaluate(folder, config.suite, config.rollout, evaluation))
        rates[stage] = read_result(run / f"{stage}.json").overall
    # Without any mixed group RL ends before its first row, with the policy that it had.
    rows = read_rows(run / "rl") or [{"update": 0}]
    return {
        "seed": seed,
        "demos": amount,
        "hesitation": hesitation,
        "n": rates["rl"].n,
        "sft_success": rates["sft"].rate,
        "rl_success": rates["rl"].rate,
        "first_sampled_success": next((row["train_success"] for row in rows if "train_success" in row), None),
        "updates": rows[-1]["update"],
        "episodes": rows[-1].get("episodes_total", 0),
        "sft_batches": sft_config.batches,
        "settings": settings_of(arguments),
        "commit": commit(),
        "machine": this_machine(),
    }


def main(arguments: Arguments) -> None:
    arguments = quick_apart(arguments, NAME)
    file, settings = arguments.out / f"{NAME}.json", settings_of(arguments)
    rows = read_recorded(file, settings)
    for seed in arguments.seeds:
        for start in arguments.starts:
            if any((row["seed"], *start_of(row)) == (seed, *start) for row in rows):
                continue
            claim_runs(arguments.runs, settings)
            rows.append(measured(arguments, seed, *start))
            rows.sort(key=lambda row: (-row["hesitation"], row["demos"], row["seed"]))
            write_json(file, rows)
    write_atomically(arguments.out / f"{NAME}.md", page(rows, arguments).encode())
    plot(rows, arguments.out / f"{NAME}.png")


def start_of(row: dict[str, Any]) -> tuple[int, float]:
    """The row's entry of `STARTS`."""
    return row["demos"], row["hesitation"]


def named(start: tuple[int, float]) -> str:
    """Number of demonstrations, and the demonstrator's hesitation where it isn't the recipe's."""
    return f"{start[0]}" + (f", hesitation {start[1]}" if start[1] != RECIPE.hesitation else "")


def page(rows: list[dict[str, Any]], arguments: Arguments) -> str:
    """The result as Markdown."""
    of = {start: [row for row in rows if start_of(row) == start] for start in dict.fromkeys(map(start_of, rows))}
    mean = {
        start: tuple(float(np.mean([row[f"{stage}_success"] for row in of[start]])) for stage in ("sft", "rl"))
        for start in of
    }
    most = max(of, key=lambda start: mean[start][1] - mean[start][0])
    low = min(of, key=lambda start: mean[start][0])
    seeds = len({row["seed"] for row in rows})
    lines = [
        "# Where RL starts to work",
        "",
        f"From {named(low)} demonstrations RL goes from {mean[low][0]:.0%} to {mean[low][1]:.0%}, and the most is gained from {named(most)}: "
        f"{mean[most][0]:.0%} to {mean[most][1]:.0%} ({seeds} training seeds, n = {rows[0]['n']} each).",
        "",
        "| demonstrations | after SFT, mean | after RL, mean | gain, per seed | sampled success at the start |",
        "|---|---|---|---|---|",
    ]
    for start, found in of.items():
        gains = ", ".join(f"{100 * (row['rl_success'] - row['sft_success']):+.0f}" for row in found)
        sampled = np.mean([row["first_sampled_success"] or 0.0 for row in found])
        lines.append(f"| {named(start)} | {mean[start][0]:.1%} | {mean[start][1]:.1%} | {gains} | {sampled:.1%} |")
    lines += [
        "",
        f"![success before and after RL]({NAME}.png)",
        "",
        "| demonstrations | seed | after SFT (95 % Wilson) | after RL (95 % Wilson) | episodes |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = " | ".join(interval(row[f"{stage}_success"], row["n"]) for stage in ("sft", "rl"))
        lines.append(f"| {named(start_of(row))} | {row['seed']} | {cells} | {row['episodes']} |")
    short = dict.fromkeys(row["commit"][:12] for row in rows)
    commits = ", ".join(f"{name} (now {REWRITTEN[name]})" if name in REWRITTEN else name for name in short)
    lines += [
        "",
        f"- Command: `python -m benchmarks.experiments.{NAME} --updates {arguments.updates}`. Machine: {machines(rows)}. Data: `{NAME}.json`.",
        f"- Commits: {commits}. The nano policy, six table-top tasks, {rows[0]['sft_batches']} batches of SFT whatever the amount.",
        f"- RL is the recipe `tabletop_nano` with {arguments.updates} updates. Success is greedy, on held-out states.",
        f"- The demonstrator moves at half speed in {RECIPE.hesitation:.0%} of its env steps, or in the share that is named as hesitation.",
        "- The paper's own figures on RoboTwin: 0 stays 0, 7.3 becomes 25.4, 28.2 becomes 50.4 (arXiv 2509.09674).",
    ]
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Success after RL against success before, a mark for each run."""
    figure, axes = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
    for number, start in enumerate(dict.fromkeys(map(start_of, rows))):
        marks = [(100 * row["sft_success"], 100 * row["rl_success"]) for row in rows if start_of(row) == start]
        axes.scatter(*np.array(marks).T, color=f"C{number}", label=named(start))
    axes.plot([0, 100], [0, 100], color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="success after SFT, %", ylabel="success after RL, %", xlim=(0, 100), ylim=(0, 100))
    axes.legend(loc="lower right", title="demonstrations")
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
