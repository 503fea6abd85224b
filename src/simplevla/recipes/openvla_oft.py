"""The paper's LIBERO experiments with OpenVLA-OFT (arXiv 2509.09674), for a GPU and the published checkpoints.

What isn't set here is the default of TrainConfig, which is the paper's: 64 groups of 8, clips 0.2 and 0.28, four
optimizer steps per update, no KL, no entropy, evaluation every fourth update.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

from simplevla.config import OptimizerConfig, RolloutConfig, SamplingConfig, SuiteConfig, TrainConfig

SUITES = {"spatial": "libero_spatial", "object": "libero_object", "goal": "libero_goal", "long": "libero_10"}
"""The paper's name -> the suite's."""


TEMPERATURE = 1.6
"""Temperature of the paper's policy, which is certain of what it does."""
LORA_24GB, ADAPTER_RANK = "libero_spatial_lora_24gb", 32

PUBLISHED_EPISODES = 500
"""Ten tasks with all 50 initial states."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """Success in % of `PUBLISHED_EPISODES` on the train states, from the tables of arXiv 2509.09674."""

    sft: float
    rl: float


PUBLISHED = {
    "libero_spatial_one_demo": Published(sft=63.6, rl=98.2),
    "libero_object_one_demo": Published(sft=54.9, rl=98.7),
    "libero_goal_one_demo": Published(sft=59.6, rl=98.8),
    "libero_long_one_demo": Published(sft=17.3, rl=91.7),
    "libero_spatial_all_demos": Published(sft=91.6, rl=99.4),
    "libero_object_all_demos": Published(sft=95.3, rl=99.1),
    "libero_goal_all_demos": Published(sft=90.6, rl=99.2),
    "libero_long_all_demos": Published(sft=86.5, rl=98.5),
}


def suite(name: str) -> SuiteConfig:
    """Stock pictures of 256 pixels, 512 env steps on every suite, published sentences: what the checkpoints know."""
    return SuiteConfig(
        name=SUITES[name], visuals="stock", horizon_protocol="simplevla", image_size=256, sentences="published"
    )


def full(name: str, title: str = "") -> TrainConfig:
    """All parameters, as published; one decision has about 350 tokens, so 16 of them fill a card."""
    return TrainConfig(
        title=title,
        suite=suite(name),
        sampling=SamplingConfig(temperature=TEMPERATURE),
        optimizer=OptimizerConfig(lr=5e-6),
        microbatch_decisions=16,
        gradient_checkpointing=True,
        # One environment per process: a LIBERO process takes about 2 GB with stock pictures.
        rollout=RolloutConfig(slots_per_worker=1),
        device="cuda",
    )


def lora_24gb() -> TrainConfig:
    """RL on libero_spatial on a card of 24 GB, by an adapter (`simplevla adapters new`, rank 32), in quarter updates.

    The learning rate is the adapters' of arXiv 2603.11653; not tried on a GPU by us.
    """
    return replace(
        full("spatial", LORA_24GB),
        sampling=SamplingConfig(groups=16, temperature=TEMPERATURE),
        microbatch_decisions=4,
        optimizer=OptimizerConfig(lr=2e-5),
    )


def recipes() -> dict[str, Callable[[], TrainConfig]]:
    """Recipes by name: the demonstrations are in the checkpoint, so `one_demo` and `all_demos` are the same numbers."""

    def of(name: str) -> Callable[[], TrainConfig]:
        return functools.update_wrapper(functools.partial(full, name.split("_")[1], name), full)

    return {name: of(name) for name in PUBLISHED} | {LORA_24GB: lora_24gb}
