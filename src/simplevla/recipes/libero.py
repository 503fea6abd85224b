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

SUITE = SuiteConfig(
    name="libero_object",
    tasks=(
        "pick_up_the_alphabet_soup_and_place_it_in_the_basket",
        "pick_up_the_cream_cheese_and_place_it_in_the_basket",
        "pick_up_the_salad_dressing_and_place_it_in_the_basket",
    ),
    visuals="lite",
    image_size=64,
)


def demos() -> DemosConfig:
    """By the scripted expert, rarely disturbed, from the train states."""
    return DemosConfig(suite=SUITE, episodes=120, noise=0.5, noise_probability=0.08, levels=8)


def sft() -> SFTConfig:
    """Chunks of 8, as in the paper."""
    return SFTConfig(policy="nano", chunk_length=8, batches=1200, batch_size=128, shift_pixels=0)


def train() -> TrainConfig:
    """One environment per process; more processes than cores, so that simulation and policy overlap."""
    return TrainConfig(
        suite=SUITE,
        updates=20,
        sampling=SamplingConfig(groups=8, group_size=8, temperature=1.0),
        optimizer=OptimizerConfig(lr=1.5e-4, warmup_steps=10),
        rollout=RolloutConfig(workers=8, slots_per_worker=1),
        eval_every=5,
        eval_episodes_per_task=10,
    )
