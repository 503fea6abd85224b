"""Small TinyVLA policies and observations for tests."""

from collections.abc import Sequence

import numpy as np
import torch

from simplevla.config import DenoisingConfig, Head, LossConfig, TrainConfig
from simplevla.policies.base import ObservationBatch
from simplevla.policies.normalization import Statistics
from simplevla.policies.tinyvla.policy import TinyVLA

INSTRUCTIONS = ("lift the red block", "push the blue block to the left zone", "press it")
CAMERAS = ("front", "wrist")


def statistics() -> Statistics:
    def spread(mean: list[float], std: list[float], low: list[float], high: list[float]) -> dict[str, list[float]]:
        return {"mean": mean, "std": std, "min": low, "max": high, "q01": low, "q99": high}

    return Statistics(
        state=spread([0.5, 0.0, -1.0], [0.1, 2.0, 0.0], [0.0, -4.0, -1.0], [1.0, 4.0, -1.0]),
        action=spread([0.0, 1.0], [0.5, 1.0], [-1.0, 0.0], [1.0, 10.0]),
    )


def for_rl(denoising: DenoisingConfig) -> TrainConfig:
    """Settings of RL with clips that any way of denoising may have."""
    return TrainConfig(denoising=denoising, loss=LossConfig(clip_low=0.01, clip_high=0.01))


def plain_statistics(state_dim: int, action_dim: int) -> Statistics:
    """Mean 0, std 1, from -1 to 1 in every dimension: the policy's numbers are the suite's."""
    values = {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}
    state, action = ({name: [value] * n for name, value in values.items()} for n in (state_dim, action_dim))
    return Statistics(state=state, action=action)


def make(preset: str = "nano", seed: int = 0, chunk_length: int = 3, head: Head = "tokens") -> TinyVLA:
    return TinyVLA.create(
        preset,
        cameras=CAMERAS,
        state_dim=3,
        action_dim=2,
        chunk_length=chunk_length,
        instructions=INSTRUCTIONS,
        statistics=statistics(),
        head=head,
        seed=seed,
    )


def for_fake_suite(tasks: Sequence[str]) -> TinyVLA:
    """A random policy for fake_suite, where chance is enough for both outcomes."""
    return TinyVLA.create(
        "nano",
        cameras=CAMERAS,
        state_dim=3,
        action_dim=2,
        chunk_length=4,
        instructions=[f"do {task}" for task in tasks],
        statistics=plain_statistics(3, 2),
    )


def observations(instructions: list[str], seed: int = 0, size: int = 32) -> ObservationBatch:
    rng = np.random.default_rng(seed)
    count = len(instructions)
    return ObservationBatch(
        images={camera: torch.from_numpy(rng.integers(0, 256, (count, size, size, 3), np.uint8)) for camera in CAMERAS},
        state=torch.from_numpy(rng.normal(size=(count, 3)).astype(np.float32)),
        instructions=instructions,
    )


def rows(batch: ObservationBatch, chosen: list[int]) -> ObservationBatch:
    return ObservationBatch(
        images={camera: image[chosen] for camera, image in batch.images.items()},
        state=batch.state[chosen],
        instructions=[batch.instructions[i] for i in chosen],
    )
