"""The curves and the page of benchmarks/speed/scaling.py, from what it measured."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.support.half_trained import LIBERO, TABLETOP


def plot(result: dict, file: Path) -> None:
    points, updates, model = result["points"], result["updates"], result["update_model"]
    curves = list(dict.fromkeys(one["curve"] for one in points))
    figure, axes = plt.subplots(2, 3, figsize=(9, 5.6), layout="constrained")
    for axis, curve in zip(axes.flat, curves, strict=False):
        some = [one for one in points if one["curve"] == curve]
        labels = curve.startswith("LIBERO")
        axis.plot(
            [one["x"] for one in some], [one["measured"] for one in some], "o" if labels else "o-", label="measured"
        )
        axis.plot(
            [one["x"] for one in some], [one["predicted"] for one in some], "x" if labels else "x--", label="model"
        )
        if labels:
            axis.set_xticks(range(3), ["stock", "lite", "lite + fast"])
        else:
            axis.set_xscale("log", base=2)
            axis.set_xticks([one["x"] for one in some], [f"{one['x']:.3g}" for one in some])
        axis.set(xlabel=curve, ylabel="env steps/s")
        axis.set_ylim(bottom=0)
        axis.legend()
    axis = axes.flat[len(curves)]
    decisions = [count for count, _ in updates]
    axis.plot(decisions, [seconds for _, seconds in updates], "o-", label="measured")
    expected = [model["constant"] + model["per_decision"] * count for count in decisions]
    axis.plot(decisions, expected, "x--", label="model")
    axis.set(xlabel="valid decisions of an update", ylabel="s")
    axis.legend()
    figure.savefig(file, dpi=130)


def page(result: dict) -> str:
    rows = [
        f"| {one['curve']} | {one['x']:.3g} | {one['measured']:.0f} | {one['predicted']:.0f} "
        f"| {100 * (one['predicted'] / one['measured'] - 1):+.0f} % |"
        for one in result["points"]
    ]
    errors = [abs(one["predicted"] / one["measured"] - 1) for one in result["points"]]
    close = sum(error <= 0.2 for error in errors)
    constants = [
        f"| {one['curve']} | {one['x']:.3g} | "
        + " | ".join(f"{1e3 * one['simulator'][part]:.3f}" for part in ("step", "observe", "reset"))
        + f" | {1e3 * one['policy']['batch']:.3f} | {1e3 * one['policy']['row']:.3f} | {one['rollout']['worker_mb']:.0f} | {100 * max(0, one['rollout']['others']):.0f} % |"
        for one in result["points"]
    ]
    others = [
        f"| {key} | " + " | ".join(f"{1e3 * cost[part]:.3f}" for part in ("step", "observe", "reset")) + " |"
        for key, cost in result["other_simulators_s"].items()
    ]
    wholes = [
        f"| {row['groups']} | {row['env_steps']} | {row['decisions']} | {row['trained_decisions']} | {row['collect_s']:.2f} | {row['update_s']:.2f} | {100 * max(0, row['others']):.0f} % |"
        for row in result["whole_updates"]
    ]
    model = result["update_model"]
    updates = []
    for count, seconds in result["updates"]:
        expected = model["constant"] + model["per_decision"] * count
        updates.append(f"| {count} | {seconds:.2f} | {expected:.2f} | {100 * (expected / seconds - 1):+.0f} % |")
    peaks = [
        f"| {row['kind']} | {row['episodes']} | {row['stretch']:g} | {row['decisions']} | {row['stored_mb']:.0f} | {row['peak_mb']:.0f} |"
        for row in result["memory"]
    ]
    return f"""# How rollouts and updates scale

The cost model's env steps per second are within 20 % in {close} of {len(errors)} settings, and {100 * max(errors):.0f} % off at most.

![curves](scaling.png)

| curve | x | env steps/s | model | error |
|---|---|---|---|---|
{chr(10).join(rows)}

With 64 environments in all for 1 to 16 workers. LIBERO: 0 is stock, 1 lite, 2 lite + fast.

- Command: `python -m benchmarks.speed.scaling`. Machine: {result["machine"]}. Commit {result["commit"]}. Data: `scaling.json`.
- `tabletop` with the half-trained nano policy (benchmarks/support/half_trained.py), recipe `{TABLETOP}`. LIBERO with the supervised policy of `{LIBERO}`. One run per point.
- The model is that of [performance](../performance.md).

## Constants

Milliseconds of one core. Each setting's parts were measured apart from the rollout that is predicted, but beside one another. The same workers replay recorded episodes while the policy
acts, and every process measures its own CPU time. Handling (copies, messages, checks) is the CPU time of the processes of a rollout with two workers and
64 environments that the parts leave over: {1e3 * result["handling_s"]["policy"]:.3f} ms per decision in the policy's process and {1e3 * result["handling_s"]["worker"]:.3f} ms in the worker's. It is used for all settings. No constant is fitted to a rollout's duration.

| curve | x | env step | all cameras, once | reset | policy, per batch | per row | a worker's memory, MB | other processes took |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(constants)}

Simulators of other suites, one worker per core, without a policy:

| suite | env step | all cameras, once | reset |
|---|---|---|---|
{chr(10).join(others)}

## Whole updates

Recipe `{TABLETOP}`, from the half-trained policy on; the three of five that other processes disturbed least.

| groups sampled | env steps | decisions | decisions that train | collection, s | update, s | other processes took |
|---|---|---|---|---|---|---|
{chr(10).join(wholes)}

## Updates

Four mini-batches, micro-batches of {result["microbatch_decisions"]} decisions, two threads. The model is a line through the first and the last row: {1e3 * model["per_decision"]:.3f} ms per decision and {1e3 * model["constant"]:.0f} ms.

| decisions | s | model | error |
|---|---|---|---|
{chr(10).join(updates)}

## Memory

Peak resident memory of a process that holds the episodes and takes one update, less what it had with the policy loaded. `padded` is the reference's update (benchmarks/support/reference.py). The third column
multiplies the horizon. Ours never sees its unused part.

| update | episodes | horizon | valid decisions | stored, MB | peak, MB |
|---|---|---|---|---|---|
{chr(10).join(peaks)}
"""
