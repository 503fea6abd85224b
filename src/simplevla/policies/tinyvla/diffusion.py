"""The diffusion head: a chunk of actions by denoising, every step of which is a decision with a density.

B batch, H actions in a chunk, A dimensions of an action, C width of the condition, K denoising steps of the sampler, of
which the last N train. The chain x_K .. x_0 goes from noise to the chunk (DPPO, arXiv 2409.00588).
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from simplevla.config import DenoisingConfig
from simplevla.errors import UserError
from simplevla.policies.base import Sampling
from simplevla.policies.heads import HeadSample, masked_error, normal_entropy, normal_logprobs
from simplevla.policies.tinyvla.config import DiffusionConfig
from simplevla.policies.tinyvla.unet import ConditionalUnet

LOGPROB_RANGE = (-5.0, 2.0)
"""Range to which the log-density of an entry is clamped, nats, as in DPPO's code."""
FIRST_CLIP = 0.1
"""Clip range of the noisiest step as a share of the last step's, with ratio `chunk` (0.001 and 0.01 in DPPO's code)."""
CLIP_GROWTH = 3.0
"""Rate of the exponential by which the clip range grows in between, as in DPPO."""


def squared_cosine(steps: int) -> np.ndarray:
    """float64 [steps] of `abar`, the share of the signal's variance that is left after training step t.

    `beta_t = min(1 - f((t + 1) / T) / f(t / T), 0.999)` with `f(u) = cos^2((u + 0.008) / 1.008 pi / 2)`, and `abar_t`
    the product of `1 - beta` up to t (Nichol and Dhariwal, arXiv 2102.09672).
    """
    f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))


def transition(
    noisy: Tensor,
    noise: Tensor,
    abar: Tensor,
    abar_next: Tensor,
    eta: float,
    clip_sample: bool = True,
    use_clipped_model_output: bool = False,
) -> tuple[Tensor, Tensor]:
    """(mean, sigma) of a DDIM step from `abar` to `abar_next` (arXiv 2010.02502, equation 12); sigma has no floor yet.

    The switches are those of diffusers' `DDIMScheduler`, with the meaning that they have there.

    Args:
        noisy: x_t, [..., H, A].
        noise: the predicted epsilon, of the same shape.
        abar: of t and of the next step, each broadcastable to `noisy`.
        eta: 0 is deterministic, 1 the full variance.
        clip_sample: cut the estimate of x_0 to [-1, 1].
        use_clipped_model_output: replace the predicted epsilon by the one that the cut estimate implies.
    """
    clean = (noisy - (1 - abar).sqrt() * noise) / abar.sqrt()
    if clip_sample:
        clean = clean.clamp(-1, 1)
    if use_clipped_model_output:
        noise = (noisy - abar.sqrt() * clean) / (1 - abar).sqrt()
    variance = eta**2 * (1 - abar_next) / (1 - abar) * (1 - abar / abar_next)
    mean = abar_next.sqrt() * clean + (1 - abar_next - variance).clamp(min=0).sqrt() * noise
    return mean, variance.sqrt()


