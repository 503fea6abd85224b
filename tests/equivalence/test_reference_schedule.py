"""The reference's wasteful update (benchmarks/reference.py) and ours have the same gradient on the same episodes."""

from dataclasses import replace

import torch
from reference import Padded, advantages_of, longest, old_logprobs, padded_gradients, stored_bytes

from sampled_episodes import sampled_group, small_policy
from simplevla.config import TrainConfig
from simplevla.training.learner import Learner, pack


def test_padding_and_recomputing_change_nothing_but_time() -> None:
    policy = small_policy()
    groups = [sampled_group(policy, i, rewards) for i, rewards in enumerate(([1, 0, 0, 1], [0, 0, 1, 0]))]
    episodes = [episode for group in groups for episode in group]
    advantages = [advantage for group in groups for advantage in advantages_of(group)]
    config = replace(TrainConfig(), microbatch_decisions=7)

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


def test_stored_bytes_by_hand() -> None:
    policy = small_policy()
    # Horizon 11 in chunks of 2 is T = 6 decisions; one has 8 * 8 * 6 float32, 3 of state, 4 of log-probabilities, 4 int64 tokens.
    episodes = sampled_group(policy, 0, [1, 0])
    assert longest(episodes) == 6
    assert stored_bytes(episodes) == 2 * 6 * (4 * 384 + 4 * 3 + 4 * 4 + 8 * 4)
