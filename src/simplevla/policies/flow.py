"""The flow head: a chunk of actions by following a learned velocity from noise, and the densities that RL needs.

B batch, H actions that are predicted, A dimensions of an action, K steps of the sampler. Time t goes from 1 (noise e)
to 0 (actions a): `x_t = (1 - t) a + t e`, whose velocity is `v = e - a` (flow matching, arXiv 2210.02747).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from simplevla.config import DenoisingConfig
from simplevla.errors import UserError
from simplevla.policies.base import Sampling
from simplevla.policies.heads import HeadSample, masked_error, normal_entropy, normal_logprobs

Velocity = Callable[[Tensor, Tensor], Tensor]
"""The predicted velocity [B, H, A] of points x_t [B, H, A] at times t [B], given all else that a policy sees."""

NOISE_STD = (0.08, 0.16)
"""Bounds of Flow-Noise's learned standard deviation, in normalised actions, as in pi_RL (arXiv 2510.25889)."""
TIME_POWER, TIME_SCALE, LEAST_TIME = 1.5, 0.999, 0.001
"""Training times are `TIME_SCALE Beta(TIME_POWER, 1) + LEAST_TIME`, as in SmolVLA's published code."""


UNUSED_BY_FLOW = {
    "sampling.temperature": "the policy has a flow head; it has sampling.alpha",
    **dict.fromkeys(
        ("sampling.eta", "sampling.sigma_min", "denoising.discount", "denoising.last_steps"),
        "the policy has no diffusion head",
    ),
}
"""Settings of RL that a flow head has no use for -> why."""


class Step(NamedTuple):
    """One step of the sampler from x_t, each [B, H, A]."""

    euler: Tensor
    """x of the deterministic step."""
    mean: Tensor
    """Mean of x after the stochastic step."""
    std: Tensor
    """Standard deviation of x after the stochastic step; 0 where no noise is added."""


def sde_step(noisy: Tensor, velocity: Tensor, t: Tensor, length: float, alpha: Tensor | float) -> Step:
    """Step of Flow-SDE from t to t - length, which leaves the distribution of x_t as it is (arXiv 2510.25889).

    `mean = x - d v - sigma^2 d / (2 t) (x + (1 - t) v)` and `std = sigma sqrt(d)`, with
    `sigma = alpha sqrt(t / (1 - t))`. At t = 1, where that is infinite, 1 - t is taken at the step's end and is d, as
    in Flow-GRPO's code (arXiv 2505.05470): the first step's std is alpha.

    Args:
        noisy: x_t, [B, H, A].
        velocity: v, of the same shape.
        t: broadcastable to them.
        length: d.
        alpha: likewise; 0 is the Euler step.
    """
    sigma = alpha * (t / torch.where(t < 1, 1 - t, length)).sqrt()
    euler = noisy - length * velocity
    pull = noisy + (1 - t) * velocity
    return Step(euler, euler - sigma**2 * length / (2 * t) * pull, (sigma * length**0.5).expand_as(noisy))


