"""The nano policy on the embedded suite: minutes on two cores. Numbers without a source were swept; docs/log.md says how."""

from dataclasses import replace

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
    """Rarely disturbed, with clean labels, so that the policy sees recoveries; and hesitant, so that there is something to
    gain: the imitator is as slow as its teacher and often runs out of time, while faster is possible."""
    return DemosConfig(suite=SUITE, episodes=900, noise=1.0, noise_probability=0.08, levels=4, hesitation=0.6)


def sft() -> SFTConfig:
    """Enough imitation for a start with signal, not more."""
    return SFTConfig(
        policy="nano",
        chunk_length=4,
        batches=1000,
        batch_size=128,
        shift_pixels=0,
        eval_episodes_per_task=10,
        suite=SUITE,
    )


def train() -> TrainConfig:
    """SPEC 1.5 with fewer groups and a learning rate for a million parameters."""
    return TrainConfig(
        suite=SUITE,
        updates=30,
        sampling=SamplingConfig(groups=32, group_size=8, temperature=1.0),
        optimizer=OptimizerConfig(lr=1.5e-4, warmup_steps=10),
        rollout=RolloutConfig(slots_per_worker=128),
        eval_every=10,
        eval_episodes_per_task=20,
    )


def diffusion_sft() -> SFTConfig:
    """As with tokens, batch by batch."""
    return replace(sft(), head="diffusion")


def diffusion_train() -> TrainConfig:
    """As with tokens, but for a third of the learning rate: a chunk has five times as many units, one per denoising step."""
    return replace(train(), optimizer=OptimizerConfig(lr=5e-5, warmup_steps=10))
