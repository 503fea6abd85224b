"""Heads at the same budget: `python -m benchmarks.experiments.heads`, from what benchmarks/experiments/training_seeds.py recorded.

Writes docs/results/heads.md and .png. Heads whose recipe has no result yet are left out.
"""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.support.machine import machines
from simplevla.evaluation.statistics import wilson
from simplevla.storage import read_json, write_atomically

RESULTS = Path(__file__).parents[2] / "docs" / "results"
HEADS = {
    "token": "tabletop_nano",
    "diffusion": "tabletop_nano_diffusion",
    "flow (Flow-SDE)": "tabletop_nano_flow",
    "flow (Flow-Noise)": "tabletop_nano_flow_noise",
    "SmolVLA (Flow-SDE)": "tabletop_smolvla",
    "SmolVLA (Flow-Noise)": "tabletop_smolvla_noise",
}

EQUAL = (10, 20, 30)
"""Updates at which all heads are compared."""


def cell(rate: float, n: int) -> str:
    low, high = wilson(round(rate * n), n)
    return f"{100 * rate:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def at_equal_updates(result: dict) -> list[str]:
    """Greedy success on train states after SFT and after so many updates as EQUAL says, in %: means over the seeds."""
    found = []
    for seed in result["seeds"]:
        evaluated = [success for _, success in seed["curves_of_minutes"]["eval_success"]]
        every, rest = divmod(seed["updates"], max(len(evaluated) - 1, 1))
        places = [update // every if not rest and update % every == 0 else len(evaluated) for update in (0, *EQUAL)]
        found.append([evaluated[place] if place < len(evaluated) else np.nan for place in places])
    return ["–" if np.isnan(success) else f"{100 * success:.1f}" for success in np.mean(found, axis=0)]


def plot(results: dict[str, dict]) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained", sharey=True)
    width = 0.8 / len(results)
    for number, (head, result) in enumerate(results.items()):
        for i, seed in enumerate(result["seeds"]):
            minutes, success = np.array(seed["curves_of_minutes"]["eval_success"]).reshape(-1, 2).T
            label = head if i == 0 else None
            axes[0].plot(minutes, 100 * success, "o-", color=f"C{number}", alpha=0.8, label=label)
        tasks = list(result["success_by_task"]["sft"])
        places = np.arange(len(tasks)) + width * number
        for stage, alpha in (("rl", 1.0), ("sft", 0.85)):
            heights = [100 * result["success_by_task"][stage][task] for task in tasks]
            label = f"{head}, {'SFT + RL' if stage == 'rl' else 'SFT'}"
            axes[1].bar(
                places, heights, 0.95 * width, color=f"C{number}" if stage == "rl" else "0.75", alpha=alpha, label=label
            )
    axes[0].set(xlabel="minutes of RL on 2 cores", ylabel="greedy success, %", ylim=(0, 100), title="train states")
    axes[1].set_xticks(np.arange(len(tasks)) + 0.4 - width / 2, [task.replace("_", "\n") for task in tasks], fontsize=8)
    axes[1].set(title="held-out states (grey: before RL)")
    axes[0].legend(loc="lower right")
    figure.savefig(RESULTS / "heads.png", dpi=140)


def main() -> None:
    files = {head: RESULTS / f"{recipe}.json" for head, recipe in HEADS.items()}
    results = {head: read_json(file) for head, file in files.items() if file.exists()}
    recipes = [result["recipe"] for result in results.values()]
    plot(results)
    rows, means = [], []
    for head, result in results.items():
        for seed in result["seeds"]:
            n = seed["n"]
            rows.append(
                f"| {head} | {seed['seed']} | {cell(seed['sft_success'], n)} | {cell(seed['rl_success'], n)} | {n} | {seed['updates']} "
                f"| {seed['episodes']} | {seed['minutes_sft']:.1f} | {seed['minutes_rl']:.1f} |"
            )
        whole = []
        for stage in ("sft", "rl"):
            row, rates = result["over_seeds"][stage], [seed[f"{stage}_success"] for seed in result["seeds"]]
            spread = f"{100 * np.std(rates, ddof=1):.1f}" if len(rates) > 1 else "one seed"
            whole.append(f"{100 * row['mean']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}], {spread}")
        means.append(f"| {head} | {whole[0]} | {whole[1]} |")
    commits = sorted({seed["commit"][:12] for result in results.values() for seed in result["seeds"]})
    gains = {
        head: 100 * (r["over_seeds"]["rl"]["mean"] - r["over_seeds"]["sft"]["mean"]) for head, r in results.items()
    }
    changes = ", ".join(f"{gain:.0f} ({head})" for head, gain in gains.items())
    numbers = {head: len(result["seeds"]) for head, result in results.items()}
    most = max(numbers.values())
    fewer = [f"{number} for {head}" for head, number in numbers.items() if number < most]
    seeds = f"{most} training seeds each" + (f", but {' and '.join(fewer)}" if fewer else "")
    text = f"""# Heads at the same budget

RL raises held-out success by so many points: {changes}; {seeds}.

| head | SFT: mean [95 % bootstrap over seeds, tasks, episodes], std over seeds | SFT + RL |
|---|---|---|
{chr(10).join(means)}

At equal updates, each of 32 groups of 8 episodes that are learned from: greedy success on 120 train states, mean over the seeds.

| head | after SFT | {" | ".join(f"{update} updates" for update in EQUAL)} |
|---|---{"|---" * len(EQUAL)}|
{chr(10).join(f"| {head} | {' | '.join(at_equal_updates(result))} |" for head, result in results.items())}

![success against minutes, and per task](heads.png)

| head | seed | SFT [95 % Wilson] | SFT + RL [95 % Wilson] | n | updates | episodes | min SFT | min RL |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(rows)}

- Commands: `python -m benchmarks.experiments.training_seeds RECIPE` for the recipes {", ".join(f"`{recipe}`" for recipe in recipes)}, then `python -m benchmarks.experiments.heads`.
- Machine: {machines(list(results.values()))}. Commit {", ".join(commits)}. Data: {", ".join(f"`{recipe}.json`" for recipe in recipes)}.
- All have the same demonstrations, SFT batches, and groups per update. Learning rates in RL and numbers of updates are the recipes'. SmolVLA has two or three times as many updates, and so more episodes than the others; an update of it takes fewer than one of the flow head. Its expert and projections train alone there.
- Success is greedy, in %, on held-out initial states. Greedy is deterministic DDIM from a seeded start for the diffusion head, and Euler's method for a flow head.
- Minutes include what else the machine did.
"""
    write_atomically(RESULTS / "heads.md", text.encode())


if __name__ == "__main__":
    main()
