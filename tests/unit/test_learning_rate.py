"""The learning rate and the temperature of a run that names none."""

import pytest
import torch
from torch import nn

import small_smolvla
import small_tinyvla as small
from fake_policy import FakePolicy
from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.config import AdapterConfig
from simplevla.config import OptimizerConfig, TrainConfig
from simplevla.policies.base import Policy
from simplevla.policies.trained_on import TrainedOn
from simplevla.recipes.openvla_oft import full
from simplevla.training.learning_rate import with_learning_rate


def large(parameters: float, stage: str = "published", policy: Policy | None = None) -> Policy:
    """A policy of so many parameters that takes no memory."""
    policy = policy or FakePolicy()
    with torch.device("meta"):
        policy.more = nn.Linear(int(parameters) // 1000, 1000, bias=False)
    policy.trained_on = (TrainedOn(stage=stage),)  # type: ignore[arg-type]
    return policy


def with_adapter(policy: Policy) -> Policy:
    bank = AdapterBank(policy)
    bank.add("one", AdapterConfig(rank=2), seed=0)
    bank.activate("one", training=True)
    return policy


def chosen(policy: Policy, stage: str = "rl") -> float | None:
    return with_learning_rate(OptimizerConfig(), policy, stage).lr  # type: ignore[arg-type]


def test_small_policies_get_what_the_recipes_use() -> None:
    assert chosen(small.make()) == 1.5e-4
    assert chosen(small.make(head="diffusion")) == chosen(small.make(head="flow")) == 5e-5
    assert chosen(with_adapter(small.make())) == 1e-3
    assert chosen(small.make(), "sft") == 1e-3


def test_large_pretrained_policies_get_the_papers() -> None:
    assert chosen(large(7e9)) == 5e-6
    policy = with_adapter(large(7e9, policy=small.make()))
    assert chosen(policy) == 2e-5
    assert (chosen(large(4e8), "sft"), chosen(policy, "sft")) == (2e-5, 2e-4)


def test_a_frozen_backbone_is_no_adapter() -> None:
    policy = large(4e8)
    policy.more.requires_grad_(False)  # type: ignore[operator, union-attr]
    assert chosen(policy, "sft") == 2e-5
    nano = small_smolvla.make()
    nano.requires_grad_(False)
    nano.action_out_proj.requires_grad_(True)
    assert chosen(nano) == 5e-5


@pytest.mark.parametrize("policy", [large(4e8), large(2e9, stage="sft")])
def test_where_nothing_is_known_it_must_be_given(policy: Policy) -> None:
    with pytest.raises(
        ValueError, match=r"no learning rate is given, and for RL of a policy of \d+ million.*Give --optimizer\.lr"
    ):
        chosen(policy)
    assert with_learning_rate(OptimizerConfig(lr=3e-6), policy, "rl").lr == 3e-6


def test_a_policy_is_sampled_as_it_was_trained_unless_told_otherwise() -> None:
    assert TrainConfig().sampling.temperature == 1.0
    paper = full("spatial")
    assert (paper.sampling.temperature, paper.optimizer.lr) == (1.6, 5e-6)
