"""SmolVLA: a nano on two cores, and the published 450 M on LIBERO with a GPU.

Imitation at full size has the published settings (arXiv 2506.01844 and LeRobot's defaults), but for the cosine, which
ends at 0 and not at 2.5e-6, and for the twentieth of the episodes that measures the validation loss. RL's learning rate
there is a guess between our small policies' and pi_RL's 5e-6 (arXiv 2510.25889); nothing was tried on a GPU.
"""

import functools
from collections.abc import Callable
from dataclasses import replace

from simplevla.config import (
    DenoisingConfig,
    OptimizerConfig,
    RolloutConfig,
    SamplingConfig,
    SFTConfig,
    SuiteConfig,
    TrainConfig,
)
from simplevla.recipes import libero, tabletop
from simplevla.recipes.openvla_oft import SUITES

NANO, FULL = "smolvla_nano", "smolvla_450m"
CHUNK = 50
"""Actions that the published policy predicts."""
RL_24GB = "libero_spatial_smolvla_24gb"


def nano_sft() -> SFTConfig:
    """Imitation as `tabletop_nano`."""
    return replace(tabletop.sft(), policy=NANO)


def nano_train() -> TrainConfig:
    """RL as `tabletop_nano_flow`, of the expert and the projections alone, as at full size.

    All parameters together get worse at 3e-4 and learn next to nothing at 8e-5 (docs/log.md). More groups are mixed, so
    that an update takes fewer episodes; there are 90 instead of 30.
    """
    return replace(
        tabletop.flow_train(),
        title="tabletop_smolvla",
        updates=90,
        denoising=DenoisingConfig(frozen_backbone=True),
        optimizer=OptimizerConfig(lr=2e-4, warmup_steps=10),
    )


def nano_noise_train() -> TrainConfig:
    """RL as `tabletop_smolvla`, under Flow-Noise, with two thirds of the updates, since it learns faster."""
    denoising = DenoisingConfig(flow="noise", frozen_backbone=True)
    return replace(nano_train(), title="tabletop_smolvla_noise", updates=60, denoising=denoising)


def libero_nano_sft() -> SFTConfig:
    """Imitation as `libero_object_nano`."""
    return replace(libero.sft(), policy=NANO)


def libero_nano_train() -> TrainConfig:
    """RL as `libero_object_nano`, of what `tabletop_smolvla_noise` trains, at its learning rate."""
    config = nano_noise_train()
    return replace(
        libero.train(),
        title="libero_object_smolvla_nano",
        denoising=config.denoising,
        optimizer=config.optimizer,
    )


def suite(name: str) -> SuiteConfig:
    """LeRobot's horizons and sentences, and stock pictures of 256 pixels, as its LIBERO datasets have them."""
    return SuiteConfig(
        name=SUITES[name], visuals="stock", horizon_protocol="lerobot", image_size=256, sentences="published"
    )


def sft(name: str) -> SFTConfig:
    """Imitation with the published settings; give the imported policy by `--policy`."""
    return SFTConfig(
        policy=FULL,
        chunk_length=CHUNK,
        batches=30_000,
        batch_size=64,
        shift_pixels=0,
        colour_jitter=0.0,
        optimizer=OptimizerConfig(
            lr=1e-4, betas=(0.9, 0.95), weight_decay=1e-10, max_grad_norm=10.0, warmup_steps=1000
        ),
        precision="bfloat16",
        validate_every=5000,
        eval_episodes_per_task=2,
        suite=suite(name),
        device="cuda",
    )


def train(name: str, title: str = "") -> TrainConfig:
    """RL of the expert and the projections; the groups are the paper's."""
    return TrainConfig(
        title=title,
        suite=suite(name),
        optimizer=OptimizerConfig(lr=1e-5, warmup_steps=10),
        microbatch_decisions=32,
        precision="bfloat16",
        # One environment per process: a LIBERO process takes about 2 GB with stock pictures.
        rollout=RolloutConfig(slots_per_worker=1),
        device="cuda",
    )


def rl_24gb() -> TrainConfig:
    """RL on libero_spatial on a card of 24 GB, with a quarter of the groups: updates come sooner and are noisier."""
    return replace(train("spatial", RL_24GB), sampling=SamplingConfig(groups=16), microbatch_decisions=8)


def recipes() -> tuple[dict[str, Callable[[], SFTConfig]], dict[str, Callable[[], TrainConfig]]]:
    """Recipes of imitation and of RL by name, at full size."""
    imitation: dict[str, Callable[[], SFTConfig]] = {
        RL_24GB: functools.update_wrapper(functools.partial(sft, "spatial"), sft)
    }
    rl: dict[str, Callable[[], TrainConfig]] = {RL_24GB: rl_24gb}
    for name in SUITES:
        recipe = f"libero_{name}_smolvla"
        imitation[recipe] = functools.update_wrapper(functools.partial(sft, name), sft)
        rl[recipe] = functools.update_wrapper(functools.partial(train, name, recipe), train)
    return imitation, rl
