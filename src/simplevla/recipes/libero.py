"""The nano policy on the LIBERO suites that have an expert, with `lite` visuals and `fast` stepping (docs/log.md)."""

import functools
from collections.abc import Callable
from typing import TypeVar

from simplevla.config import (
    DemosConfig,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
    SFTConfig,
    SuiteConfig,
    TrainConfig,
)
from simplevla.suites.libero.conventions import PICK_AND_PLACE

Config = TypeVar("Config", bound=DemosConfig | SFTConfig | TrainConfig)

OBJECT = "libero_object"
HELD_OUT = 100
"""Initial states of all tasks together."""


def suite(name: str) -> SuiteConfig:
    """All tasks that the expert solves; small pictures, since the nano policy looks at 64 pixels."""
    tasks = PICK_AND_PLACE[name]
    test_states = HELD_OUT // len(tasks) if tasks else None
    return SuiteConfig(name=name, tasks=tasks, visuals="lite", stepping="fast", image_size=64, test_states=test_states)


def demos(name: str = OBJECT) -> DemosConfig:
    """Three demonstrations per task; ten would already solve 93 % of libero_object's held-out states."""
    tasks = len(PICK_AND_PLACE[name]) or 10
    return DemosConfig(suite=suite(name), episodes=3 * tasks, noise=0.5, noise_probability=0.08, levels=8)


def sft(name: str = OBJECT) -> SFTConfig:
    """Imitation, in chunks of 8 as in the paper."""
    return SFTConfig(policy="nano", chunk_length=8, batches=400, batch_size=128, shift_pixels=0)


def train(name: str = OBJECT) -> TrainConfig:
    """RL; more processes than cores, so that simulation and policy overlap."""
    return TrainConfig(
        title=f"{name}_nano",
        suite=suite(name),
        updates=24,
        sampling=SamplingConfig(groups=16, group_size=8, temperature=1.0),
        optimizer=OptimizerConfig(lr=1.5e-4, warmup_steps=10),
        rollout=RolloutConfig(workers=8, slots_per_worker=1),
        eval_every=8,
        eval_episodes_per_task=5,
    )


def recipes(make: Callable[[str], Config]) -> dict[str, Callable[[], Config]]:
    """One recipe per suite, by name."""
    return {f"{name}_nano": functools.update_wrapper(functools.partial(make, name), make) for name in PICK_AND_PLACE}
