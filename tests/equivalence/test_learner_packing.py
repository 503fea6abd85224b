"""What must not matter to an update: the size of micro-batches, packing, a stop between two updates."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fake_policy import FakePolicy
from sampled_episodes import observations, sampled_group, small_policy, update_by
from simplevla.algorithm.advantage import group_relative_advantages
from simplevla.config import LossConfig, OptimizerConfig, SamplingConfig, TrainConfig
from simplevla.policies.base import Sampling
from simplevla.training.learner import Learner, pack
from simplevla.types import Episode

CONFIG = TrainConfig(
    sampling=SamplingConfig(groups=2, group_size=4, temperature=1.6),
    optimizer=OptimizerConfig(lr=0.01),
    minibatches=2,
    microbatch_decisions=8,
)


def moved_policy_and_groups() -> tuple[FakePolicy, list[list[Episode]]]:
    """Episodes of one policy, and another one near it, so that ratios differ from 1 and some units are clipped."""
    policy = small_policy()
    groups = [sampled_group(policy, 0, [1, 0, 0, 1]), sampled_group(policy, 1, [0, 0, 1, 0])]
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.4 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return policy, groups


def advantages_of(groups: list[list[Episode]]) -> list[float]:
    rewards = torch.tensor([[episode.reward for episode in group] for group in groups])
    return group_relative_advantages(rewards).flatten().tolist()


def gradients(size: int, aggregation: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    policy, groups = moved_policy_and_groups()
    loss = LossConfig(aggregation="unit" if aggregation == "unit" else "episode")
    learner = Learner(policy, replace(CONFIG, microbatch_decisions=size, loss=loss))
    episodes = [episode for group in groups for episode in group]
    batch = pack(episodes, advantages_of(groups), policy.unit_action_index, aggregation)
    stats = learner.accumulate_gradients(batch, "the test")
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}, stats


@pytest.mark.parametrize("aggregation", ["episode", "unit"])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_micro_batch_size_does_not_matter(size: int, aggregation: str) -> None:
    expected, expected_stats = gradients(1000, aggregation)
    got, stats = gradients(size, aggregation)
    assert expected["linear.weight"].abs().max() > 1e-2
    assert expected_stats["clipfrac_low"] + expected_stats["clipfrac_high"] > 0.01
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=0)
    assert stats == pytest.approx(expected_stats, abs=1e-6)


def padded(array: np.ndarray, missing: int) -> np.ndarray:
    """With the last row repeated: plausible numbers that must not count."""
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


def test_packed_is_padded() -> None:
    """The same loss over padded episodes, as in SimpleVLA-RL's code: mean over units, then episodes."""
    policy, groups = moved_policy_and_groups()
    episodes = [episode for group in groups for episode in group]
    longest = max(len(episode.executed) for episode in episodes)
    per_episode = []
    for episode, advantage in zip(episodes, advantages_of(groups), strict=True):
        missing = longest - len(episode.executed)
        batch = observations(padded(episode.images["front"], missing), padded(episode.state, missing))
        trace, old = (torch.from_numpy(padded(array, missing)) for array in (episode.trace, episode.logprobs))
        logprobs, _ = policy.score(batch, trace, Sampling(temperature=1.6))
        ratio = (logprobs - old).exp()
        executed = np.concatenate([episode.executed, np.zeros(missing, np.int64)])
        mask = torch.tensor([[index < n for index in (0, 0, 1, 1)] for n in executed])
        losses = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.28))
        per_episode.append(losses[mask].mean())
    loss = torch.stack(per_episode).mean()
    expected = torch.autograd.grad(loss, list(policy.parameters()))
    got, stats = gradients(1000, "episode")
    assert stats["loss"] == pytest.approx(loss.item(), abs=1e-6)
    for gradient, parameter in zip(expected, got.values(), strict=True):
        torch.testing.assert_close(parameter, gradient, atol=1e-6, rtol=0)


def test_a_whole_update_does_not_depend_on_the_micro_batch_size() -> None:
    def after(size: int) -> Tensor:
        policy = small_policy()
        groups = [sampled_group(policy, i, [1, 0, 0, 1]) for i in range(2)]
        update_by(Learner(policy, replace(CONFIG, microbatch_decisions=size)), groups, 1)
        return policy.linear.weight.detach()

    assert not torch.equal(after(8), small_policy().linear.weight)
    torch.testing.assert_close(after(1), after(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(after(3), after(8), atol=1e-5, rtol=0)


def test_a_resumed_optimizer_goes_on_bit_for_bit() -> None:
    def groups(policy: FakePolicy, update: int) -> list[list[Episode]]:
        return [sampled_group(policy, 10 * update + i, [1, 0, 0, 1]) for i in range(2)]

    straight = small_policy()
    learner = Learner(straight, replace(CONFIG, optimizer=OptimizerConfig(lr=0.01, warmup_steps=6)))
    for update in (1, 2):
        update_by(learner, groups(straight, update), update)
    tensors = {name: value.clone() for name, value in learner.optimizer_state().items()}
    copied, steps = {name: value.clone() for name, value in straight.state_dict().items()}, learner.optimizer_steps
    update_by(learner, groups(straight, 3), 3)

    resumed = small_policy()
    resumed.load_state_dict(copied)
    other = Learner(resumed, learner.config)
    other.load_optimizer_state(tensors, steps)
    update_by(other, groups(resumed, 3), 3)
    assert torch.equal(resumed.linear.weight, straight.linear.weight)
    assert torch.equal(resumed.linear.bias, straight.linear.bias)
    for name, value in learner.optimizer_state().items():
        assert torch.equal(other.optimizer_state()[name], value), name

    forgetful = small_policy()
    forgetful.load_state_dict(copied)
    update_by(Learner(forgetful, learner.config), groups(forgetful, 3), 3)
    assert not torch.equal(forgetful.linear.weight, straight.linear.weight)
