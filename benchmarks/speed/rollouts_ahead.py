"""Rollouts in turn with the updates and ahead of them, from the same supervised policies, seeds and number of updates:
`python -m benchmarks.speed.rollouts_ahead --seeds 0 1 2 --updates 15` after benchmarks/experiments/training_seeds.py has made the policies.

Writes docs/results/rollouts_ahead.json and .md. Runs that are finished in --runs are not run again.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import tyro

from benchmarks.experiments.exploration_tricks import RESULTS, Arguments, Variants, run_one
from benchmarks.support.machine import this_machine
from simplevla.evaluation.provenance import commit
from simplevla.storage import read_json, write_atomically, write_json
from simplevla.training.runlog import read_rows

VARIANTS: Variants = {
    "in_turn": ("in turn", lambda c: c),
    "ahead": ("ahead", lambda c: replace(c, rollouts_ahead=True)),
}
MEANS = ("collect_s", "rollout_wait_s", "update_s", "logprob_gap", "ratio_outside")


def sft_folder(arguments: Arguments, seed: int) -> Path:
    return arguments.runs / f"tabletop_nano_seed{seed}" / "sft"


def main(arguments: Arguments) -> None:
    runs = []
    for seed in arguments.seeds:
        for name in VARIANTS:
            run = arguments.runs / f"ahead_{name}_seed{seed}"
            row = run_one(run, name, VARIANTS, seed, arguments)
            updates = [metrics for metrics in read_rows(run) if metrics["update"] > 0]
            loop_s = sum(metrics["rollout_wait_s"] + metrics["update_s"] for metrics in updates)
            runs.append(row | {key: float(np.mean([m[key] for m in updates])) for key in MEANS} | {"loop_s": loop_s})
    result = {
        "runs": runs,
        "updates": arguments.updates,
        "commit": commit(),
        "commits_of_supervised_policies": sorted(
            {read_json(sft_folder(arguments, seed) / "environment.json")["commit"] for seed in arguments.seeds}
        ),
        "machine": this_machine(),
    }
    write_json(RESULTS / "rollouts_ahead.json", result)
    lines, parts, success, whole = [], [], [], []
    for name, (title, _) in VARIANTS.items():
        some = [run for run in runs if run["variant"] == name]
        each = ", ".join(f"{100 * run['test_success']:.1f}" for run in some)
        seconds = ", ".join(f"{run['loop_s']:.0f}" for run in some)
        means = {key: np.mean([run[key] for run in some]) for key in ("test_success", *MEANS)}
        success.append(100 * means["test_success"])
        whole.append(np.mean([run["loop_s"] for run in some]))
        lines.append(f"| {title} | {each} | {success[-1]:.1f} | {seconds} | {100 * means['ratio_outside']:.2f} |")
        parts.append(
            f"| {title} | {means['collect_s']:.2f} | {means['rollout_wait_s']:.2f} | {means['update_s']:.2f} | {means['logprob_gap']:.4f} |"
        )
    text = f"""# Rollouts ahead of the update

With rollouts ahead of the update a run takes {whole[1]:.0f} s instead of {whole[0]:.0f} s, and held-out success ends at {success[1]:.1f} % instead of {success[0]:.1f} % (means of {len(arguments.seeds)} seeds).

| rollouts | success per seed, % | mean | s per run | ratio outside of the clip, % |
|---|---|---|---|---|
{chr(10).join(lines)}

For each update:

| rollouts | rollout, s | waited for it, s | update, s | gap before the first step, nats |
|---|---|---|---|---|
{chr(10).join(parts)}

- Command: `python -m benchmarks.speed.rollouts_ahead --seeds {" ".join(map(str, arguments.seeds))} --updates {arguments.updates}`. Machine: {result["machine"]}. Commit {result["commit"]}. Data: `rollouts_ahead.json`.
- `tabletop_nano`. Both variants of a seed start from the same supervised policy (trained at {", ".join(c[:12] for c in result["commits_of_supervised_policies"])}) and ran one after the other.
- Success is greedy, on {runs[0]["n"]} held-out initial states for each run. Seconds are of rollouts and updates, without evaluations and checkpoints.
"""
    write_atomically(RESULTS / "rollouts_ahead.md", text.encode())
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
