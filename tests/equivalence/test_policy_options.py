"""Gradient checkpointing and torch.compile change cost, not numbers."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fake_policy import FakePolicy
from simplevla.policies.base import Sampling
from simplevla.policies.tinyvla.policy import TinyVLA
from small_tinyvla import INSTRUCTIONS, make, observations

SAMPLING = Sampling(temperature=1.3)


def gradients(policy: TinyVLA) -> tuple[Tensor, dict[str, Tensor]]:
    """(log-probabilities, gradients of their sum) on a fixed batch."""
    policy.zero_grad()
    trace = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, policy.units)))
    logprobs, _ = policy.score(observations(list(INSTRUCTIONS)), trace, SAMPLING)
    torch.autograd.backward(logprobs.sum())
    return logprobs.detach(), {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("preset", ["nano", "siglip_test"])
def test_checkpointed_activations_give_the_same_gradients(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make(preset)
    calls = []
    layer = policy.language.layers[0].mlp
    layer.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    plain_logprobs, plain = gradients(policy)
    assert len(calls) == 1
    policy.checkpoint_activations()
    logprobs, checkpointed = gradients(policy)
    assert len(calls) == 3, "once forward, once again in the backward pass"
    torch.testing.assert_close(logprobs, plain_logprobs, rtol=0, atol=0)
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-6, atol=1e-8)
    policy.eval()
    gradients(policy)
    assert len(calls) == 4, "evaluation mode ends it"


def test_towers_as_torch_compile_sees_them_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward graphs of one camera, one layer and one shape: not their C++, which takes minutes to build, nor
    shapes as symbols, which take four times as long to trace; both are in the slow test."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **options: compile_module(self, backend="aot_eager", dynamic=False)
    )
    whole = make("nano")
    config = replace(whole.config, cameras=("front",), language=replace(whole.config.language, layers=1))
    policy = TinyVLA(config, whole.statistics, whole.instruction_tokens.tokenizer)
    plain_logprobs, plain = gradients(policy)
    policy.compile_towers()
    logprobs, compiled = gradients(policy)
    torch.testing.assert_close(logprobs, plain_logprobs, rtol=1e-4, atol=1e-5)
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler, g++")
def test_compiled_towers_act_the_same() -> None:
    policy = make("siglip_test")
    batch = observations(list(INSTRUCTIONS))
    with torch.no_grad():
        plain = policy(batch)
        policy.compile_towers()
        torch.testing.assert_close(policy(batch), plain, rtol=1e-4, atol=1e-5)


def test_a_policy_without_them_says_so() -> None:
    with pytest.raises(ValueError, match="FakePolicy has no gradient checkpointing; leave gradient_checkpointing off"):
        FakePolicy().checkpoint_activations()
    with pytest.raises(ValueError, match=r"FakePolicy can't be compiled; leave rollout\.compile off"):
        FakePolicy().compile_towers()
