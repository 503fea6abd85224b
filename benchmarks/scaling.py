"""How rollouts and updates scale, and how well the cost model knows it: `python benchmarks/scaling.py`, about ten minutes.

Writes docs/results/scaling.json, .md and .png.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from cost_model import Counts, SimulatorCost, measure_policy, measure_simulator, rollout_seconds, usual_rows
from half_trained import LIBERO, TABLETOP, half_trained, recorded_plans, requests
from rollout_benchmarks import LIBERO_ROLLOUT, LITE_FAST, STOCK, STOCK_ROLLOUT, roll_out
from update_benchmarks import CONFIG, half_trained_groups, ours_per_second

from simplevla.config import RolloutConfig, SuiteConfig
from simplevla.evaluation.provenance import commit, write_atomically, write_json
from simplevla.policies.base import Policy
from simplevla.policies.tinyvla.config import DiffusionConfig, LanguageConfig, VisionConfig
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.policies.tinyvla.presets import PRESETS
from simplevla.recipes import libero, tabletop
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.suites.registry import make_suite
from simplevla.types import EpisodeRequest

RESULTS = Path(__file__).parent.parent / "docs" / "results"
ROLLOUT = tabletop.train().rollout
WORKERS = (1, 2, 4, 8, 16)
IMAGE_SIZES = (32, 64, 128, 256)
HORIZONS = (0.5, 1.0, 2.0, 4.0)
WIDTHS = (64, 128, 256, 512)
MEMORY_EPISODES = (64, 128, 256, 512)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting, measured and predicted."""

    curve: str
    x: float
    measured: float
    """Env steps/s."""
    predicted: float


def rolled_out(
    suite: SuiteConfig, rollout: RolloutConfig, policy: Policy, groups: int, stretch: float = 1.0
) -> tuple[Counts, float]:
    """What was rolled out and in how many seconds, after unmeasured groups; horizons times `stretch`."""

    def wanted(count: int, seed: int) -> Iterator[list[EpisodeRequest]]:
        for group in requests(suite, count, seed):
            yield [replace(one, task=replace(one.task, horizon=int(one.task.horizon * stretch))) for one in group]

    with RolloutEngine(suite, rollout, policy.chunk_length) as engine:
        # LIBERO builds its scenes when they are first used.
        warm_up = groups if make_suite(suite).one_environment_per_process else 2
        roll_out(engine, policy, wanted(warm_up, seed=8))
        engine.reset_stats()
        started = time.perf_counter()
        roll_out(engine, policy, wanted(groups, seed=8))
        seconds = time.perf_counter() - started
        stats = engine.stats
    return Counts(env_steps=stats.env_steps, decisions=stats.decisions, episodes=stats.episodes), seconds


def point(
    curve: str,
    x: float,
    policy: Policy,
    simulator: SimulatorCost,
    handling: float,
    *,
    suite: SuiteConfig = tabletop.SUITE,
    rollout: RolloutConfig = ROLLOUT,
    groups: int = 48,
    stretch: float = 1.0,
) -> Point:
    counts, seconds = rolled_out(suite, rollout, policy, groups, stretch)
    workers = rollout.workers or len(os.sched_getaffinity(0))
    rows = usual_rows(rollout, workers, make_suite(suite).one_environment_per_process)
    costs = measure_policy(policy, suite, max(2, round(rows)))
    expected = rollout_seconds(counts, simulator, costs, handling, workers, rows)
    one = Point(curve=curve, x=x, measured=counts.env_steps / seconds, predicted=counts.env_steps / expected)
    print(f"{curve} {x:g}: {one.measured:.0f} env steps/s, predicted {one.predicted:.0f}", flush=True)
    return one


