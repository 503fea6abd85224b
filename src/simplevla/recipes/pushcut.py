"""Pushcut on the embedded suite: demonstrations that carry, a success that asks only where the object lies.

Two thirds of the blocks are too heavy to be lifted, and look like the others. Numbers without a source were tried
(docs/log.md).
"""

from dataclasses import replace

from simplevla.config import DemosConfig, RolloutConfig, SamplingConfig, SFTConfig, SuiteConfig, TrainConfig
from simplevla.recipes import tabletop

SUITE = SuiteConfig(name="tabletop_pushcut")


def demos() -> DemosConfig:
    """600 demonstrations that grasp, lift, carry and release, all of light blocks."""
    return replace(tabletop.demos(), suite=SUITE, episodes=600, hesitation=0.0, noise=0.5)


def sft() -> SFTConfig:
    """Imitation of them, enough for a start with signal."""
    return replace(tabletop.sft(), suite=SUITE, batches=500)


def train() -> TrainConfig:
    """RL from a low start: more groups are sampled for those that are kept than elsewhere."""
    return replace(
        tabletop.train(),
        title="tabletop_pushcut",
        suite=SUITE,
        updates=100,
        sampling=SamplingConfig(groups=16, group_size=8, temperature=1.0, max_oversampling=8.0),
        rollout=RolloutConfig(slots_per_worker=64),
        eval_every=20,
    )
