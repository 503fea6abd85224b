"""Settings that must not matter to a policy's results."""

from pathlib import Path

import numpy as np
import pytest
import torch

import small_tinyvla as small
from simplevla.adapters.load import load_policy
from simplevla.config import DenoisingConfig, Head
from simplevla.policies.base import Sampling
from simplevla.training.determinism import deterministic
from small_tinyvla import for_rl

LONG, SHORT = "push the blue block to the left zone", "press it"


HEADS = pytest.mark.parametrize("head", ["tokens", "diffusion", "flow"])
PRESETS = pytest.mark.parametrize("preset", ["nano", "siglip_test"])


@HEADS
@PRESETS
def test_results_do_not_depend_on_padding_or_on_the_rest_of_the_batch(preset: str, head: Head) -> None:
    policy = small.make(preset, head=head)
    batch = small.observations([LONG, SHORT, SHORT, LONG, "lift the red block"])
    sampling = Sampling(temperature=1.6)
    together = policy.act(batch, sampling, [np.random.default_rng(i) for i in range(5)])
    for i in range(5):
        alone = policy.act(small.rows(batch, [i]), sampling, [np.random.default_rng(i)])
        torch.testing.assert_close(alone.trace[0], together.trace[i], atol=1e-5, rtol=0)
        np.testing.assert_allclose(alone.actions[0], together.actions[i], atol=1e-4)
        torch.testing.assert_close(alone.logprobs[0], together.logprobs[i], atol=2e-5, rtol=0)


def test_results_do_not_depend_on_the_order_of_the_batch() -> None:
    policy = small.make()
    batch = small.observations([LONG, SHORT, "lift the red block"])
    order = [2, 0, 1]
    with torch.no_grad():
        torch.testing.assert_close(policy(small.rows(batch, order)), policy(batch)[order], atol=1e-5, rtol=0)


@HEADS
@PRESETS
def test_decisions_that_look_at_one_observation_are_as_those_with_their_own(preset: str, head: Head) -> None:
    policy = small.make(preset, head=head)
    alone = small.rows(small.observations([LONG, SHORT, "lift the red block"]), [0, 1, 0, 2, 0, 1])
    shared = alone.distinct()
    assert len(shared) == 3
    sampling = Sampling(temperature=1.6)
    found = []
    for batch in (alone, shared):
        sample = policy.act(batch, sampling, [np.random.default_rng(i) for i in range(6)])
        policy.zero_grad()
        logprobs, entropy = policy.score(batch, sample.trace, sampling)
        (logprobs * torch.arange(1.0, 7.0)[:, None]).sum().backward()
        gradients = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
        actions = torch.from_numpy(sample.actions)
        found.append([actions, sample.logprobs, sample.trace.float(), logprobs, entropy, *gradients])
    for own, together in zip(*found, strict=True):
        torch.testing.assert_close(own, together, atol=2e-4, rtol=1e-3)


@HEADS
@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_the_ratio_is_one_before_any_update(temperature: float, head: Head) -> None:
    policy = small.make(head=head)
    batch = small.observations([LONG, SHORT, SHORT])
    sampling = Sampling(temperature=temperature)
    sample = policy.act(batch, sampling, [np.random.default_rng(i) for i in range(3)])
    logprobs, _ = policy.train().score(batch, sample.trace, sampling)
    torch.testing.assert_close(logprobs.detach(), sample.logprobs, atol=1e-5, rtol=0)


def test_what_was_sampled_in_inference_mode_can_be_trained_on() -> None:
    policy = small.make()
    batch = small.observations([SHORT])
    sample = policy.act(batch, Sampling(), [np.random.default_rng(0)])
    logprobs, _ = policy.score(batch, sample.trace, Sampling())
    ((logprobs - sample.logprobs).exp() * torch.ones_like(sample.logprobs, requires_grad=True)).sum().backward()
    assert float(policy.queries.grad.abs().max()) > 0  # type: ignore[union-attr]


@HEADS
@PRESETS
def test_a_saved_policy_comes_back_bit_for_bit(tmp_path: Path, preset: str, head: Head) -> None:
    policy = small.make(preset, seed=7, head=head)
    policy.save(tmp_path / "policy")
    assert {file.name for file in (tmp_path / "policy").iterdir()} == {
        "config.json",
        "trained_on.json",
        "model.safetensors",
        "statistics.json",
        "tokenizer.json",
    }
    again = load_policy(tmp_path / "policy")
    batch = small.observations([LONG, "never seen before"])
    with torch.no_grad():
        assert torch.equal(policy(batch), again(batch))
    assert (again.cameras, again.state_dim, again.action_dim, again.chunk_length) == (small.CAMERAS, 3, 2, 3)
    again.save(tmp_path / "again")
    for file in (tmp_path / "policy").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_gradients_repeat_bit_for_bit_on_several_threads() -> None:
    policy = small.make()
    batch = small.observations([LONG, SHORT] * 64)
    actions, mask = torch.zeros(128, 3, 2), torch.ones(128, 3, dtype=torch.bool)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    seen = set()
    try:
        with deterministic():
            for _ in range(30):
                policy.zero_grad()
                policy.imitation_loss(batch, actions, mask).backward()
                gradients = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
                seen.add(torch.cat(gradients).numpy().tobytes())
    finally:
        torch.set_num_threads(threads)
    assert len(seen) == 1
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_frozen_backbone_is_never_run_in_the_update() -> None:
    policy = small.make(head="diffusion")
    batch = small.observations([LONG, SHORT, SHORT])
    generators = [np.random.default_rng(i) for i in range(3)]
    whole = policy.act(batch, Sampling(), generators)
    expected, _ = policy.score(batch, whole.trace, Sampling())
    policy.prepare_for_rl(for_rl(DenoisingConfig(frozen_backbone=True)))
    sample = policy.act(batch, Sampling(), [np.random.default_rng(i) for i in range(3)])
    # The chain of 6 states of 3 x 2 entries, then the condition: 656 bytes per decision, where images take 6 kB.
    assert sample.trace.shape == (3, 36 + 128)
    assert torch.equal(sample.trace[:, :36], whole.trace)

    def never(*_: object) -> None:
        raise AssertionError("the backbone was run")

    for module in (policy.language, policy.vision):
        module.register_forward_pre_hook(never)
    blind = type(batch)(images={}, state=batch.state, instructions=batch.instructions)
    logprobs, _ = policy.score(blind, sample.trace, Sampling())
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
    logprobs.sum().backward()  # type: ignore[no-untyped-call]
    trained = {name for name, p in policy.named_parameters() if p.grad is not None}
    assert trained == {f"head.{name}" for name, _ in policy.head.named_parameters()}
    with pytest.raises(ValueError, match="greedy denoising has no density"):
        policy.score(blind, sample.trace, Sampling(greedy=True))
    for parameter in policy.head.parameters():
        parameter.requires_grad_(False)
    policy.state.requires_grad_(True)
    with pytest.raises(ValueError, match=r"trains what follows the backbone alone, and only 'state.weight'"):
        policy.prepare_for_rl(for_rl(DenoisingConfig(frozen_backbone=True)))
    with pytest.raises(ValueError, match="frozen_backbone is for a diffusion or flow head"):
        small.make().prepare_for_rl(for_rl(DenoisingConfig(frozen_backbone=True)))
