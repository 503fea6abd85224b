"""The nano policy on five tasks of Meta-World, `lite` visuals; numbers without a comment are LIBERO's."""

from simplevla.config import (
    DemosConfig,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
    SFTConfig,
    SuiteConfig,
    TrainConfig,
)

TASKS = ("button-press-v3", "coffee-button-v3", "dial-turn-v3", "peg-unplug-side-v3", "sweep-into-v3")
"""Tasks of different kinds that can't be solved blindly.

The expert's actions from one layout, repeated in others, solve one to three of 16 (docs/results/metaworld_expert.md).
"""
SUITE = SuiteConfig(name="metaworld", tasks=TASKS, visuals="lite", image_size=64)


def demos() -> DemosConfig:
    """Ten demonstrations for each of five Meta-World tasks, rarely disturbed: most layouts are left to learn."""
    return DemosConfig(suite=SUITE, episodes=50, noise=0.5, noise_probability=0.08, levels=8)


def sft() -> SFTConfig:
    """Imitation on Meta-World, in chunks of 8: a tenth of a second, five to fourteen decisions an episode."""
    return SFTConfig(policy="nano", chunk_length=8, batches=400, batch_size=128, shift_pixels=0)


def train() -> TrainConfig:
    """RL on Meta-World, with twice LIBERO's groups, on chosen states; a process holds many scenes of 22 MB.

    Most layouts are always or never solved, so that of uniformly chosen ones only
    two in five give a signal, and gradients of 16 groups wandered (docs/log.md).
    """
    return TrainConfig(
        title="metaworld_nano",
        suite=SUITE,
        updates=60,
        sampling=SamplingConfig(groups=32, group_size=8, temperature=1.0, state_order="posterior"),
        optimizer=OptimizerConfig(lr=1.5e-4, warmup_steps=10),
        rollout=RolloutConfig(slots_per_worker=32),
        eval_every=10,
        eval_episodes_per_task=10,
    )
