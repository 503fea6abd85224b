"""Figures of docs/explained.md, from a finished demo: `python -m benchmarks.experiments.explained runs/demo`.

Each figure is drawn from that run's policies, simulator and log; docs/images/explained_*.png and explained.json.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from benchmarks.support.machine import this_machine
from simplevla.adapters.load import load_policy
from simplevla.algorithm.advantage import group_relative_advantages
from simplevla.algorithm.loss import clipped_policy_loss
from simplevla.config import TrainConfig
from simplevla.evaluation.provenance import commit
from simplevla.evaluation.result import Rate, read_result
from simplevla.policies.base import ObservationBatch, Policy, Sampling
from simplevla.report.plots import AFTER, BEFORE, INK, STYLE
from simplevla.rollout.collect import Collection, collect_groups, rewards
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.rollout.states import make_sampler
from simplevla.storage import write_json
from simplevla.suites.base import Suite
from simplevla.suites.registry import make_suite
from simplevla.training.learner import Learner, pack
from simplevla.training.run_folder import load_config
from simplevla.training.runlog import read_rows
from simplevla.types import Episode, Observation, Task

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SOLVED, FAILED = "#12a37a", "#d9622b"
SAMPLES = 64
"""Chunks drawn from one observation."""
GROUPS = 32
"""Groups of one update: the recipe's number."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A finished demo, opened."""

    run: Path
    config: TrainConfig
    suite: Suite
    before: Policy
    after: Policy
    collection: Collection
    """Groups that the supervised policy rolls out for its first update."""

    @property
    def group(self) -> list[Episode]:
        """The first group of those whose mean success is nearest to a half."""
        return min(self.collection.groups, key=lambda group: abs(sum(e.reward for e in group) / len(group) - 0.5))


def gather(run: Path) -> Evidence:
    """Loads both policies of the demo in `run` and rolls out the groups of a first update."""
    config = load_config(TrainConfig, run / "rl")
    suite = make_suite(config.suite)
    before, after = (load_policy(run / name / "policy") for name in ("sft", "rl"))
    sampler = make_sampler(suite, config.sampling, config.seed)
    with RolloutEngine(config.suite, config.rollout, before.chunk_length) as engine:
        collection = collect_groups(engine, before, sampler, config.sampling, config.seed, update=1)
    return Evidence(run=run, config=config, suite=suite, before=before, after=after, collection=collection)


def first_observation(suite: Suite, task: Task) -> Observation:
    """What the policy sees of the task's first held-out initial state."""
    environment = suite.make_environment()
    observation = environment.reset(task, suite.initial_states(task, "test")[0])
    environment.close()
    return observation


