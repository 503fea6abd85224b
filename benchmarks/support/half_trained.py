"""A policy in the middle of its training, and episodes of it: what rollouts and updates are measured on."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, compress
from pathlib import Path

import numpy as np

from simplevla import recipes
from simplevla.adapters.load import load_policy
from simplevla.algorithm.selection import is_mixed
from simplevla.config import RolloutConfig, SamplingConfig, SuiteConfig
from simplevla.demonstrations.generate import generate
from simplevla.policies.base import Policy
from simplevla.rollout.collect import collect_groups
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.rollout.states import StateSampler
from simplevla.suites.registry import make_suite
from simplevla.training.imitation import sft
from simplevla.training.loop import train
from simplevla.types import Episode, EpisodeRequest

FOLDER = Path(__file__).parents[2] / "runs" / "bench"
TABLETOP = "tabletop_nano"
LIBERO = "libero_object_nano"
MANISKILL = "maniskill_nano"
UPDATES = {TABLETOP: 15, LIBERO: 0, MANISKILL: 0}
"""Of RL, after the recipe's SFT: half of the recipe's on `tabletop`; on the others they would take too long."""


def half_trained(recipe: str) -> Policy:
    """The recipe's policy halfway; made once, in about three minutes, and kept under runs/bench."""
    folder = FOLDER / recipe
    demos, sft_run, rl_run = folder / "demos", folder / "sft", folder / "rl"
    if not (sft_run / "policy").exists():
        generate(recipes.DEMOS[recipe](), demos)
        config = replace(recipes.SFT[recipe](), dataset=str(demos))
        sft(config, sft_run, resume=(sft_run / "config.json").exists())
    if not UPDATES[recipe]:
        return load_policy(sft_run / "policy")
    if not (rl_run / "policy").exists():
        config = replace(recipes.TRAIN[recipe](), policy=str(sft_run / "policy"), updates=UPDATES[recipe], eval_every=0)
        train(config, rl_run, resume=(rl_run / "config.json").exists())
    return load_policy(rl_run / "policy")


def requests(suite: SuiteConfig, groups: int, seed: int, siblings: int = 8) -> Iterator[list[EpisodeRequest]]:
    """Groups of siblings from train states."""
    sampler = StateSampler(make_suite(suite), seed)
    for group in range(groups):
        task, state = next(sampler)
        yield [
            EpisodeRequest(task=task, initial_state=state, seed=(seed, group, sibling), group=group)
            for sibling in range(siblings)
        ]


def sampled_groups(
    policy: Policy, suite: SuiteConfig, rollout: RolloutConfig, groups: int
) -> tuple[list[list[Episode]], list[list[Episode]]]:
    """(groups that an update would train on, groups without signal) of `groups` in all."""
    config = SamplingConfig(groups=groups, group_size=8, temperature=1.0, dynamic=False)
    with RolloutEngine(suite, rollout, policy.chunk_length) as engine:
        sampled = collect_groups(engine, policy, StateSampler(make_suite(suite), 0), config, 0, 1).groups
    mixed = [is_mixed([episode.reward for episode in group]) for group in sampled]
    return list(compress(sampled, mixed)), list(compress(sampled, [not each for each in mixed]))


Plan = tuple[str, int, list[np.ndarray]]
"""Task, initial state, chunks as executed."""


def recorded_plans(policy: Policy, suite: SuiteConfig, rollout: RolloutConfig, groups: int) -> list[Plan]:
    """What the policy did in sampled episodes, to be replayed without it."""
    return [
        (
            episode.request.task.name,
            episode.request.initial_state,
            [chunk[:count] for chunk, count in zip(episode.actions, episode.executed, strict=True)],
        )
        for group in chain(*sampled_groups(policy, suite, rollout, groups))
        for episode in group
    ]
