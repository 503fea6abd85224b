"""TinyVLA's flow head: the diffusion head's U-Net predicts a velocity."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from simplevla.policies.base import Sampling
from simplevla.policies.flow import FlowHead, Velocity
from simplevla.policies.heads import HeadSample
from simplevla.policies.tinyvla.config import FlowConfig
from simplevla.policies.tinyvla.unet import ConditionalUnet

TIME_UNIT = 100
"""Factor of a time from 0 to 1 before the U-Net, whose embedding is made for the diffusion head's 100 steps."""


class UnetFlow(FlowHead):
    """Flow head with a conditional U-Net, for actions in [-1, 1]."""

    def __init__(self, config: FlowConfig, condition_size: int, chunk_length: int, action_dim: int) -> None:
        super().__init__(config.steps, (chunk_length, action_dim), chunk_length, action_dim)
        self.config = config
        self.unet = ConditionalUnet(action_dim, condition_size, config.unet)

    def given(self, condition: Tensor) -> Velocity:
        """Velocity by the U-Net under `condition` [B, C], whose rows are repeated for as many points as each has."""

        def velocity(noisy: Tensor, times: Tensor) -> Tensor:
            repeated = condition.repeat_interleave(len(noisy) // len(condition), dim=0)
            return self.unet(noisy, times * TIME_UNIT, repeated)

        return velocity

    def loss_noise(self, samples: int, draws: int = 0) -> dict[str, Tensor]:
        return super().loss_noise(samples, draws or self.config.noise_samples)

    def sample(self, velocity: Velocity, sampling: Sampling, generators: Sequence[np.random.Generator]) -> HeadSample:
        sample = super().sample(velocity, sampling, generators)
        return replace(sample, normalised=sample.normalised.clamp(-1, 1))
