"""The reference's wasteful update (benchmarks/support/reference.py) and ours have the same gradient on the same episodes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.support.reference import (
    Padded,
    ReferenceRollout,
    UpdateWastes,
    Wastes,
    advantages_of,
    longest,
    old_logprobs,
    padded_gradients,
    padded_update,
    stored_bytes,
)
from fake_policy import FakePolicy
from sampled_episodes import sampled_group, small_policy
from simplevla.config import OptimizerConfig, RolloutConfig, SamplingConfig, SuiteConfig, TrainConfig
from simplevla.policies.base import Sampling
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.suites.registry import make_suite
from simplevla.training.learner import Learner, pack
from simplevla.types import EpisodeRequest

PAPER = TrainConfig(sampling=SamplingConfig(temperature=1.6), optimizer=OptimizerConfig(lr=5e-6))


def test_padding_and_recomputing_change_nothing_but_time() -> None:
    policy = small_policy()
    groups = [sampled_group(policy, i, rewards) for i, rewards in enumerate(([1, 0, 0, 1], [0, 0, 1, 0]))]
    episodes = [episode for group in groups for episode in group]
    advantages = [advantage for group in groups for advantage in advantages_of(group)]
    config = replace(PAPER, microbatch_decisions=7)

    learner = Learner(policy, config)
    learner.accumulate_gradients(pack(episodes, advantages, policy.unit_action_index, "episode"), "here")
    ours = [parameter.grad.clone() for parameter in policy.parameters() if parameter.grad is not None]

    policy.zero_grad()
    padded = [Padded(episode, longest(episodes), policy) for episode in episodes]
    old = old_logprobs(policy, padded, config)
    padded_gradients(policy, list(zip(padded, advantages, strict=True)), old, config)
    theirs = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]

    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert b.abs().max() > 1e-4
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_the_update_is_the_same_with_each_waste_and_without() -> None:
    ends = []
    for wastes in (UpdateWastes(), *(UpdateWastes(**{name: False}) for name in ("padding", "score_again"))):
        policy = small_policy()
        groups = [sampled_group(policy, i, rewards) for i, rewards in enumerate(([1, 0, 0, 1], [0, 0, 1, 0]))]
        config = replace(PAPER, microbatch_decisions=7, minibatches=2)
        padded_update(policy, groups, [sampled_group(policy, 2, [1, 1])], config, wastes)
        ends.append(torch.nn.utils.parameters_to_vector(policy.parameters()))
    start = torch.nn.utils.parameters_to_vector(small_policy().parameters())
    assert (ends[0] - start).abs().max() > 1e-6
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("wastes", [Wastes(), *(Wastes(**{name: False}) for name in ("new_process", "every_image"))])
def test_the_reference_rolls_out_the_same_episodes(wastes: Wastes) -> None:
    """In lock-step, a process per episode, and in our engine: the same actions, lengths and outcomes."""
    suite = SuiteConfig(name="fake_suite:make")
    task = make_suite(suite).task("reach")
    requests = [EpisodeRequest(task=task, initial_state=1, seed=(5, i), group=i) for i in range(4)]
    policy = FakePolicy()
    with ReferenceRollout(suite, policy, wastes) as reference:
        theirs = reference.run(requests, Sampling())
    queue, ours = iter(requests), []
    with RolloutEngine(suite, RolloutConfig(workers=2, slots_per_worker=2), 4) as engine:
        engine.run(policy, Sampling(), lambda: next(queue, None), ours.append)
    ours.sort(key=lambda episode: episode.request.group)
    assert {episode.reward for episode in theirs} == {0, 1}
    for a, b in zip(ours, theirs, strict=True):
        assert (a.status, a.env_steps) == (b.status, b.env_steps)
        np.testing.assert_array_equal(a.executed, b.executed)
        np.testing.assert_array_equal(a.actions, b.actions)
        np.testing.assert_allclose(a.logprobs, b.logprobs, rtol=1e-5)
        np.testing.assert_array_equal(a.images["front"], b.images["front"])


def test_stored_bytes_by_hand() -> None:
    policy = small_policy()
    # Horizon 11 in chunks of 2 is T = 6 decisions; one has 8 * 8 * 6 float32, 3 of state, 4 of log-probabilities, 4 int64 tokens.
    episodes = sampled_group(policy, 0, [1, 0])
    assert longest(episodes) == 6
    assert stored_bytes(episodes) == 2 * 6 * (4 * 384 + 4 * 3 + 4 * 4 + 8 * 4)
