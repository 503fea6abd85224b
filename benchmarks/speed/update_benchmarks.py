"""Updates: ours against a bare loop over the same decisions, and against the reference's padded update."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from itertools import chain

import numpy as np
import torch

from benchmarks.support.half_trained import TABLETOP, half_trained, sampled_groups
from benchmarks.support.reference import UpdateWastes, padded_update, stored_bytes
from simplevla.algorithm.advantage import group_relative_advantages
from simplevla.policies.base import Policy, Sampling
from simplevla.recipes import tabletop
from simplevla.rollout.collect import rewards
from simplevla.training.determinism import deterministic
from simplevla.training.learner import Learner, pack
from simplevla.types import Episode

CONFIG = replace(tabletop.train(), minibatches=4)
GROUPS = 64
"""Sampled; those with both outcomes train."""
Sides = Iterator[tuple[Callable[[], float], Callable[[], float]]]


def half_trained_groups() -> tuple[Policy, list[list[Episode]], list[list[Episode]]]:
    """The policy, groups that train, groups without signal."""
    policy = half_trained(TABLETOP)
    return policy, *sampled_groups(policy, tabletop.SUITE, CONFIG.rollout, GROUPS)


def ours_per_second(policy: Policy, groups: list[list[Episode]], count: int) -> float:
    """`count` / time of one update of a fresh copy of the policy."""
    learner = Learner(deepcopy(policy), CONFIG)
    with deterministic():
        started = time.perf_counter()
        learner.update(groups, group_relative_advantages(rewards(groups)), 1)
        return count / (time.perf_counter() - started)


@contextmanager
def vs_bare() -> Sides:
    """Decisions per second; theirs is forward, a sum, backward and step over tensors that are ready, in batches of equal size."""
    policy, groups, _ = half_trained_groups()
    count = sum(len(episode.executed) for episode in chain.from_iterable(groups))
    packed = pack(
        list(chain.from_iterable(groups)), [1.0] * (len(groups) * len(groups[0])), policy.unit_action_index, "episode"
    )
    ready = [(part.observations(), part.trace()) for part in packed.split(CONFIG.microbatch_decisions)]
    per_step = int(np.ceil(len(ready) / CONFIG.minibatches))

    def bare() -> float:
        copy = deepcopy(policy)
        optimizer = torch.optim.AdamW(copy.parameters(), lr=CONFIG.optimizer.lr)
        started = time.perf_counter()
        for number, (observations, trace) in enumerate(ready, start=1):
            logprobs, _ = copy.score(observations, trace, Sampling(temperature=1.0))
            torch.autograd.backward(logprobs.sum() / count)
            if number % per_step == 0 or number == len(ready):
                optimizer.step()
                optimizer.zero_grad()
        return count / (time.perf_counter() - started)

    yield lambda: ours_per_second(policy, groups, count), bare


@contextmanager
def vs_padded(wastes: UpdateWastes | None = None) -> Sides:
    """Trained episodes per second; theirs pads to the horizon and computes all old log-probabilities once more."""
    policy, groups, dropped = half_trained_groups()
    count = sum(len(group) for group in groups)

    def padded() -> float:
        copy = deepcopy(policy)
        started = time.perf_counter()
        padded_update(copy, groups, dropped, CONFIG, wastes)
        return count / (time.perf_counter() - started)

    yield lambda: ours_per_second(policy, groups, count), padded


@contextmanager
def bytes_per_decision() -> Sides:
    """Valid decisions per megabyte of stored episodes; theirs are padded, images normalised twice in float32."""
    _, groups, _ = half_trained_groups()
    episodes = list(chain.from_iterable(groups))
    decisions = sum(len(episode.executed) for episode in episodes)
    kept = sum(
        sum(array.nbytes for array in (*e.images.values(), e.state, e.trace, e.logprobs, e.executed)) for e in episodes
    )
    yield lambda: 1e6 * decisions / kept, lambda: 1e6 * decisions / stored_bytes(episodes)
