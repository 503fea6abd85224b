"""The nano policy on the embedded suite: minutes on two cores. Numbers without a source were swept (docs/log.md)."""

from dataclasses import replace

from simplevla.config import (
    DemosConfig,
    DenoisingConfig,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
    SFTConfig,
    SuiteConfig,
    TrainConfig,
)

SUITE = SuiteConfig(name="tabletop")


def demos() -> DemosConfig:
    """900 demonstrations of the embedded suite's six tasks: hesitant, rarely disturbed, with clean labels.

    Disturbances show recoveries. Hesitation leaves something to gain: the imitator is as slow as its teacher and often
    runs out of time, while faster is possible.
    """
    return DemosConfig(suite=SUITE, episodes=900, noise=1.0, noise_probability=0.08, levels=4, hesitation=0.6)


def sft() -> SFTConfig:
    """Imitation on the embedded suite: enough for a start with signal, not more."""
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
    """RL on the embedded suite: the paper's settings, fewer groups, a learning rate for a million parameters."""
    return TrainConfig(
        title="tabletop_nano",
        suite=SUITE,
        updates=30,
        sampling=SamplingConfig(groups=32, group_size=8, temperature=1.0),
        optimizer=OptimizerConfig(lr=1.5e-4, warmup_steps=10),
        rollout=RolloutConfig(slots_per_worker=128),
        eval_every=10,
        eval_episodes_per_task=20,
    )


def diffusion_sft() -> SFTConfig:
    """Imitation as `tabletop_nano`, by a diffusion head."""
    return replace(sft(), head="diffusion")


def diffusion_train() -> TrainConfig:
    """RL as `tabletop_nano`, by a diffusion head, at a third of the learning rate for five times as many units."""
    return replace(train(), title="tabletop_nano_diffusion", optimizer=OptimizerConfig(lr=5e-5, warmup_steps=10))


def flow_sft() -> SFTConfig:
    """Imitation as `tabletop_nano`, by a flow head."""
    return replace(sft(), head="flow")


def flow_train() -> TrainConfig:
    """RL as `tabletop_nano`, by a flow head under Flow-SDE."""
    return replace(train(), title="tabletop_nano_flow", optimizer=OptimizerConfig(lr=8e-5, warmup_steps=10))


def flow_noise_train() -> TrainConfig:
    """RL as `tabletop_nano_flow`, under Flow-Noise, at a learning rate with which its approx_kl is alike."""
    return replace(
        flow_train(),
        title="tabletop_nano_flow_noise",
        denoising=DenoisingConfig(flow="noise"),
        optimizer=OptimizerConfig(lr=5e-5, warmup_steps=10),
    )