def handling_seconds(policy: Policy, simulator: SimulatorCost) -> float:
    """Per decision, what the parts don't explain with one worker per core and 64 environments (median of 3); all other
    settings are predicted with it."""
    workers = len(os.sched_getaffinity(0))
    rollout = replace(ROLLOUT, workers=workers, slots_per_worker=64 // workers)
    rows = usual_rows(rollout, workers, False)
    unexplained = []
    for _ in range(3):
        counts, seconds = rolled_out(tabletop.SUITE, rollout, policy, 48)
        costs = measure_policy(policy, tabletop.SUITE, round(rows))
        known = rollout_seconds(counts, simulator, costs, 0.0, workers, rows)
        unexplained.append((seconds - known) * workers / counts.decisions)
    return max(0.0, float(np.median(unexplained)))


def sized(width: int) -> TinyVLA:
    """A random policy; only its cost matters."""
    language = LanguageConfig(hidden_size=width, mlp_size=2 * width)
    PRESETS["sized"] = lambda: (VisionConfig(summary=True), language, DiffusionConfig())
    nano = half_trained(TABLETOP)
    assert isinstance(nano, TinyVLA)
    return TinyVLA.create(
        "sized",
        cameras=nano.cameras,
        state_dim=nano.state_dim,
        action_dim=nano.action_dim,
        chunk_length=nano.chunk_length,
        instructions=[task.instruction for task in make_suite(tabletop.SUITE).tasks],
        statistics=nano.statistics,
    )


def rollout_points(constants: dict) -> Iterator[Point]:
    """All settings, one after another; leaves what was measured alone in `constants`."""
    policy = half_trained(TABLETOP)
    plans = recorded_plans(policy, tabletop.SUITE, ROLLOUT, 6)
    simulator = measure_simulator(tabletop.SUITE, plans)
    handling = handling_seconds(policy, simulator)
    constants |= {"tabletop": asdict(simulator), "handling": handling}
    constants["nano"] = asdict(measure_policy(policy, tabletop.SUITE, 128))
    for workers in WORKERS:
        rollout = replace(ROLLOUT, workers=workers, slots_per_worker=max(2, 64 // workers))
        yield point("workers", workers, policy, simulator, handling, rollout=rollout)
    for size in IMAGE_SIZES:
        suite = replace(tabletop.SUITE, image_size=size)
        costs = measure_simulator(suite, plans)
        yield point("image side, pixels", size, policy, costs, handling, suite=suite, groups=24)
    for stretch in HORIZONS:
        yield point("horizon, times the recipe's", stretch, policy, simulator, handling, stretch=stretch)
    for width in WIDTHS:
        random = sized(width)
        millions = sum(p.numel() for p in random.parameters()) / 1e6
        yield point("policy, million parameters", millions, random, simulator, handling, groups=16)
    policy = half_trained(LIBERO)
    plans = recorded_plans(policy, LITE_FAST, LIBERO_ROLLOUT, 4)
    for number, (suite, rollout, groups) in enumerate(
        ((STOCK, STOCK_ROLLOUT, 1), (libero.SUITE, LIBERO_ROLLOUT, 4), (LITE_FAST, LIBERO_ROLLOUT, 4))
    ):
        costs = measure_simulator(suite, plans[::16])
        constants[f"LIBERO {suite.visuals}, {suite.stepping or 'stock'} stepping"] = asdict(costs)
        yield point(
            "LIBERO: stock, lite, lite + fast",
            number,
            policy,
            costs,
            handling,
            suite=suite,
            rollout=rollout,
            groups=groups,
        )


def update_seconds() -> list[tuple[int, float]]:
    """(decisions, seconds of an update), median of 3."""
    policy, groups, _ = half_trained_groups()
    rows = []
    for count in (4, 8, 16, len(groups), 2 * len(groups), 4 * len(groups)):
        some = (groups * 4)[:count]
        decisions = sum(len(episode.executed) for episode in chain.from_iterable(some))
        times = [decisions / ours_per_second(policy, some, decisions) for _ in range(3)]
        rows.append((decisions, float(np.median(times))))
        print(f"update of {decisions} decisions: {rows[-1][1]:.2f} s", flush=True)
    return rows


def memory(kind: str, episodes: int, stretch: float = 1.0) -> dict:
    """Peak of a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("update_memory.py")), kind, str(episodes), str(stretch)]
    row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    print(row, flush=True)
    return row


def main() -> None:
    constants: dict = {}
    points = list(rollout_points(constants))
    updates = update_seconds()
    peaks = [memory("ours", episodes) for episodes in MEMORY_EPISODES]
    peaks += [memory("ours", 512, stretch=8.0), memory("padded", 128), memory("padded", 128, stretch=8.0)]
    (few, quick), (many, slow) = updates[0], updates[-1]
    per_decision = (slow - quick) / (many - few)
    constant = quick - few * per_decision
    result = {
        "points": [asdict(one) for one in points],
        "constants_s": constants,
        "updates": updates,
        "update_model": {"per_decision_s": per_decision, "constant_s": constant},
        "memory": peaks,
        "microbatch_decisions": CONFIG.microbatch_decisions,
        "commit": commit(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
    }
    write_json(RESULTS / "scaling.json", result)
    plot(points, updates, result["update_model"])
    write_atomically(RESULTS / "scaling.md", page(result).encode())


def plot(points: list[Point], updates: list[tuple[int, float]], model: dict) -> None:
    curves = list(dict.fromkeys(one.curve for one in points))
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.5), layout="constrained")
    for axis, curve in zip(axes.flat, curves, strict=False):
        some = [one for one in points if one.curve == curve]
        labels = curve.startswith("LIBERO")
        axis.plot([one.x for one in some], [one.measured for one in some], "o" if labels else "o-", label="measured")
        axis.plot([one.x for one in some], [one.predicted for one in some], "x" if labels else "x--", label="model")
        if labels:
            axis.set_xticks(range(3), ["stock", "lite", "lite + fast"])
        else:
            axis.set_xscale("log", base=2)
            axis.set_xticks([one.x for one in some], [f"{one.x:.3g}" for one in some])
        axis.set(xlabel=curve, ylabel="env steps/s")
        axis.set_ylim(bottom=0)
        axis.legend()
    axis = axes.flat[len(curves)]
    decisions = [count for count, _ in updates]
    axis.plot(decisions, [seconds for _, seconds in updates], "o-", label="measured")
    expected = [model["constant_s"] + model["per_decision_s"] * count for count in decisions]
    axis.plot(decisions, expected, "x--", label="model")
    axis.set(xlabel="valid decisions of an update", ylabel="s")
    axis.legend()
    figure.savefig(RESULTS / "scaling.png", dpi=110)


def page(result: dict) -> str:
    rows = [
        f"| {one['curve']} | {one['x']:.3g} | {one['measured']:.0f} | {one['predicted']:.0f} "
        f"| {100 * (one['predicted'] / one['measured'] - 1):+.0f} % |"
        for one in result["points"]
    ]
    constants = "\n".join(
        f"- {name}: " + ", ".join(f"{part} {1e3 * seconds:.3f}" for part, seconds in costs.items())
        if isinstance(costs, dict)
        else f"- {name}: {1e3 * costs:.3f}"
        for name, costs in result["constants_s"].items()
    )
    model = result["update_model"]
    updates = []
    for count, seconds in result["updates"]:
        expected = model["constant_s"] + model["per_decision_s"] * count
        updates.append(f"| {count} | {seconds:.2f} | {expected:.2f} | {100 * (expected / seconds - 1):+.0f} % |")
    peaks = [
        f"| {row['kind']} | {row['episodes']} | {row['stretch']:g} | {row['decisions']} | {row['stored_mb']:.0f} | {row['peak_mb']:.0f} |"
        for row in result["memory"]
    ]
    return f"""# How rollouts and updates scale

Command: `python benchmarks/scaling.py`. Machine: {result["machine"]}. Commit {result["commit"]}. `tabletop` with the half-trained nano policy (benchmarks/half_trained.py), recipe
`{TABLETOP}`, one run per point; LIBERO with the supervised policy of `{LIBERO}`. The model is docs/performance.md's. Data: `scaling.json`.

![curves](scaling.png)

| curve | x | env steps/s | model | error |
|---|---|---|---|---|
{chr(10).join(rows)}

With 64 environments in all for 1 to 16 workers. LIBERO: 0 is stock, 1 lite, 2 lite + fast.

The constants of the model, in milliseconds of one core, each measured alone but `handling`, which is fitted to one setting:

{constants}

## Updates

Four mini-batches, micro-batches of {result["microbatch_decisions"]} decisions, two threads. The model is a line through the first and the last row: {1e3 * model["per_decision_s"]:.3f} ms per decision and {1e3 * model["constant_s"]:.0f} ms.

| decisions | s | model | error |
|---|---|---|---|
{chr(10).join(updates)}

## Memory

Peak resident memory of a process that holds the episodes and takes one update, less what it had with the policy loaded. `padded` is the reference's update (benchmarks/reference.py). The third column
multiplies the horizon, whose unused part ours never sees.

| update | episodes | horizon | valid decisions | stored, MB | peak, MB |
|---|---|---|---|---|---|
{chr(10).join(peaks)}
"""


if __name__ == "__main__":
    main()
