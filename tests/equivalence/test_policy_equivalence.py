"""Settings that must not matter to a policy's results."""

from pathlib import Path

import numpy as np
import pytest
import torch

import small_tinyvla as small
from simplevla.policies.base import Sampling
from simplevla.policies.load import load_policy
from simplevla.training.determinism import deterministic

LONG, SHORT = "push the blue block to the left zone", "press it"


@pytest.mark.parametrize("preset", ["nano", "siglip_test"])
def test_results_do_not_depend_on_padding_or_on_the_rest_of_the_batch(preset: str) -> None:
    policy = small.make(preset)
    batch = small.observations([LONG, SHORT, SHORT, LONG, "lift the red block"])
    sampling = Sampling(temperature=1.6)
    together = policy.act(batch, sampling, [np.random.default_rng(i) for i in range(5)])
    for i in range(5):
        alone = policy.act(small.rows(batch, [i]), sampling, [np.random.default_rng(i)])
        assert torch.equal(alone.trace[0], together.trace[i])
        np.testing.assert_allclose(alone.actions[0], together.actions[i])
        torch.testing.assert_close(alone.logprobs[0], together.logprobs[i], atol=1e-5, rtol=0)


def test_results_do_not_depend_on_the_order_of_the_batch() -> None:
    policy = small.make()
    batch = small.observations([LONG, SHORT, "lift the red block"])
    order = [2, 0, 1]
    with torch.no_grad():
        torch.testing.assert_close(policy(small.rows(batch, order)), policy(batch)[order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 1.6])
def test_the_ratio_is_one_before_any_update(temperature: float) -> None:
    policy = small.make()
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


@pytest.mark.parametrize("preset", ["nano", "siglip_test"])
def test_a_saved_policy_comes_back_bit_for_bit(tmp_path: Path, preset: str) -> None:
    policy = small.make(preset, seed=7)
    policy.save(tmp_path / "policy")
    assert {file.name for file in (tmp_path / "policy").iterdir()} == {
        "config.json",
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