def entry_logprobs(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density of each entry under N(mean, std^2), clamped to `LOGPROB_RANGE`."""
    return normal_logprobs(value, mean, std).clamp(*LOGPROB_RANGE)


class DiffusionHead(nn.Module):
    """Diffusion head: a conditional U-Net that predicts noise, its loss, its sampler and that one's log-probabilities.

    A unit is an entry of the chunk at one denoising step (U = N H A), or with ratio `chunk` a whole denoising step,
    whose log-probability is the mean over its entries (U = N). A trace is the flat chain x_N .. x_0, in normalised
    actions.
    """

    abar: Tensor

    def __init__(self, config: DiffusionConfig, condition_size: int, chunk_length: int, action_dim: int) -> None:
        super().__init__()
        self.config = config
        self.shape = (chunk_length, action_dim)
        self.unet = ConditionalUnet(action_dim, condition_size, config.unet)
        self.register_buffer("abar", torch.from_numpy(squared_cosine(config.train_steps)).float(), persistent=False)
        self.set_denoising(DenoisingConfig())

    def set_denoising(self, denoising: DenoisingConfig) -> None:
        """Sets how ratios are built from now on, and which steps train.

        Raises:
            UserError: more steps are to train than the sampler has.
        """
        if denoising.last_steps > self.config.steps:
            raise UserError(
                f"denoising.last_steps is {denoising.last_steps}; this policy's sampler has {self.config.steps} steps"
            )
        self.denoising = denoising
        self.trained_steps = denoising.last_steps or self.config.steps

    @property
    def unit_action_index(self) -> np.ndarray:
        """int64 [U]; a whole step counts as long as the chunk's first action was executed."""
        if self.denoising.ratio == "chunk":
            return np.zeros(self.trained_steps, np.int64)
        length, action_dim = self.shape
        return np.tile(np.repeat(np.arange(length), action_dim), self.trained_steps)

    @property
    def unit_discount(self) -> np.ndarray:
        """float32 [U]: the last step's advantage counts whole, that of each step before it by a factor less."""
        return self._per_unit(self.denoising.discount ** np.arange(self.trained_steps - 1, -1, -1))

    def empty_trace(self, rows: int, condition: int) -> Tensor:
        """Chains of `rows` decisions, each with a condition of that width behind it."""
        length, action_dim = self.shape
        return torch.zeros(rows, (self.trained_steps + 1) * length * action_dim + condition)

    @property
    def unit_clip_scale(self) -> np.ndarray:
        """float32 [U]: grows exponentially over the steps with ratio `chunk`; 1 with ratio `entry`."""
        if self.denoising.ratio == "entry":
            return self._per_unit(np.ones(self.trained_steps))
        time = np.linspace(0, 1, self.trained_steps) if self.trained_steps > 1 else np.ones(1)
        grown = np.expm1(CLIP_GROWTH * time) / np.expm1(CLIP_GROWTH)
        return self._per_unit(FIRST_CLIP + (1 - FIRST_CLIP) * grown)

    def _per_unit(self, steps: np.ndarray) -> np.ndarray:
        entries = 1 if self.denoising.ratio == "chunk" else math.prod(self.shape)
        return np.repeat(steps, entries).astype(np.float32)

    def loss_noise(self, samples: int) -> dict[str, Tensor]:
        """Random numbers of the loss of B = `samples` chunks, from torch's generator, S = `noise_samples` per chunk.

        They are the noise, float32 [B, S, H, A], and the training steps at which it is added, int64 [B, S].
        """
        draws = (samples, self.config.noise_samples)
        noise = torch.randn(*draws, *self.shape, device=self.abar.device)
        return {"noise": noise, "steps": torch.randint(self.config.train_steps, draws, device=self.abar.device)}

    def loss(self, condition: Tensor, normalised: Tensor, mask: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Mean squared error of the predicted noise over valid actions.

        Args:
            condition: [B, C].
            normalised: float32 [B, H, A] in [-1, 1].
            mask: bool [B, H], false after the end of the demonstration.
            noise: as `loss_noise` draws it, and so are `steps`.
        """
        draws = noise.shape[1]
        condition, normalised, mask = (x.repeat_interleave(draws, dim=0) for x in (condition, normalised, mask))
        noise, steps = noise.flatten(0, 1), steps.flatten()
        abar = self.abar[steps][:, None, None]
        predicted = self.unet(abar.sqrt() * normalised + (1 - abar).sqrt() * noise, steps, condition)
        return masked_error(predicted, noise, mask)

    def sample(self, condition: Tensor, sampling: Sampling, generators: Sequence[np.random.Generator]) -> HeadSample:
        """Denoises from a row's own noise; greedy is deterministic DDIM from there, as in the published policy."""
        assert len(generators) == len(condition), "one generator per row"
        count = self.config.steps
        noises = np.stack([generator.standard_normal((count + 1, *self.shape), np.float32) for generator in generators])
        noise = torch.from_numpy(noises).to(condition.device)
        chain = [noise[:, 0]]
        logprobs = []
        for index in range(count):
            mean, std = self._step(chain[-1], index, condition, sampling)
            chain.append(mean + std * noise[:, index + 1])
            # Greedy has no density; what it did counts as certain, as a token head's choice nearly does.
            logprobs.append(torch.zeros_like(mean) if sampling.greedy else entry_logprobs(chain[-1], mean, std))
        kept = self.trained_steps
        return HeadSample(
            normalised=chain[-1].clamp(-1, 1) if self.config.clip_sample else chain[-1],
            logprobs=self._units(torch.stack(logprobs[-kept:], dim=1)),
            trace=torch.stack(chain[-kept - 1 :], dim=1).flatten(1),
        )

    def score(self, condition: Tensor, trace: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
        """(logprobs [B, U], entropy [B, U]) of a trace, all steps in one batch of the U-Net.

        Raises:
            UserError: greedy sampling, which has no density.
        """
        if sampling.greedy:
            raise UserError("greedy denoising has no density; score with the sampling that trains")
        count = self.trained_steps
        chain = trace.unflatten(1, (count + 1, *self.shape))
        index = torch.arange(self.config.steps - count, self.config.steps, device=chain.device)
        mean, std = self._step(
            chain[:, :-1].flatten(0, 1),
            index.repeat(len(chain)),
            condition.repeat_interleave(count, dim=0),
            sampling,
        )
        logprobs = entry_logprobs(chain[:, 1:].flatten(0, 1), mean, std)
        entropy = normal_entropy(std).expand_as(mean)
        return self._units(logprobs.unflatten(0, (-1, count))), self._units(entropy.unflatten(0, (-1, count)))

    def _units(self, entries: Tensor) -> Tensor:
        """[B, U] of values per entry [B, N, H, A]."""
        return entries.mean(dim=(2, 3)) if self.denoising.ratio == "chunk" else entries.flatten(1)

    def _step(self, noisy: Tensor, index: int | Tensor, condition: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
        """(mean, std) of sampler step `index` (0 is the noisiest), one for all rows or one per row."""
        stride = self.config.train_steps // self.config.steps
        index = torch.as_tensor(index, device=noisy.device).expand(len(noisy))
        step = (self.config.steps - 1 - index) * stride
        abar = self.abar[step][:, None, None]
        abar_next = torch.where(index < self.config.steps - 1, self.abar[(step - stride).clamp(min=0)], 1.0)
        noise = self.unet(noisy, step, condition).float()
        mean, sigma = transition(
            noisy,
            noise,
            abar,
            abar_next[:, None, None],
            0.0 if sampling.greedy else sampling.eta,
            self.config.clip_sample,
            self.config.use_clipped_model_output,
        )
        return mean, sigma if sampling.greedy else sigma.clamp(min=sampling.sigma_min)
