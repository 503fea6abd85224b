"""The nano policy on libero_object, all ten tasks, `lite` visuals: about an hour on two cores (docs/log.md)."""

from simplevla.config import (
    DemosConfig,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
    SFTConfig,
    SuiteConfig,
    TrainConfig,
)

SUITE = SuiteConfig(name="libero_object", visuals="lite", image_size=64)


def demos() -> DemosConfig:
    """Three demonstrations per task of libero_object; ten would already solve 93 % of the held-out states."""
    return DemosConfig(suite=SUITE, episodes=30, noise=0.5, noise_probability=0.08, levels=8)


def sft() -> SFTConfig:
    """Imitation on libero_object, in chunks of 8 as in the paper."""
    return SFTConfig(policy="nano", chunk_length=8, batches=400, batch_size=128, shift_pixels=0)


def train() -> TrainConfig:
    """RL on libero_object; more processes than cores, so that simulation and policy overlap."""
    return TrainConfig(
        title="libero_object_nano",
        suite=SUITE,
        updates=40,
        sampling=SamplingConfig(groups=16, group_size=8, temperature=1.0),
        optimizer=OptimizerConfig(lr=1.5e-4, warmup_steps=10),
        rollout=RolloutConfig(workers=8, slots_per_worker=1),
        eval_every=10,
        eval_episodes_per_task=5,
    )
