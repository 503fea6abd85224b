"""The nano policy on LIBERO-Object in lite visuals: about two hours on two cores."""

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
    """By the scripted expert, disturbed, from the train states."""
    return DemosConfig(suite=SUITE, episodes=120, noise=0.3, noise_probability=0.2)


def sft() -> SFTConfig:
    """Longer than on tabletop: episodes are ten times as long."""
    return SFTConfig(policy="nano", batches=3000, batch_size=128)


def train() -> TrainConfig:
    """One environment per process, two processes."""
    return TrainConfig(
        suite=SUITE,
        updates=20,
        sampling=SamplingConfig(groups=8, group_size=8, temperature=1.6),
        optimizer=OptimizerConfig(lr=2e-4),
        rollout=RolloutConfig(slots_per_worker=1),
        eval_every=5,
        eval_episodes_per_task=10,
    )