class FlowHead(nn.Module):
    """Flow head: its loss, its sampler and the log-densities of what was sampled, for any network of velocities.

    Greedy is Euler's method in K steps from the row's own noise. For training, `denoising.flow` names the noise:

    - `sde`: one step of each decision, drawn from its generator, is that of Flow-SDE, the others are Euler's. Its
      density is the only one, so `score` is one pass of the network. `sampling.alpha` plays the part of a temperature.
    - `noise`: every step is Euler's plus noise with a learned standard deviation per step and dimension (Flow-Noise),
      whose bounds, `NOISE_STD`, play the part of a temperature. A log-probability is the sum over the K steps.

    A unit is an entry of the part of the chunk that may be executed (U = h a): actions beyond `executed` and dimensions
    beyond `real_dims` get no noise and don't count. A trace is, flat, the number of the stochastic step, x before and
    x after it; with `noise` it is x_1 .. x_0.
    """

    used: Tensor
    spread: Tensor

    def __init__(self, steps: int, shape: tuple[int, int], executed: int, real_dims: int) -> None:
        """Sizes of a flow head, which has no network of its own.

        Args:
            steps: K, at least 2.
            shape: (H, A) of what the network predicts, padding included.
            executed: actions of the chunk that a policy hands out, the first ones.
            real_dims: dimensions of an action that aren't padding, the first ones.
        """
        super().__init__()
        assert steps >= 2, "the end of the only step has no noise"
        assert executed <= shape[0], "more actions are executed than predicted"
        assert real_dims <= shape[1], "more dimensions are real than predicted"
        self.steps = steps
        self.shape = shape
        self.executed, self.real_dims = executed, real_dims
        used = torch.zeros(shape)
        used[:executed, :real_dims] = 1
        self.register_buffer("used", used, persistent=False)
        self.register_buffer("spread", torch.zeros(steps, real_dims))
        self.denoising = DenoisingConfig()

    def set_denoising(self, denoising: DenoisingConfig, *, learned: bool = True) -> None:
        """Sets how noise is added from now on; with Flow-Noise `spread`, its standard deviation, is a parameter.

        Args:
            denoising: what a run sets.
            learned: whether it trains; not under an adapter, whose files have no place for it.

        Raises:
            UserError: ratios of chunks.
        """
        if denoising.ratio == "chunk":
            raise UserError(
                "denoising.ratio is 'chunk', and this policy has a flow head, whose density is of executed actions alone; "
                "expected 'entry'"
            )
        self.denoising = denoising
        spread, parameter = self.spread, denoising.flow == "noise"
        # The same parameter as before, where it is one: several ranks, or an optimizer, may hold it.
        if parameter != isinstance(spread, nn.Parameter):
            del self.spread
            if parameter:
                self.spread = nn.Parameter(spread)
            else:
                self.register_buffer("spread", spread.detach())
        if parameter:
            self.spread.requires_grad_(learned)

    @property
    def unit_action_index(self) -> np.ndarray:
        """int64 [U]: the action in the chunk that each entry is of."""
        return np.repeat(np.arange(self.executed), self.real_dims)

    @property
    def unit_discount(self) -> np.ndarray:
        """float32 [U]: every unit gets the whole advantage."""
        return np.ones(self.executed * self.real_dims, np.float32)

    @property
    def unit_clip_scale(self) -> np.ndarray:
        """float32 [U]: every unit gets the whole clip range."""
        return self.unit_discount

    def empty_trace(self, rows: int, condition: int) -> Tensor:
        """Traces of `rows` decisions, each with a condition of that width behind it."""
        size = self.used.numel()
        own = (self.steps + 1) * size if self.denoising.flow == "noise" else 1 + 2 * size
        return torch.zeros(rows, own + condition)

    def loss_noise(self, samples: int, draws: int = 1) -> dict[str, Tensor]:
        """Random numbers of the loss of B = `samples` chunks, from torch's generator, S = `draws` per chunk.

        They are the noise, float32 [B, S, H, A], and the times at which it is added, float32 [B, S].
        """
        noise = torch.randn(samples, draws, *self.shape, device=self.used.device)
        # A number of Beta(p, 1) is the p-th root of a uniform one.
        beta = torch.rand(samples, draws, device=self.used.device) ** (1 / TIME_POWER)
        return {"noise": noise, "times": TIME_SCALE * beta + LEAST_TIME}

    def loss(self, velocity: Velocity, normalised: Tensor, mask: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Mean squared error of the predicted velocity over valid actions and real dimensions.

        Args:
            velocity: gets B S rows, those of a chunk one after another.
            normalised: float32 [B, H, a] of the real dimensions; the others are padded with zeros.
            mask: bool [B, H], false after the end of the demonstration.
            noise: as `loss_noise` draws it, and so are `times`.
        """
        draws = noise.shape[1]
        normalised = F.pad(normalised, (0, self.shape[1] - normalised.shape[2]))
        normalised, mask = (x.repeat_interleave(draws, dim=0) for x in (normalised, mask))
        noise, times = noise.flatten(0, 1), times.flatten()
        t = times[:, None, None]
        predicted = velocity((1 - t) * normalised + t * noise, times).float()
        real = slice(self.real_dims)
        return masked_error(predicted[..., real], (noise - normalised)[..., real], mask)

    def sample(self, velocity: Velocity, sampling: Sampling, generators: Sequence[np.random.Generator]) -> HeadSample:
        """Follows the velocity from each row's own noise; greedy is Euler's method from there."""
        draws = 1 if sampling.greedy else self.steps + 1
        noises = np.stack([generator.standard_normal((draws, *self.shape), np.float32) for generator in generators])
        noise = torch.from_numpy(noises).to(self.used.device)
        drawn = self.denoising.flow == "sde" and not sampling.greedy
        chosen = [int(generator.integers(self.steps)) if drawn else 0 for generator in generators]
        stochastic = torch.tensor(chosen, device=self.used.device)
        chain = [noise[:, 0]]
        logprobs = torch.zeros(len(generators), self.executed * self.real_dims, device=self.used.device)
        for index in range(self.steps):
            step = self._step(velocity, chain[-1], torch.full_like(stochastic, index), sampling)
            if sampling.greedy:
                # Greedy has no density; what it did counts as certain, as a token head's choice nearly does.
                chain.append(step.euler)
                continue
            here = stochastic == index if drawn else torch.ones_like(stochastic, dtype=torch.bool)
            after = step.mean + step.std * noise[:, index + 1]
            chain.append(torch.where(here[:, None, None], after, step.euler))
            logprobs = logprobs + torch.where(here[:, None], self._logprobs(after, step), 0.0)
        states = torch.stack(chain, dim=1)
        if self.denoising.flow == "noise":
            trace = states.flatten(1)
        else:
            rows = torch.arange(len(states), device=states.device)
            ends = [states[rows, stochastic + after].flatten(1) for after in (0, 1)]
            trace = torch.cat([stochastic[:, None].float(), *ends], dim=1)
        return HeadSample(normalised=chain[-1][:, : self.executed, : self.real_dims], logprobs=logprobs, trace=trace)

    def score(self, velocity: Velocity, trace: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
        """(logprobs [B, U], entropy [B, U]) of a trace: one pass of the network, or K with Flow-Noise.

        Raises:
            UserError: greedy sampling, which has no density.
        """
        if sampling.greedy:
            raise UserError("greedy denoising has no density; score with the sampling that trains")
        logprobs = entropy = torch.zeros((), device=trace.device)
        for index, before, after in self._stochastic_steps(trace):
            step = self._step(velocity, before, index, sampling)
            logprobs = logprobs + self._logprobs(after, step)
            entropy = entropy + normal_entropy(self._units(step.std))
        return logprobs, entropy

    def _stochastic_steps(self, trace: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(number [B], x before, x after) of each step of a trace that has a density."""
        if self.denoising.flow == "noise":
            states = trace.unflatten(1, (self.steps + 1, *self.shape))
            numbers = [torch.full((len(trace),), k, device=trace.device) for k in range(self.steps)]
            return [(number, states[:, k], states[:, k + 1]) for k, number in enumerate(numbers)]
        before, after = trace[:, 1:].unflatten(1, (2, *self.shape)).unbind(1)
        return [(trace[:, 0].long(), before, after)]

    def _step(self, velocity: Velocity, noisy: Tensor, index: Tensor, sampling: Sampling) -> Step:
        """Step number `index` [B] (0 is the noisiest) of each row."""
        length = 1 / self.steps
        times = 1 - index * length
        predicted = velocity(noisy, times).float()
        if self.denoising.flow == "sde":
            return sde_step(noisy, predicted, times[:, None, None], length, sampling.alpha * self.used)
        euler = noisy - length * predicted
        low, high = NOISE_STD
        std = low + (high - low) * self.spread.sigmoid()
        return Step(euler, euler, self.used * F.pad(std, (0, self.shape[1] - self.real_dims))[index][:, None])

    def _logprobs(self, value: Tensor, step: Step) -> Tensor:
        """[B, U] of x after a step."""
        return normal_logprobs(*(self._units(x) for x in (value, step.mean, step.std)))

    def _units(self, entries: Tensor) -> Tensor:
        """[B, U] of values per entry [B, H, A]."""
        return entries[:, : self.executed, : self.real_dims].flatten(1)
