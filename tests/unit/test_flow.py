"""The flow head, on velocities that are written out again in NumPy's float64."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import small_smolvla
import small_tinyvla as small
from simplevla.config import DenoisingConfig, SamplingConfig, TrainConfig
from simplevla.effect import check_train
from simplevla.policies.base import Sampling
from simplevla.policies.flow import FlowHead, sde_step
from simplevla.policies.tinyvla.config import FlowConfig, UnetConfig
from simplevla.policies.tinyvla.flow import UnetFlow

STEPS, LENGTH, PADDED = 5, 4, 3
EXECUTED, REAL = 3, 2
MIX = np.array([[0.9, -0.4, 0.3], [0.2, 0.7, -0.8], [-0.5, 0.1, 0.6]])


def make(flow: str = "sde") -> FlowHead:
    """Four actions of three numbers are predicted, three of two are used; the learned stds differ."""
    head = FlowHead(STEPS, (LENGTH, PADDED), EXECUTED, REAL)
    with torch.no_grad():
        head.spread.copy_(torch.linspace(-3, 2, STEPS * REAL).view(STEPS, REAL))
    head.set_denoising(DenoisingConfig(flow=flow))  # type: ignore[arg-type]
    return head


def velocity(noisy: Tensor, times: Tensor) -> Tensor:
    return torch.tanh(noisy @ torch.from_numpy(MIX).to(noisy)) - 2 * times[:, None, None] * noisy


def velocity_in_float64(x: np.ndarray, t: float) -> np.ndarray:
    return np.tanh(x @ MIX) - 2 * t * x


def generators(rows: int) -> list[np.random.Generator]:
    return [np.random.default_rng(row) for row in range(rows)]


def stds_in_float64(flow: str, alpha: float) -> list[np.ndarray]:
    """Std of each step [A'] over the real dimensions."""
    if flow == "noise":
        spread = np.linspace(-3, 2, STEPS * REAL).reshape(STEPS, REAL)
        return list(0.08 + 0.08 / (1 + np.exp(-spread)))
    # In the first step, from t = 1, the denominator alone is that of its end, t = 0.8.
    later = [np.full(REAL, alpha * math.sqrt(t / (1 - t)) * math.sqrt(1 / STEPS)) for t in (0.8, 0.6, 0.4, 0.2)]
    return [np.full(REAL, alpha), *later]


def chain_in_float64(flow: str, alpha: float, row: int) -> tuple[list[np.ndarray], np.ndarray, int]:
    """(x_1 .. x_0, log-densities of the used entries, number of the stochastic step) of a row's decision."""
    generator = np.random.default_rng(row)
    noise = generator.standard_normal((STEPS + 1, LENGTH, PADDED), np.float32).astype(np.float64)
    chosen = int(generator.integers(STEPS)) if flow == "sde" else -1
    chain, logprobs = [noise[0]], np.zeros((EXECUTED, REAL))
    for k, std in enumerate(stds_in_float64(flow, alpha)):
        x, t, d = chain[-1], 1 - k / STEPS, 1 / STEPS
        v = velocity_in_float64(x, t)
        after = x - d * v
        if flow == "noise" or chosen == k:
            mean = after.copy()
            if flow == "sde":
                mean -= (std[0] / math.sqrt(d)) ** 2 * d / (2 * t) * (x + (1 - t) * v)
            used = np.s_[:EXECUTED, :REAL]
            after[used] = mean[used] + std * noise[k + 1][used]
            z = (after[used] - mean[used]) / std
            logprobs += -0.5 * z**2 - np.log(std) - 0.5 * math.log(2 * math.pi)
        chain.append(after)
    return chain, logprobs, chosen


CASES = pytest.mark.parametrize(("flow", "alpha"), [("sde", 0.5), ("sde", 0.9), ("noise", 0.5)])


@CASES
def test_actions_traces_and_logprobs_agree_with_float64(flow: str, alpha: float) -> None:
    head, rows, steps = make(flow), 24, set()
    sampling = Sampling(alpha=alpha)
    with torch.no_grad():
        sample = head.sample(velocity, sampling, generators(rows))
        scored, _ = head.score(velocity, sample.trace, sampling)
    for row in range(rows):
        chain, logprobs, chosen = chain_in_float64(flow, alpha, row)
        steps.add(chosen)
        np.testing.assert_allclose(sample.normalised[row].numpy(), chain[-1][:EXECUTED, :REAL], atol=1e-5)
        kept = [np.array([chosen]), *chain[chosen : chosen + 2]] if flow == "sde" else chain
        np.testing.assert_allclose(sample.trace[row].numpy(), np.concatenate([x.ravel() for x in kept]), atol=1e-5)
        np.testing.assert_allclose(sample.logprobs[row].numpy(), logprobs.ravel(), atol=1e-5)
        np.testing.assert_allclose(scored[row].numpy(), logprobs.ravel(), atol=1e-5)
    assert steps == ({*range(STEPS)} if flow == "sde" else {-1})


@CASES
@pytest.mark.parametrize("rows", [1, 7])
def test_the_ratio_is_one_before_any_update_in_any_batch(flow: str, alpha: float, rows: int) -> None:
    head, sampling = make(flow), Sampling(alpha=alpha)
    with torch.no_grad():
        sample = head.sample(velocity, sampling, generators(rows))
        together, _ = head.score(velocity, sample.trace, sampling)
        alone = [head.score(velocity, sample.trace[row : row + 1], sampling)[0] for row in range(rows)]
    torch.testing.assert_close(together, sample.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat(alone), sample.logprobs, atol=1e-5, rtol=0)
    assert head.empty_trace(rows, condition=0).shape == sample.trace.shape


def test_flow_sde_at_zero_noise_is_the_euler_sampler() -> None:
    head = make()
    with torch.no_grad():
        silent = head.sample(velocity, Sampling(alpha=0.0), generators(6))
        greedy = head.sample(velocity, Sampling(greedy=True), generators(6))
        noisy = head.sample(velocity, Sampling(), generators(6))
    assert torch.equal(silent.normalised, greedy.normalised)
    assert not torch.equal(noisy.normalised, greedy.normalised)


@pytest.mark.parametrize("flow", ["sde", "noise"])
def test_greedy_is_eulers_method_from_the_row_s_own_noise(flow: str) -> None:
    head = make(flow)
    with torch.no_grad():
        greedy, again = (head.sample(velocity, Sampling(greedy=True), generators(2)) for _ in range(2))
    assert torch.equal(greedy.normalised, again.normalised)
    assert greedy.logprobs.shape == (2, EXECUTED * REAL)
    assert not greedy.logprobs.any()
    assert greedy.trace.shape == head.empty_trace(2, 0).shape
    for row in range(2):
        x = np.random.default_rng(row).standard_normal((1, LENGTH, PADDED), np.float32)[0].astype(np.float64)
        for t in (1.0, 0.8, 0.6, 0.4, 0.2):
            x = x - 0.2 * velocity_in_float64(x, t)
        np.testing.assert_allclose(greedy.normalised[row].numpy(), x[:EXECUTED, :REAL], atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_noise_in_every_step_leaves_the_distribution_as_it_is(alpha: float) -> None:
    # Actions N(0, s^2) and noise N(0, 1) make x_t N(0, (1 - t)^2 s^2 + t^2), and the mean of e - a given x_t linear.
    variance, steps, one = 1.0, 2000, torch.ones(1, dtype=torch.float64)
    for k in range(steps):
        t = 1 - k / steps
        slope = (t - (1 - t) * 0.3**2) / ((1 - t) ** 2 * 0.3**2 + t**2)
        step = sde_step(one, slope * one, torch.tensor(t, dtype=torch.float64), 1 / steps, alpha)
        variance = float(step.mean) ** 2 * variance + float(step.std) ** 2
    assert math.sqrt(variance) == pytest.approx(0.3, rel=0.02)


def test_the_entropy_is_that_of_the_steps_that_have_noise() -> None:
    constant = 0.5 * math.log(2 * math.pi * math.e)
    for flow in ("sde", "noise"):
        head = make(flow)
        with torch.no_grad():
            sample = head.sample(velocity, Sampling(), generators(8))
            _, entropy = head.score(velocity, sample.trace, Sampling())
        stds = stds_in_float64(flow, 0.5)
        for row in range(8):
            steps = stds if flow == "noise" else [stds[int(sample.trace[row, 0])]]
            expected = np.tile(sum(np.log(std) + constant for std in steps), (EXECUTED, 1))
            np.testing.assert_allclose(entropy[row].numpy(), expected.ravel(), atol=1e-5)


def test_units_are_the_real_dimensions_of_actions_that_may_be_executed() -> None:
    head = make()
    assert head.unit_action_index.tolist() == [0, 0, 1, 1, 2, 2]
    assert head.unit_discount.tolist() == head.unit_clip_scale.tolist() == [1.0] * 6
    with torch.no_grad():
        trace = head.sample(velocity, Sampling(), generators(1)).trace
        before, _ = head.score(velocity, trace, Sampling())
        trace[:, 1 + LENGTH * PADDED :].view(LENGTH, PADDED)[:, REAL:] += 1.0
        trace[:, 1 + LENGTH * PADDED :].view(LENGTH, PADDED)[EXECUTED:] += 1.0
        after, _ = head.score(velocity, trace, Sampling())
        assert torch.equal(before, after)
        trace[:, -LENGTH * PADDED] += 1.0
        changed, _ = head.score(velocity, trace, Sampling())
    assert (changed != before).nonzero()[:, 1].tolist() == [0]


@pytest.mark.parametrize("flow", ["sde", "noise"])
def test_an_update_passes_the_network_once_with_flow_sde(flow: str) -> None:
    head, passes = make(flow), []

    def counted(noisy: Tensor, times: Tensor) -> Tensor:
        passes.append(len(times))
        return velocity(noisy, times)

    with torch.no_grad():
        trace = head.sample(velocity, Sampling(), generators(3)).trace
        head.score(counted, trace, Sampling())
    assert passes == [3] * (1 if flow == "sde" else STEPS)


def test_the_loss_and_its_gradient_agree_with_float64() -> None:
    head = FlowHead(STEPS, (LENGTH, PADDED), EXECUTED, REAL)
    actions = torch.linspace(-1, 1, 2 * LENGTH * REAL).view(2, LENGTH, REAL)
    mask = torch.tensor([[True] * LENGTH, [True, False, False, False]])
    torch.manual_seed(0)
    drawn = head.loss_noise(2, draws=3)
    scale = nn.Parameter(torch.tensor([0.5, -0.7, 0.9]))
    loss = head.loss(lambda noisy, times: scale * noisy + times[:, None, None], actions, mask, **drawn)
    loss.backward()  # type: ignore[no-untyped-call]
    total, slope, count = 0.0, np.zeros(PADDED), 0
    for row in range(2):
        padded = np.concatenate([actions[row].double().numpy(), np.zeros((LENGTH, PADDED - REAL))], axis=1)
        for draw in range(3):
            noise, t = drawn["noise"][row, draw].double().numpy(), float(drawn["times"][row, draw])
            x = (1 - t) * padded + t * noise
            error = scale.detach().double().numpy() * x + t - (noise - padded)
            valid = np.outer(mask[row].numpy(), np.arange(PADDED) < REAL)
            total += float((error**2 * valid).sum())
            slope += (2 * error * x * valid).sum(axis=0)
            count += int(valid.sum())
    assert float(loss.detach()) == pytest.approx(total / count, rel=1e-5)
    assert scale.grad is not None
    np.testing.assert_allclose(scale.grad.numpy(), slope / count, rtol=1e-4, atol=1e-6)
    assert float(scale.grad[-1]) == 0.0


def test_training_times_are_of_the_published_distribution() -> None:
    torch.manual_seed(0)
    times = make().loss_noise(200, draws=500)["times"].flatten().sort().values
    expected = ((times - 0.001) / 0.999) ** 1.5
    # Kolmogorov's distance of 100,000 draws is below 0.006 with a probability of 99.8 %.
    assert float((expected - torch.linspace(0, 1, len(times))).abs().max()) < 0.006
    assert 0.001 <= float(times[0]) <= float(times[-1]) <= 1.0


def test_the_learned_std_trains_with_flow_noise_alone_and_is_always_saved() -> None:
    sde, noise = make(), make("noise")
    assert [name for name, _ in sde.named_parameters()] == []
    assert [name for name, _ in noise.named_parameters()] == ["spread"]
    assert sde.state_dict().keys() == noise.state_dict().keys() == {"spread"}
    with torch.no_grad():
        trace = noise.sample(velocity, Sampling(), generators(3)).trace
    noise.score(velocity, trace, Sampling())[0].sum().backward()
    assert noise.spread.grad is not None
    assert bool((noise.spread.grad != 0).all())
    noise.set_denoising(DenoisingConfig())
    assert torch.equal(noise.state_dict()["spread"], sde.state_dict()["spread"])


def test_the_u_net_sees_each_condition_as_often_as_it_has_noises() -> None:
    unet = UnetConfig(channels=(8, 16), kernel=3, time_size=8)
    head = UnetFlow(FlowConfig(steps=4, noise_samples=3, unet=unet), 8, chunk_length=3, action_dim=2)
    seen = []
    head.unet.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs))
    condition = torch.randn(2, 8)
    mask = torch.ones(2, 3, dtype=torch.bool)
    drawn = head.loss_noise(2)
    head.loss(head.given(condition), torch.zeros(2, 3, 2), mask, **drawn)
    ((noisy, times, given),) = seen
    assert noisy.shape == (6, 3, 2)
    assert torch.equal(given, condition[[0, 0, 0, 1, 1, 1]])
    torch.testing.assert_close(times, 100 * drawn["times"].flatten())


