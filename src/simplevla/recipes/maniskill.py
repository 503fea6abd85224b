"""The nano policy on three tasks of ManiSkill, `lite` visuals; numbers without a comment are LIBERO's."""

from simplevla.config import (
    DemosConfig,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
    SFTConfig,
    SuiteConfig,
    TrainConfig,
)

TASKS = ("PushCube-v1", "PullCube-v1", "PokeCube-v1")
"""Three that an imitator of 30 demonstrations solves now and then; it lifts no cube (docs/log.md)."""
SUITE = SuiteConfig(name="maniskill", tasks=TASKS, visuals="lite", image_size=64)


def demos() -> DemosConfig:
    """Thirty demonstrations for each of three ManiSkill tasks."""
    return DemosConfig(suite=SUITE, episodes=90, noise=0.5, noise_probability=0.08, levels=8)


def sft() -> SFTConfig:
    """Imitation on ManiSkill, in chunks of 5: a quarter of a second, three to ten decisions an episode."""
    return SFTConfig(policy="nano", chunk_length=5, batches=400, batch_size=128, shift_pixels=0)


def train() -> TrainConfig:
    """RL on ManiSkill, with twice LIBERO's groups, since an episode has a quarter of the decisions.

    With 16 groups success stayed where it was and gradients wandered; with 64 and a lower rate it rose slower
    (docs/log.md).
    """
    return TrainConfig(
        title="maniskill_nano",
        suite=SUITE,
        updates=40,
        sampling=SamplingConfig(groups=32, group_size=8, temperature=1.0),
        optimizer=OptimizerConfig(lr=2.5e-4, warmup_steps=5),
        rollout=RolloutConfig(workers=4, slots_per_worker=4),
        eval_every=10,
        eval_episodes_per_task=10,
    )