def in_and_out(evidence: Evidence, figure: Figure) -> dict[str, Any]:
    """One decision: pictures, state and instruction, and chunks drawn for them."""
    suite, policy = evidence.suite, evidence.before
    task = suite.task("lift_block")
    observation = first_observation(suite, task)
    batch = ObservationBatch.stacked([observation] * SAMPLES, [task.instruction] * SAMPLES)
    generators = [np.random.default_rng(number) for number in range(SAMPLES)]
    chunks = policy.act(batch, Sampling.of(evidence.config.sampling), generators).actions
    greedy = policy.act_on(observation, task.instruction)
    grid = figure.add_gridspec(2, 4, width_ratios=(1.1, 1.1, 1, 1))
    for column, (camera, image) in enumerate(observation.images.items()):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(image)
        axes.set_title(f"camera “{camera}”")
        axes.axis("off")
    words = figure.add_subplot(grid[1, :2])
    words.axis("off")
    state = "\n".join(
        f"{name}  {value:+.3f}" for name, value in zip(suite.spec.state_names, observation.state, strict=True)
    )
    words.text(0, 0.95, f"instruction\n“{task.instruction}”\n\nstate\n{state}", va="top", family="monospace")
    for number, name in enumerate(suite.spec.action_names):
        axes = figure.add_subplot(grid[number // 2, 2 + number % 2])
        steps = np.arange(1, policy.chunk_length + 1)
        axes.plot(steps, chunks[:, :, number].T, color=AFTER, alpha=0.15, linewidth=0.9)
        axes.plot(steps, greedy[:, number], color=BEFORE, marker="o", markersize=3)
        axes.set(title=name, xticks=steps, ylim=(-1.1, 1.1))
        if number >= 2:
            axes.set_xlabel("action of the chunk")
    return {"task": task.name, "samples": SAMPLES, "units": policy.units}


def closed_loop(evidence: Evidence, figure: Figure) -> dict[str, Any]:
    """Success of the policy after RL as it acts, and with the first observation shown at every decision."""
    suite, policy = evidence.suite, evidence.after
    environment = suite.make_environment()

    def solves(task: Task, state: int, looks: bool) -> bool:
        observation, steps = environment.reset(task, state), 0
        while steps < task.horizon:
            chunk = policy.act_on(observation, task.instruction)[: task.horizon - steps]
            result = environment.step_chunk(chunk)
            if result.success:
                return True
            steps += result.executed
            observation = result.observation if looks else observation
        return False

    rates = {
        looks: {
            task.name: Rate(
                solved=sum(solves(task, state, looks) for state in suite.initial_states(task, "test")),
                n=len(suite.initial_states(task, "test")),
            )
            for task in suite.tasks
        }
        for looks in (True, False)
    }
    environment.close()
    axes = figure.subplots()
    for offset, looks, colour, label in (
        (-0.2, True, AFTER, "looks again before each chunk"),
        (0.2, False, FAILED, "is shown its first observation again"),
    ):
        bars = rates[looks]
        axes.bar(
            np.arange(len(bars)) + offset,
            [100 * r.rate for r in bars.values()],
            0.36,
            yerr=[
                [100 * (r.rate - r.low) for r in bars.values()],
                [100 * (r.high - r.rate) for r in bars.values()],
            ],
            ecolor=INK,
            color=colour,
            label=label,
        )
    axes.set(xticks=range(len(suite.tasks)), ylabel="held-out success, %", ylim=(0, 128), yticks=range(0, 101, 25))
    axes.set_xticklabels([task.name.replace("_", "\n", 1) for task in suite.tasks])
    axes.legend(loc="upper right", ncols=2)
    totals = {looks: sum(r.solved for r in rates[looks].values()) for looks in rates}
    return {
        "closed_loop_solved": totals[True],
        "blind_solved": totals[False],
        "n": sum(r.n for r in rates[True].values()),
    }


def one_group(evidence: Evidence, figure: Figure) -> dict[str, Any]:
    """Siblings from one initial state: paths of the hand, and the advantage of each."""
    group = evidence.group
    advantages = group_relative_advantages(rewards([group]))[0].tolist()
    paths, bars = figure.subplots(1, 2, width_ratios=(1.2, 1))
    for number, (episode, advantage) in enumerate(zip(group, advantages, strict=True)):
        colour = SOLVED if episode.reward else FAILED
        paths.plot(100 * episode.state[:, 0], 100 * episode.state[:, 2], color=colour, alpha=0.8, marker=".")
        bars.barh(number, advantage, color=colour)
        bars.text(
            0.04 if advantage < 0 else -0.04,
            number,
            f"{'solved' if episode.reward else 'failed'}, {episode.env_steps} steps",
            ha="left" if advantage < 0 else "right",
            va="center",
            fontsize=8,
        )
    paths.set(xlabel="hand, x in cm", ylabel="hand, height in cm", title=f"“{group[0].request.task.instruction}”")
    bars.set(xlabel="advantage", yticks=range(len(group)), ylabel="sibling", title="advantages")
    bars.set_yticklabels([str(number + 1) for number in range(len(group))])
    bars.invert_yaxis()
    return {
        "task": group[0].request.task.name,
        "initial_state": group[0].request.initial_state,
        "rewards": [episode.reward for episode in group],
        "advantages": [round(advantage, 3) for advantage in advantages],
    }


def credit(evidence: Evidence, figure: Figure) -> dict[str, Any]:
    """What one bit gives to each unit: advantage times weight, for every unit of every sibling."""
    group, policy = evidence.group, evidence.before
    advantages = group_relative_advantages(rewards([group]))[0]
    batch = pack(group, advantages, policy.unit_action_index, evidence.config.loss.aggregation)
    signal = torch.where(batch.mask, batch.weights * batch.advantages[:, None], torch.nan) * len(group)
    lengths = [len(episode.executed) for episode in group]
    longest = max(lengths)
    rows = np.full((len(group), longest * policy.units), np.nan)
    for number, part in enumerate(torch.split(signal, lengths)):
        rows[number, : part.numel()] = part.flatten().numpy()
    axes = figure.subplots()
    largest = np.nanmax(np.abs(rows))
    shown = axes.imshow(
        rows, aspect="auto", cmap="RdYlGn", norm=TwoSlopeNorm(0, -largest, largest), interpolation="nearest"
    )
    axes.grid(False)
    axes.set(xlabel="sampled units, in the order in which they were executed", ylabel="sibling")
    axes.set_yticks(range(len(group)), [str(number + 1) for number in range(len(group))])
    for decision in range(1, longest):
        axes.axvline(decision * policy.units - 0.5, color="white", linewidth=0.8)
    figure.colorbar(shown, ax=axes, label="advantage × weight", fraction=0.03, pad=0.02)
    return {"units": int(batch.mask.sum()), "masked": int((~batch.mask).sum()), "bits": len(group)}


def clipping(evidence: Evidence, figure: Figure) -> dict[str, Any]:
    """The loss of one unit over its ratio, and the ratios of a real update."""
    clip = evidence.config.loss
    ratio = torch.linspace(0.5, 1.6, 221)
    curves, counts = figure.subplots(1, 2)
    for advantage, colour in ((1.0, SOLVED), (-1.0, FAILED)):
        loss = [
            float(
                clipped_policy_loss(
                    r.log().reshape(1, 1),
                    torch.zeros(1, 1),
                    torch.tensor([advantage]),
                    torch.ones(1, 1),
                    clip.clip_low,
                    clip.clip_high,
                ).loss
            )
            for r in ratio
        ]
        curves.plot(ratio, loss, color=colour, label=f"advantage {advantage:+.0f}")
    curves.set(xlabel="ratio", ylabel="loss of one unit", title="the loss stops at the clip")
    curves.legend()
    ratios = updated_ratios(evidence)
    counts.hist(ratios, bins=np.linspace(0.5, 1.6, 111).tolist(), color=AFTER, log=True)
    counts.set(xlabel="ratio", ylabel="units", title="ratios after one update")
    for axes in (curves, counts):
        for bound in (1 - clip.clip_low, 1 + clip.clip_high):
            axes.axvline(bound, color=INK, linestyle="--", linewidth=1)
    outside = float(np.mean((ratios < 1 - clip.clip_low) | (ratios > 1 + clip.clip_high)))
    return {"units": len(ratios), "outside": outside, "median_distance": float(np.median(np.abs(ratios - 1)))}


def updated_ratios(evidence: Evidence) -> np.ndarray:
    """The ratio of every executed unit of the first update, after its last optimizer step."""
    policy = copy.deepcopy(evidence.before)
    learner = Learner(policy, evidence.config)
    groups = evidence.collection.groups
    advantages = group_relative_advantages(rewards(groups))
    learner.update(groups, advantages, update=1)
    episodes = [episode for group in groups for episode in group]
    found = []
    for part in pack(episodes, advantages.flatten(), policy.unit_action_index, "unit").split(256):
        with torch.no_grad():
            logprobs, _ = policy.score(part.observations(), part.trace(), Sampling.of(evidence.config.sampling))
        found.append((logprobs - part.old_logprobs)[part.mask].exp())
    return torch.cat(found).numpy()


def selection(evidence: Evidence, figure: Figure) -> dict[str, Any]:
    """How many groups have both outcomes, update by update, and how many were sampled for those that train."""
    rows = [row for row in read_rows(evidence.run / "rl") if row.get("groups_sampled")]
    shares, needed = figure.subplots(1, 2)
    keys = {"groups_mixed": "both outcomes", "groups_all_failed": "all failed", "groups_all_solved": "all solved"}
    updates = [row["update"] for row in rows]
    shares.stackplot(
        updates,
        [[100 * row[key] / row["groups_sampled"] for row in rows] for key in keys],
        labels=list(keys.values()),
        colors=(AFTER, FAILED, SOLVED),
        alpha=0.8,
    )
    shares.set(xlabel="update", ylabel="share of groups, %", ylim=(0, 100), title="what a group brings")
    shares.legend(loc="lower center", labelcolor="#404850", frameon=True, facecolor="white")
    needed.plot(updates, [row["sampled_per_kept"] for row in rows])
    needed.set(xlabel="update", title="groups sampled for one that trains", ylim=(0, None))
    return {"first": rows[0]["sampled_per_kept"], "last": rows[-1]["sampled_per_kept"]}


def faster(evidence: Evidence, figure: Figure) -> dict[str, Any]:
    """Env steps to success before and after RL, on the same held-out states."""
    results = {name: read_result(evidence.run / "rl" / "eval" / f"{name}.json") for name in ("before", "after")}
    steps = {
        name: {(e.task, e.initial_state): e.env_steps for e in result.episodes if e.success}
        for name, result in results.items()
    }
    axes = figure.subplots()
    bins = np.arange(0.5, max(task.horizon for task in evidence.suite.tasks) + 1).tolist()
    for name, colour, label in (("before", BEFORE, "after imitation"), ("after", AFTER, "after RL")):
        solved = list(steps[name].values())
        axes.hist(
            solved, bins=bins, color=colour, alpha=0.65, label=f"{label}: {len(solved)} of {results[name].overall.n}"
        )
    axes.set(xlabel="env steps to success", ylabel="held-out episodes")
    axes.legend()
    both = sorted(set(steps["before"]) & set(steps["after"]))
    means = {name: float(np.mean([steps[name][pair] for pair in both])) for name in steps}
    return {"solved_by_both": len(both), "mean_steps_before": means["before"], "mean_steps_after": means["after"]}


FIGURES: dict[str, tuple[Callable[[Evidence, Figure], dict[str, Any]], tuple[float, float]]] = {
    "in_and_out": (in_and_out, (8.6, 3.9)),
    "closed_loop": (closed_loop, (7.4, 3.0)),
    "group": (one_group, (7.8, 3.2)),
    "credit": (credit, (7.8, 2.7)),
    "clipping": (clipping, (7.8, 3.0)),
    "selection": (selection, (7.8, 2.9)),
    "faster": (faster, (7.0, 2.8)),
}
"""Name -> (what draws it and returns its numbers, size in inches)."""


def draw(evidence: Evidence, images: Path, names: Sequence[str] = tuple(FIGURES)) -> dict[str, Any]:
    """Writes the figures into the folder `images`; returns their numbers."""
    numbers = {}
    for name in names:
        function, size = FIGURES[name]
        with mpl.rc_context({**STYLE, "axes.titlesize": 9}):
            figure = Figure(figsize=size, layout="constrained", facecolor="white")
            numbers[name] = function(evidence, figure)
            figure.savefig(images / f"explained_{name}.png", dpi=120)
        print(name, numbers[name], flush=True)
    return numbers


def main(run: Path, names: Sequence[str]) -> None:
    numbers = draw(gather(run), IMAGES, names or tuple(FIGURES))
    facts = {"commit": commit(), "machine": this_machine(), "seed": load_config(TrainConfig, run / "rl").seed}
    if not names:
        write_json(IMAGES / "explained.json", {**facts, **numbers})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
