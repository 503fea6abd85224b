"""The nano policy on the embedded suite: minutes on two cores. Numbers without a source were swept; docs/log.md says how."""

from simplevla.config import (
    DemosConfig,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
    SFTConfig,
    SuiteConfig,
    TrainConfig,
)

SUITE = SuiteConfig(name="tabletop")


def demos() -> DemosConfig:
    """Disturbed demonstrations with clean labels, so that the policy sees recoveries."""
    return DemosConfig(suite=SUITE, episodes=600, noise=0.6, noise_probability=0.3)


def sft() -> SFTConfig:
    """Enough imitation for a start with signal, not more."""
    return SFTConfig(policy="nano", batches=1000, batch_size=128)


def train() -> TrainConfig:
    """SPEC 1.5 with fewer groups and a learning rate for a million parameters."""
    return TrainConfig(
        suite=SUITE,
        updates=30,
        sampling=SamplingConfig(groups=24, group_size=8, temperature=1.6),
        optimizer=OptimizerConfig(lr=2e-4),
        rollout=RolloutConfig(slots_per_worker=12),
        eval_every=10,
        eval_episodes_per_task=10,
    )
