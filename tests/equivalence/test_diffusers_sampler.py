"""The diffusion head's denoising steps against diffusers' own DDIM scheduler, which published TinyVLA calls with its defaults."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from simplevla.policies.base import Sampling
from simplevla.policies.tinyvla.config import DiffusionConfig, UnetConfig
from simplevla.policies.tinyvla.diffusion import DiffusionHead, squared_cosine, transition

SMALL = UnetConfig(channels=(8, 16), kernel=3, time_size=8)
VARIANTS = [(True, False), (True, True), (False, False)]


def scheduler(clip_sample: bool = True, steps: int = 10) -> DDIMScheduler:
    """As in TinyVLA's droid_unet_diffusion.py."""
    made = DDIMScheduler(
        num_train_timesteps=100,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=clip_sample,
        set_alpha_to_one=True,
        steps_offset=0,
        prediction_type="epsilon",
    )
    made.set_timesteps(steps)
    return made


def random_chunks(seed: int, scale: float) -> Tensor:
    return scale * torch.randn(6, 16, 7, generator=torch.Generator().manual_seed(seed))


def test_the_published_step_by_hand() -> None:
    # T = 100, K = 10, t = 90, x = 1, epsilon = 0.5: x0 is cut to 1, the direction keeps 0.5.
    abar = torch.from_numpy(squared_cosine(100))
    x, noise = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    mean, sigma = transition(x, noise, abar[90], abar[80], eta=0.0)
    assert (float(mean), float(sigma)) == pytest.approx((0.77004, 0.0), abs=5e-6)
    assert float(scheduler().step(0.5, 90, x).prev_sample) == pytest.approx(0.77004, abs=5e-6)
    mean, _ = transition(x, noise, abar[90], abar[80], eta=0.0, use_clipped_model_output=True)
    assert float(mean) == pytest.approx(1.12272, abs=5e-6)


@pytest.mark.parametrize(("clip_sample", "use_clipped"), VARIANTS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_each_step_is_that_of_the_scheduler(clip_sample: bool, use_clipped: bool, eta: float) -> None:
    theirs = scheduler(clip_sample)
    abar = torch.from_numpy(squared_cosine(100)).float()
    x, noise, drawn = random_chunks(0, 1.0), random_chunks(1, 1.5), random_chunks(2, 1.0)
    cut = 0
    for t in theirs.timesteps.tolist():
        a, p = abar[t], abar[t - 10] if t else torch.tensor(1.0)
        mean, sigma = transition(x, noise, a, p, eta, clip_sample, use_clipped)
        expected = theirs.step(noise, t, x, eta=eta, use_clipped_model_output=use_clipped, variance_noise=drawn)
        # The last steps of the unclipped variant divide by sqrt(abar) near 0, so its values are large.
        torch.testing.assert_close(mean + sigma * drawn, expected.prev_sample, atol=2e-5, rtol=2e-5)
        cut += int((expected.pred_original_sample.abs() == 1).sum())
    assert (cut > 100) == clip_sample


@pytest.mark.parametrize(("clip_sample", "use_clipped"), VARIANTS)
def test_a_greedy_chunk_is_the_scheduler_s(clip_sample: bool, use_clipped: bool) -> None:
    config = DiffusionConfig(unet=SMALL, clip_sample=clip_sample, use_clipped_model_output=use_clipped)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = DiffusionHead(config, 8, 16, 7)
        for parameter in head.parameters():
            parameter.data.mul_(1.5)
    condition = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        got = head.sample(condition, Sampling(greedy=True), [np.random.default_rng(i) for i in range(4)])
        starts = [np.random.default_rng(i).standard_normal((11, 16, 7), np.float32)[0] for i in range(4)]
        x = torch.from_numpy(np.stack(starts))
        theirs = scheduler(clip_sample)
        for t in theirs.timesteps.tolist():
            noise = head.unet(x, torch.full((4,), t), condition)
            x = theirs.step(noise, t, x, use_clipped_model_output=use_clipped).prev_sample
    # At t = 90 the estimate divides by sqrt(abar) = 0.16: float32's last bits grow.
    torch.testing.assert_close(got.normalised, x, atol=2e-4, rtol=2e-4)


def test_the_variants_act_differently() -> None:
    chunks = []
    for clip_sample, use_clipped in VARIANTS:
        config = DiffusionConfig(unet=SMALL, clip_sample=clip_sample, use_clipped_model_output=use_clipped)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            head = DiffusionHead(config, 8, 16, 7)
        with torch.no_grad():
            chunks.append(head.sample(torch.ones(1, 8), Sampling(greedy=True), [np.random.default_rng(0)]).normalised)
    for one in range(3):
        for other in range(one):
            assert (chunks[one] - chunks[other]).abs().max() > 0.02


def test_a_step_scores_what_it_samples_in_every_variant() -> None:
    for clip_sample, use_clipped in VARIANTS:
        config = DiffusionConfig(unet=SMALL, clip_sample=clip_sample, use_clipped_model_output=use_clipped)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            head = DiffusionHead(config, 8, 16, 7)
        condition = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            sample = head.sample(condition, Sampling(), [np.random.default_rng(i) for i in range(3)])
            again, _ = head.score(condition, sample.trace, Sampling())
        torch.testing.assert_close(again, sample.logprobs, atol=1e-4, rtol=0)
