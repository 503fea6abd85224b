"""Rollouts on Ray beside the local pool, interleaved: `python -m benchmarks.speed.ray_rollout`.

`tabletop`, the half-trained nano policy, the same groups; the local engine's two workers against one Ray actor with two
workers, and two actors with one each. Each side has its engine only while it is measured. Writes docs/results/ray_rollout.json
and .md.
"""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.speed.rollout_benchmarks import TABLETOP_ROLLOUT, roll_out
from benchmarks.support.half_trained import TABLETOP, half_trained, requests
from benchmarks.support.machine import this_machine
from simplevla import recipes
from simplevla.config import RayConfig, RolloutConfig
from simplevla.distributed.engine import RayEngine
from simplevla.evaluation.provenance import commit
from simplevla.recipes import tabletop
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.storage import write_atomically, write_json

RESULTS = Path(__file__).parents[2] / "docs" / "results"
GROUPS, REPETITIONS = 64, 5
SIDES: dict[str, tuple[int, RolloutConfig]] = {
    "local": (0, TABLETOP_ROLLOUT),
    "ray, one actor with two workers": (1, replace(TABLETOP_ROLLOUT, workers=2)),
    "ray, two actors with one worker": (2, replace(TABLETOP_ROLLOUT, workers=1)),
}


def main() -> None:
    policy = half_trained(TABLETOP)
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    for repetition in range(REPETITIONS):
        for side, (actors, rollout) in SIDES.items():
            config = replace(recipes.TRAIN[TABLETOP](), rollout=rollout, ray=RayConfig(actors=actors))
            made = RayEngine(config, policy) if actors else RolloutEngine(tabletop.SUITE, rollout, policy.chunk_length)
            with made as engine:
                roll_out(engine, policy, requests(tabletop.SUITE, 8, seed=1000))
                started = time.perf_counter()
                episodes = roll_out(engine, policy, requests(tabletop.SUITE, GROUPS, seed=repetition))
                rates[side].append(len(episodes) / (time.perf_counter() - started))
    ratios = {side: float(np.median(np.array(values) / np.array(rates["local"]))) for side, values in rates.items()}
    result = {
        "episodes_per_s": rates,
        "median_ratio_to_local": ratios,
        "repetitions": REPETITIONS,
        "commit": commit(),
        "machine": this_machine(),
    }
    write_json(RESULTS / "ray_rollout.json", result)
    rows = "\n".join(
        f"| {side} | {np.median(values):.1f} ({min(values):.1f} to {max(values):.1f}) | {ratios[side]:.2f} |"
        for side, values in rates.items()
    )
    text = f"""# Rollouts on Ray beside the local pool

Rollouts on Ray reach at least {min(ratios.values()):.2f} times the local pool's episodes per second, on one machine.

| side | episodes/s, median (least to most) | ratio to local, median of pairs |
|---|---|---|
{rows}

- Command: `python -m benchmarks.speed.ray_rollout`. Machine: {result["machine"]}. Commit {result["commit"]}. Data: `ray_rollout.json`.
- `tabletop`, half-trained nano policy, {GROUPS} groups of 8, {REPETITIONS} repetitions in turn.
"""
    write_atomically(RESULTS / "ray_rollout.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
