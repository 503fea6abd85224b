"""SmolVLA with `denoising.frozen_backbone`: what the backbone read of pictures and words is kept with the rollout."""

from typing import Literal

import numpy as np
import pytest
import torch

import small_smolvla as small
from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.config import AdapterConfig
from simplevla.config import DenoisingConfig, TrainConfig
from simplevla.errors import UserError
from simplevla.policies.base import ObservationBatch, Sampling
from small_tinyvla import observations, rows

LONG, SHORT = "push the blue block to the left zone", "press it"


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(i) for i in range(count)]


def never(*_: object) -> None:
    raise AssertionError("the backbone was run")


@pytest.mark.parametrize(("special", "flow"), [(False, "sde"), (True, "noise")])
def test_a_frozen_backbone_reads_pictures_and_words_in_the_rollout_alone(
    special: bool, flow: Literal["sde", "noise"]
) -> None:
    policy = small.make(image_special_tokens=special)
    batch = observations([LONG, SHORT, SHORT])
    whole, gradients, sizes = [], [], []
    for frozen in (False, True):
        policy.prepare_for_rl(TrainConfig(denoising=DenoisingConfig(flow=flow, frozen_backbone=frozen)))
        sample = policy.act(batch, Sampling(), generators(3))
        assert sample.trace.shape == policy.empty_trace(3).shape
        sizes.append(sample.trace.shape[1])
        if frozen:
            for module in (policy.vision, policy.connector, policy.language.embed_tokens):
                module.register_forward_pre_hook(never)
            batch = ObservationBatch(images={}, state=batch.state, instructions=batch.instructions)
        logprobs, entropy = policy.score(batch, sample.trace, Sampling())
        # Acting and scoring compute the same products, so that the ratio is 1 but for rounding.
        torch.testing.assert_close(logprobs.detach(), sample.logprobs, atol=1e-4, rtol=0)
        policy.zero_grad()
        logprobs.square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None})
        whole.append((torch.from_numpy(sample.actions), sample.logprobs, logprobs.detach(), entropy.detach()))
    assert all(torch.equal(*pair) for pair in zip(*whole, strict=True))
    assert (
        gradients[0].keys() == gradients[1].keys() >= {"state_proj.weight", "expert.layers.0.self_attn.q_proj.weight"}
    )
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    # 4 layers, keys and values, 2 heads of 8 numbers; 16 tokens of each view, its special ones, and 48 words at most.
    tokens = 2 * (4 + 3 * special) + 48
    assert sizes[1] - sizes[0] == 4 * 2 * 2 * 8 * tokens


def test_kept_reads_serve_decisions_that_share_an_observation() -> None:
    policy = small.make()
    policy.prepare_for_rl(TrainConfig(denoising=DenoisingConfig(frozen_backbone=True)))
    batch = rows(observations([LONG, SHORT]), [0, 1, 0])
    sample = policy.act(batch.distinct(), Sampling(), generators(3))
    blind = ObservationBatch(images={}, state=batch.state, instructions=batch.instructions).distinct()
    assert blind.index is not None
    logprobs, _ = policy.score(blind, sample.trace, Sampling())
    torch.testing.assert_close(logprobs.detach(), sample.logprobs, atol=1e-4, rtol=0)


def test_reads_are_kept_only_of_a_backbone_that_does_not_train() -> None:
    config = TrainConfig(denoising=DenoisingConfig(frozen_backbone=True))
    policy = small.make(frozen_backbone=False)
    policy.prepare_for_rl(config)
    trained = {name.split(".")[0] for name, p in policy.named_parameters() if p.requires_grad}
    assert {"expert", "state_proj", "action_out_proj"} <= trained
    assert trained.isdisjoint({"vision", "connector", "language"})
    for targets in (("language",), ("head",), ("language", "head")):
        policy = small.make()
        bank = AdapterBank(policy)
        bank.add("task", AdapterConfig(rank=2, alpha=2.0, targets=targets))
        bank.activate("task", training=True)
        if "head" not in targets:
            with pytest.raises(UserError, match=r"only 'language\.\S+lora\S+' and the like may be trained here"):
                policy.prepare_for_rl(config)
        else:
            policy.prepare_for_rl(config)
            assert policy.scores_from_trace
            trained = {name.split(".")[0] for name, p in policy.named_parameters() if p.requires_grad}
            assert "expert" in trained
            assert "language" not in trained