def test_actions_of_tinyvla_are_in_range() -> None:
    head = UnetFlow(FlowConfig(unet=UnetConfig(channels=(8,), time_size=8)), 8, chunk_length=3, action_dim=2)
    sample = head.sample(lambda noisy, times: -3.0 * torch.ones_like(noisy), Sampling(), generators(2))
    assert float(sample.normalised.max()) == 1.0


@pytest.mark.parametrize("make", [lambda: small.make(head="flow"), small_smolvla.make], ids=["tinyvla", "smolvla"])
def test_an_adapter_s_run_leaves_the_std_as_it_is(make: Callable[[], Any]) -> None:
    from simplevla.adapters.bank import AdapterBank

    config = TrainConfig(denoising=DenoisingConfig(flow="noise"))
    policy = make()
    policy.prepare_for_rl(config)
    assert policy.head.spread.requires_grad
    adapted = make()
    AdapterBank(adapted)
    adapted.prepare_for_rl(config)
    assert not adapted.head.spread.requires_grad


def test_the_learned_std_stays_the_same_parameter_when_it_is_prepared_again() -> None:
    policy = small.make(head="flow")
    policy.prepare_for_rl(TrainConfig(denoising=DenoisingConfig(flow="noise")))
    spread = policy.head.spread
    policy.prepare_for_rl(TrainConfig(denoising=DenoisingConfig(flow="noise")))
    assert policy.head.spread is spread
    policy.prepare_for_rl(TrainConfig())
    assert "head.spread" in dict(policy.named_buffers())
    assert "head.spread" not in dict(policy.named_parameters())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="ratio is 'chunk', and this policy has a flow head"):
        make().set_denoising(DenoisingConfig(ratio="chunk"))
    with pytest.raises(ValueError, match="steps is 1"):
        FlowConfig(steps=1)
    with pytest.raises(ValueError, match="alpha is 0"):
        SamplingConfig(alpha=0)
    with pytest.raises(ValueError, match="greedy denoising has no density"):
        make().score(velocity, make().empty_trace(1, 0), Sampling(greedy=True))
    both = TrainConfig(sampling=SamplingConfig(alpha=0.3), denoising=DenoisingConfig(flow="noise"))
    with pytest.raises(ValueError, match=r"sampling.alpha is 0.3 and has no effect: denoising.flow is 'noise'"):
        check_train(both, {})


def test_settings_of_other_heads_are_warned_of() -> None:
    unused = small.make(head="flow").unused_settings
    with pytest.warns(UserWarning, match=r"sampling.eta is 0.5 and has no effect: the policy has no diffusion head"):
        check_train(TrainConfig(sampling=SamplingConfig(eta=0.5)), unused)
    with pytest.warns(UserWarning, match=r"denoising.flow is 'noise' and has no effect: the policy has no flow head"):
        check_train(TrainConfig(denoising=DenoisingConfig(flow="noise")), small.make(head="diffusion").unused_settings)
    assert "sampling.alpha" in small.make().unused_settings
