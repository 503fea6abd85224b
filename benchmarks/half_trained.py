"""A policy that solves some of the episodes, and episodes of it: what rollouts and updates are measured on."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, compress
from pathlib import Path

import numpy as np

from simplevla.algorithm.selection import is_mixed
from simplevla.config import RolloutConfig, SamplingConfig
from simplevla.demonstrations.generate import generate
from simplevla.policies.base import Policy
from simplevla.policies.load import load_policy
from simplevla.recipes import tabletop
from simplevla.rollout.collect import StateSampler, collect_groups
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.suites.registry import make_suite
from simplevla.training.imitation import sft
from simplevla.types import Episode, EpisodeRequest

FOLDER = Path(__file__).parent.parent / "runs" / "bench"
ROLLOUT = RolloutConfig(slots_per_worker=32)
SIBLINGS = 8


def half_trained() -> Policy:
    """Imitated from 300 demonstrations of the embedded suite with a third of the recipe's batches; made once."""
    if not (FOLDER / "sft" / "policy").exists():
        generate(replace(tabletop.demos(), episodes=300), FOLDER / "demos")
        config = replace(tabletop.sft(), dataset=str(FOLDER / "demos"), batches=300, eval_episodes_per_task=0)
        sft(config, FOLDER / "sft", resume=(FOLDER / "sft" / "config.json").exists())
    return load_policy(FOLDER / "sft" / "policy")


def requests(groups: int, seed: int) -> Iterator[list[EpisodeRequest]]:
    """Groups of siblings from train states."""
    sampler = StateSampler(make_suite(tabletop.SUITE), seed)
    for group in range(groups):
        task, state = next(sampler)
        yield [
            EpisodeRequest(task=task, initial_state=state, seed=(seed, group, sibling), group=group)
            for sibling in range(SIBLINGS)
        ]


def sampled_groups(policy: Policy, groups: int) -> tuple[list[list[Episode]], list[list[Episode]]]:
    """(groups that an update would train on, groups without signal) of `groups` in all."""
    config = SamplingConfig(groups=groups, group_size=SIBLINGS, temperature=1.0, dynamic=False)
    with RolloutEngine(tabletop.SUITE, ROLLOUT, policy.chunk_length) as engine:
        sampled = collect_groups(engine, policy, StateSampler(make_suite(tabletop.SUITE), 0), config, 0, 1).groups
    mixed = [is_mixed([episode.reward for episode in group]) for group in sampled]
    return list(compress(sampled, mixed)), list(compress(sampled, [not each for each in mixed]))


def recorded_plans(policy: Policy, groups: int) -> list[tuple[str, int, list[np.ndarray]]]:
    """(task, initial state, chunks as executed) of sampled episodes."""
    return [
        (
            episode.request.task.name,
            episode.request.initial_state,
            [chunk[:count] for chunk, count in zip(episode.actions, episode.executed, strict=True)],
        )
        for group in chain(*sampled_groups(policy, groups))
        for episode in group
    ]
