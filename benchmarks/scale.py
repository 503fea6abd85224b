"""An update past this machine: `python benchmarks/scale.py`, some minutes of one core. Writes docs/results/scale.json and .md.

First the discrete-event simulation and the closed formula against what was measured on two cores (docs/results/scaling.json); then
OpenVLA-OFT on 1, 8 and 64 GPUs with 10 to 1,000 simulators, from costs measured on two cores and assumptions about GPUs.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from rollout_simulation import SLICE_S, Costs, Groups, chunks_of, listed, simulate
from scaling import counted

from simplevla import recipes
from simplevla.config import TrainConfig
from simplevla.evaluation.provenance import commit
from simplevla.planning.cost import Actor, Handling, PolicyCost, SimulatorCost, rollout_parts, rollout_seconds
from simplevla.planning.measured import measured, simulator_key
from simplevla.planning.plan import EPISODE_SHARE, SAMPLED_PER_TRAINED, Machine, Plan, plan
from simplevla.planning.unfilled import published_openvla_oft
from simplevla.recipes import tabletop
from simplevla.storage import read_json, write_atomically, write_json
from simplevla.suites.registry import make_suite

RESULTS = Path(__file__).parent.parent / "docs" / "results"
GPUS = (1, 8, 64)
SIMULATORS = (10, 30, 100, 300, 1000)
CHUNK = {"tabletop": 4, "LIBERO": 8}
HORIZON_MEASURED = 280
"""Of the LIBERO episodes in measured.json."""
RECIPE = "libero_spatial_one_demo"
COARSE_S = 0.05
"""Slices where nothing but the sum counts: a LIBERO chunk takes as long."""
WHOLE_UPDATES = 10
"""Simulated with other random numbers each."""


def checked_rollouts(scaling: dict) -> list[dict]:
    """Every measured setting, by the formula and by the simulation of the very episodes that were measured."""
    handling, rows = Handling(**scaling["handling_s"]), []
    for one in scaling["points"]:
        actor, simulator = Actor(**one["actor"]), SimulatorCost(**one["simulator"])
        costs = Costs(simulator=simulator, policy=PolicyCost(**one["policy"]), handling=handling)
        chunk = CHUNK["LIBERO" if one["curve"].startswith("LIBERO") else "tabletop"]
        episodes = one["rollout"]["episodes"]
        counts = counted(episodes)
        rows.append(
            {
                "curve": one["curve"],
                "x": one["x"],
                "measured_s": one["rollout"]["seconds"],
                "formula_s": rollout_seconds(counts, simulator, costs.policy, handling, actor),
                "simulated_s": simulate(actor, costs, listed([chunks_of(*each, chunk) for each in episodes])),
            }
        )
        print(rows[-1], flush=True)
    return rows


def checked_updates(scaling: dict) -> dict:
    """Whole updates of tabletop_nano with dynamic sampling, simulated with the measured share of mixed groups."""
    known, config = measured(), tabletop.train()
    point = next(one for one in scaling["points"] if one["curve"].startswith("horizon") and one["x"] == 1)
    costs = Costs(
        simulator=SimulatorCost(**point["simulator"]),
        policy=PolicyCost(**point["policy"]),
        handling=Handling(**scaling["handling_s"]),
    )
    mixed = 1 / known.sampled_per_trained
    seconds, sampled = [], []
    for seed in range(WHOLE_UPDATES):
        groups = drawn_groups(config, known.episodes["tabletop"], CHUNK["tabletop"], mixed, seed)
        seconds.append(simulate(Actor(**point["actor"]), costs, groups))
        sampled.append(groups.sampled)
    wholes = scaling["whole_updates"]
    trained = float(np.mean([row["trained_decisions"] for row in wholes]))
    return {
        "measured_collect_s": float(np.mean([row["collect_s"] for row in wholes])),
        "simulated_collect_s": float(np.mean(seconds)),
        "measured_groups": float(np.mean([row["groups"] for row in wholes])),
        "simulated_groups": float(np.mean(sampled)),
        "measured_update_s": float(np.mean([row["update_s"] for row in wholes])),
        "formula_update_s": known.update.constant + known.update.per_decision * trained,
    }


def drawn_groups(config: TrainConfig, episodes: list[tuple[int, int]], chunk: int, mixed: float, seed: int) -> Groups:
    """Dynamic sampling over episodes of given (env steps, decisions)."""
    random = np.random.default_rng(seed)

    def draw() -> list[int]:
        return chunks_of(*episodes[random.integers(len(episodes))], chunk)

    return Groups(
        wanted=config.sampling.groups,
        size=config.sampling.group_size,
        draw=draw,
        mixed=lambda: bool(random.random() < mixed),
    )


def predictions() -> list[dict]:
    """OpenVLA-OFT, all parameters, the paper's update."""
    rows = []
    for visuals, stepping in (("stock", "stock"), ("lite", "fast")):
        suite = replace(recipes.TRAIN[RECIPE]().suite, visuals=visuals, stepping=stepping)
        config = replace(recipes.TRAIN[RECIPE](), suite=suite)
        for gpus in GPUS:
            expected = plan(config, published_openvla_oft(make_suite(suite)), Machine(gpus=gpus, memory_gb=80))
            for simulators in SIMULATORS:
                if simulators >= gpus:
                    rows.append(predicted(config, expected, gpus, simulators // gpus))
                    print(rows[-1], flush=True)
    return rows


def half_trained(episodes: list[tuple[int, int]], horizon: int) -> list[tuple[int, int]]:
    """Measured lengths of solved episodes, and as many that last to `horizon` as the assumed mean length takes."""
    solved = [(steps, decisions) for steps, decisions in episodes if steps < HORIZON_MEASURED]
    mean, target = float(np.mean([steps for steps, _ in solved])), EPISODE_SHARE * horizon
    unsolved = round(len(solved) * max(0.0, target - mean) / (horizon - target))
    return solved + [(horizon, -(-horizon // CHUNK["LIBERO"]))] * unsolved


def predicted(config: TrainConfig, expected: Plan, gpus: int, simulators: int) -> dict:
    """With so many simulators for each GPU."""
    suite = make_suite(config.suite)
    actor = replace(expected.actor, workers=simulators, slots=simulators)
    known = measured()
    height, _ = next(iter(suite.spec.cameras.values()))
    costs = Costs(
        simulator=known.simulators[simulator_key(config.suite, height)],
        policy=expected.policy,
        handling=known.handling,
    )
    episodes = half_trained(known.episodes["LIBERO"], suite.tasks[0].horizon)
    groups = drawn_groups(config, episodes, CHUNK["LIBERO"], 1 / SAMPLED_PER_TRAINED, seed=0)
    drawn: list[list[int]] = []
    draw = groups.draw
    groups.draw = lambda: drawn.append(draw()) or drawn[-1]  # type: ignore[func-returns-value]
    simulated = simulate(actor, costs, groups, actors=gpus, slice_s=COARSE_S)
    counts = counted([(sum(chunks), len(chunks)) for chunks in drawn])
    parts = rollout_parts(counts, costs.simulator, costs.policy, costs.handling, actor, gpus)
    # Those that train are as long as those that are sampled.
    trained = counts.decisions * config.sampling.groups * config.sampling.group_size / counts.episodes
    update = expected.update_s * trained / expected.trained_decisions
    times = {f"rollout ({max(parts, key=lambda part: parts[part])})": simulated, "update": update}
    times["weights"] = expected.weights_s
    return {
        "visuals": f"{config.suite.visuals}, {config.suite.stepping}",
        "gpus": gpus,
        "simulators": simulators * gpus,
        "cores": actor.cores * gpus,
        "decisions": counts.decisions,
        "rollout_formula_s": max(parts.values()),
        "rollout_simulated_s": simulated,
        "update_s": update,
        "weights_s": expected.weights_s,
        "together_s": simulated + update + expected.weights_s,
        "bottleneck": max(times, key=lambda part: times[part]),
        "env_steps_per_s": counts.env_steps / simulated,
    }


def main() -> None:
    scaling = read_json(RESULTS / "scaling.json")
    result = {
        "rollouts": checked_rollouts(scaling),
        "whole_update": checked_updates(scaling),
        "predictions": predictions(),
        "slice_s": SLICE_S,
        "measured_at": scaling["commit"],
        "machine": scaling["machine"],
        "commit": commit(),
    }
    write_json(RESULTS / "scale.json", result)
    write_atomically(RESULTS / "scale.md", page(result).encode())


def page(result: dict) -> str:
    def error(expected: float, seen: float) -> str:
        """Of rates, as in scaling.md: above zero is too hopeful."""
        return f"{100 * (seen / expected - 1):+.0f} %"

    rollouts = [
        f"| {row['curve']} | {row['x']:.3g} | {row['measured_s']:.2f} | {row['formula_s']:.2f} | {error(row['formula_s'], row['measured_s'])} "
        f"| {row['simulated_s']:.2f} | {error(row['simulated_s'], row['measured_s'])} |"
        for row in result["rollouts"]
    ]
    whole = result["whole_update"]
    predictions = [
        f"| {row['visuals']} | {row['gpus']} | {row['simulators']} | {row['cores']} | {row['rollout_formula_s']:,.0f} | {row['rollout_simulated_s']:,.0f} "
        f"| {row['update_s']:,.0f} | {row['weights_s']:.0f} | {row['together_s']:,.0f} | {row['env_steps_per_s']:,.0f} | {row['bottleneck']} |"
        for row in result["predictions"]
    ]
    within = {
        name: sum(abs(row["measured_s"] / row[name] - 1) <= 0.2 for row in result["rollouts"])
        for name in ("formula_s", "simulated_s")
    }
    return f"""# Past this machine

Command: `python benchmarks/scale.py`. Commit {result["commit"]}; measured figures from scaling.json (commit {result["measured_at"]}, {result["machine"]}). [What it says](../scale.md). Data: `scale.json`.

## The check: two cores

Seconds of a rollout, measured, by the closed formula of docs/performance.md, and by discrete-event simulation of the episodes that were measured; errors of the rates. Within 20 %: the formula
{within["formula_s"]}, the simulation {within["simulated_s"]} of {len(rollouts)}.

| curve | x | measured, s | formula, s | error | simulation, s | error |
|---|---|---|---|---|---|---|
{chr(10).join(rollouts)}

Whole updates of tabletop_nano with dynamic sampling, means (measured: {len(read_json(RESULTS / "scaling.json")["whole_updates"])} updates; simulated: {WHOLE_UPDATES} with other random numbers): {whole["measured_groups"]:.0f} groups sampled, {whole["simulated_groups"]:.0f} in the
simulation; collection {whole["measured_collect_s"]:.2f} s, {whole["simulated_collect_s"]:.2f} s; update {whole["measured_update_s"]:.2f} s, {whole["formula_update_s"]:.2f} s by the formula.

## The prediction: OpenVLA-OFT, the paper's update

**Computed, not measured on any GPU.** Recipe `{RECIPE}` (512 episodes that train, all parameters, FSDP2), 16 cores per GPU, pictures of 256 pixels drawn in software; assumptions in
docs/scale.md. Seconds per update.

| visuals, stepping | GPUs | simulators | cores | rollout, formula | rollout, simulation | update | weights | together | env steps/s | held up by |
|---|---|---|---|---|---|---|---|---|---|---|
{chr(10).join(predictions)}
"""


if __name__ == "__main__":
    main()
