import math

import numpy as np
import pytest
import torch
from torch import Tensor

from simplevla.config import DenoisingConfig, LossConfig, SamplingConfig, TrainConfig
from simplevla.policies.base import Sampling
from simplevla.policies.tinyvla.config import DiffusionConfig, UnetConfig
from simplevla.policies.tinyvla.diffusion import DiffusionHead, squared_cosine, transition

LENGTH, DIMENSIONS, WIDTH = 3, 2, 8
SMALL = UnetConfig(channels=(8, 16), kernel=3, time_size=8)


def make(steps: int = 5, **denoising: object) -> DiffusionHead:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = DiffusionHead(DiffusionConfig(steps=steps, unet=SMALL), WIDTH, LENGTH, DIMENSIONS)
    head.set_denoising(DenoisingConfig(**denoising))  # type: ignore[arg-type]
    return head


def conditions(rows: int) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(1))


def generators(rows: int) -> list[np.random.Generator]:
    return [np.random.default_rng(row) for row in range(rows)]


class Silent:
    """A generator whose only noise is where the chain starts."""

    def __init__(self, start: np.ndarray) -> None:
        self.start = start

    def standard_normal(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        noise = np.zeros(shape, dtype)
        noise[0] = self.start
        return noise


def abar_at(step: int) -> float:
    """In closed form: the products of the schedule cancel but for its ends."""
    f = [math.cos((t / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0, step + 1)]
    return f[1] / f[0]


def step_in_float64(head: DiffusionHead, x: np.ndarray, number: int, condition: Tensor, eta: float) -> tuple:
    """Mean [H, A] and sigma of step `number` of 5 from x float64 [H, A], written out."""
    time = (80, 60, 40, 20, 0)[number]
    a, p = abar_at(time), abar_at(time - 20) if time else 1.0
    with torch.no_grad():
        noise = head.unet.double()(torch.from_numpy(x)[None], torch.tensor([time]), condition.double()[None])
    head.float()
    e = noise[0].numpy()
    clean = np.clip((x - math.sqrt(1 - a) * e) / math.sqrt(a), -1, 1)
    sigma = eta * math.sqrt((1 - p) / (1 - a)) * math.sqrt(1 - a / p)
    return math.sqrt(p) * clean + math.sqrt(max(1 - p - sigma**2, 0)) * e, sigma


def test_the_schedule_is_the_squared_cosine() -> None:
    schedule = squared_cosine(100)
    assert schedule[[0, 20, 80, 98]].tolist() == pytest.approx([abar_at(t) for t in (0, 20, 80, 98)], abs=1e-12)
    # The last beta would be 1 and is cut to 0.999.
    assert schedule[99] == pytest.approx(0.001 * schedule[98])


def test_a_step_by_hand() -> None:
    # abar 0.25 -> 0.64, x 0.5, epsilon 0.2: x0 = (0.5 - 0.8660254 * 0.2) / 0.5 = 0.6535898, inside [-1, 1].
    # sigma^2 = 0.36 / 0.75 * (1 - 0.25 / 0.64) = 0.2925; mean = 0.8 x0 + sqrt(0.36 - 0.2925) 0.2 = 0.5748333
    x, e, a, p = (torch.tensor(v, dtype=torch.float64) for v in (0.5, 0.2, 0.25, 0.64))
    mean, sigma = transition(x, e, a, p, eta=1.0)
    assert (float(mean), float(sigma)) == pytest.approx((0.5748333, math.sqrt(0.2925)), abs=1e-6)
    # epsilon -0.6: x0 = 2.0392 is cut to 1, the direction keeps -0.6: 0.8 - 0.6 * 0.6 = 0.44.
    outside = torch.tensor(-0.6, dtype=torch.float64)
    mean, sigma = transition(x, outside, a, p, eta=0.0)
    assert (float(mean), float(sigma)) == pytest.approx((0.44, 0.0), abs=1e-9)
    # With the epsilon of the cut estimate, (0.5 - 0.5) / 0.866 = 0, it is 0.8; without the cut 0.8 * 2.0392 - 0.36.
    mean, _ = transition(x, outside, a, p, eta=0.0, use_clipped_model_output=True)
    assert float(mean) == pytest.approx(0.8, abs=1e-9)
    mean, _ = transition(x, outside, a, p, eta=0.0, clip_sample=False)
    assert float(mean) == pytest.approx(0.8 * 2.0392305 - 0.36, abs=1e-6)


@pytest.mark.parametrize(("eta", "floor"), [(1.0, 0.1), (0.5, 0.3)])
def test_logprobs_agree_with_float64(eta: float, floor: float) -> None:
    head, condition = make(), conditions(4)
    with torch.no_grad():
        sample = head.sample(condition, Sampling(eta=eta, sigma_min=floor), generators(4))
    for row in range(4):
        chain = sample.trace[row].double().numpy().reshape(6, LENGTH, DIMENSIONS)
        expected = []
        for number in range(5):
            mean, sigma = step_in_float64(head, chain[number], number, condition[row], eta)
            std = max(sigma, floor)
            logprob = -0.5 * ((chain[number + 1] - mean) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)
            expected.append(np.clip(logprob, -5, 2))
        np.testing.assert_allclose(sample.logprobs[row].numpy(), np.concatenate(expected).ravel(), atol=5e-5)
    np.testing.assert_allclose(sample.normalised.numpy(), np.clip(sample.trace[:, -6:].reshape(4, 3, 2), -1, 1))


def test_the_mean_at_zero_noise_is_deterministic_ddim() -> None:
    head, condition = make(), conditions(1)
    start = np.random.default_rng(3).standard_normal((LENGTH, DIMENSIONS))
    x = start.astype(np.float32).astype(np.float64)
    for number in range(5):
        x, _ = step_in_float64(head, x, number, condition[0], eta=0.0)
    expected = np.clip(x, -1, 1)
    with torch.no_grad():
        greedy = head.sample(condition, Sampling(greedy=True), [Silent(start)])  # type: ignore[list-item]
        floored = head.sample(condition, Sampling(eta=0.0, sigma_min=0.1), [Silent(start)])  # type: ignore[list-item]
        noisy = head.sample(condition, Sampling(greedy=True), generators(1))
    np.testing.assert_allclose(greedy.normalised[0].numpy(), expected, atol=1e-5)
    assert torch.equal(greedy.normalised, floored.normalised)
    # Greedy takes the start from the row's generator and nothing else.
    same_start = Silent(np.random.default_rng(0).standard_normal((6, LENGTH, DIMENSIONS), np.float32)[0])
    with torch.no_grad():
        again = head.sample(condition, Sampling(greedy=True), [same_start])  # type: ignore[list-item]
    assert torch.equal(noisy.normalised, again.normalised)


@pytest.mark.parametrize("ratio", ["entry", "chunk"])
@pytest.mark.parametrize("last_steps", [0, 2])
@pytest.mark.parametrize("rows", [1, 7])
def test_the_ratio_is_one_before_any_update(ratio: str, last_steps: int, rows: int) -> None:
    head = make(ratio=ratio, last_steps=last_steps)
    sampling = Sampling()
    with torch.no_grad():
        sample = head.sample(conditions(rows), sampling, generators(rows))
    logprobs, entropy = head.score(conditions(rows), sample.trace, sampling)
    # Rounding of the mean, some 1e-6, times (x - mean) / sigma^2, up to 40; processors differ in it.
    torch.testing.assert_close(logprobs.detach(), sample.logprobs, atol=1e-4, rtol=0)
    assert logprobs.shape == entropy.shape == (rows, len(head.unit_action_index))
    # The last step's std is the floor: entropy log(0.1) + 0.5 log(2 pi e).
    assert float(entropy[0, -1]) == pytest.approx(math.log(0.1) + 1.4189385, abs=1e-5)


def test_training_samples_and_scores_by_the_config_s_settings() -> None:
    config = SamplingConfig(temperature=1.3, eta=0.5, sigma_min=0.2)
    assert Sampling.of(config) == Sampling(temperature=1.3, eta=0.5, sigma_min=0.2)


def test_units_of_entries_and_of_chunks() -> None:
    entries = make(last_steps=2, discount=0.9)
    assert entries.unit_action_index.tolist() == [0, 0, 1, 1, 2, 2] * 2
    assert entries.unit_discount.tolist() == pytest.approx([0.9] * 6 + [1.0] * 6)
    assert entries.unit_clip_scale.tolist() == [1.0] * 12
    assert make(last_steps=3).unit_action_index.tolist() == [0, 0, 1, 1, 2, 2] * 3
    chunks = make(ratio="chunk", discount=0.9)
    assert chunks.unit_action_index.tolist() == [0] * 5
    assert chunks.unit_discount.tolist() == pytest.approx([0.6561, 0.729, 0.81, 0.9, 1.0])
    # 0.1 + 0.9 (e^{3 t} - 1) / (e^3 - 1) at t = 0, 1/4, 1/2, 3/4, 1
    assert chunks.unit_clip_scale.tolist() == pytest.approx([0.1, 0.152673, 0.264183, 0.500251, 1.0], abs=1e-5)


def test_a_chunks_logprob_is_the_mean_over_its_entries_and_the_last_steps_are_the_last() -> None:
    samples = {}
    for ratio, last in (("entry", 0), ("chunk", 0), ("entry", 2)):
        with torch.no_grad():
            samples[ratio, last] = make(ratio=ratio, last_steps=last).sample(conditions(2), Sampling(), generators(2))
    whole = samples["entry", 0]
    torch.testing.assert_close(samples["chunk", 0].logprobs, whole.logprobs.unflatten(1, (5, 6)).mean(dim=2))
    assert torch.equal(samples["entry", 2].logprobs, whole.logprobs[:, -12:])
    assert torch.equal(samples["entry", 2].trace, whole.trace[:, -18:])
    assert torch.equal(samples["entry", 2].normalised, whole.normalised)


def test_extreme_entries_have_no_gradient() -> None:
    head = make()
    with torch.no_grad():
        sample = head.sample(conditions(1), Sampling(), generators(1))
    trace = sample.trace.clone()
    trace[0, -1] += 10.0
    logprobs, _ = head.score(conditions(1), trace, Sampling())
    assert float(logprobs[0, -1]) == -5.0
    logprobs[0, -1].backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None or not p.grad.any() for p in head.parameters())


def test_the_training_loss_is_the_error_of_the_noise_over_valid_actions() -> None:
    head = make()
    seen: list[tuple[Tensor, Tensor]] = []

    def blind(noisy: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        seen.append((noisy, step))
        return torch.zeros_like(noisy)

    head.unet.forward = blind  # type: ignore[method-assign]
    actions = torch.tensor([[[0.5, -0.5]] * 3] * 2)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    torch.manual_seed(0)
    loss = float(head.loss(conditions(2), actions, mask, **head.loss_noise(2)))
    ((noisy, step),) = seen
    noise = torch.stack(
        [
            (noisy[i] - math.sqrt(abar_at(int(step[i]))) * actions[i]) / math.sqrt(1 - abar_at(int(step[i])))
            for i in range(2)
        ]
    )
    valid = torch.cat([noise[0].flatten(), noise[1, 0]])
    assert loss == pytest.approx(float(valid.square().mean()), abs=1e-4)


def test_several_noises_per_chunk_share_a_condition() -> None:
    head = make()
    head.config = DiffusionConfig(steps=5, noise_samples=4, unet=SMALL)
    shapes = []
    head.unet.register_forward_hook(lambda _m, inputs, _o: shapes.append([tuple(x.shape) for x in inputs]))
    head.loss(conditions(2), torch.zeros(2, 3, 2), torch.ones(2, 3, dtype=torch.bool), **head.loss_noise(2))
    assert shapes == [[(8, 3, 2), (8,), (8, WIDTH)]]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="last_steps is 6; this policy's sampler has 5"):
        make(last_steps=6)
    with pytest.raises(ValueError, match=r"diffusion.steps is 7; expected a divisor of diffusion.train_steps, 100"):
        DiffusionConfig(steps=7)
    with pytest.raises(ValueError, match="sigma_min is 0"):
        SamplingConfig(sigma_min=0)
    chunk = DenoisingConfig(ratio="chunk")
    with pytest.raises(ValueError, match=r"ratio is 'chunk' with loss clips 0.2 / 0.28; expected at most 0.05"):
        TrainConfig(denoising=chunk)
    TrainConfig(denoising=chunk, loss=LossConfig(clip_low=0.01, clip_high=0.01))
