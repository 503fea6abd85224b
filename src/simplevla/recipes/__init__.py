"""Experiments by name: functions that return a config, every number with its source."""

from collections.abc import Callable

from simplevla.adapters.config import ContinualConfig
from simplevla.config import DemosConfig, SamplingConfig, SFTConfig, TrainConfig
from simplevla.recipes import continual, libero, maniskill, metaworld, openvla_oft, pushcut, smolvla, tabletop

SMOLVLA_SFT, SMOLVLA_TRAIN = smolvla.recipes()

DEMOS: dict[str, Callable[[], DemosConfig]] = {
    "tabletop_nano": tabletop.demos,
    "tabletop_nano_diffusion": tabletop.demos,
    "tabletop_nano_flow": tabletop.demos,
    "tabletop_nano_flow_noise": tabletop.demos,
    "tabletop_smolvla": tabletop.demos,
    "tabletop_smolvla_noise": tabletop.demos,
    "tabletop_pushcut": pushcut.demos,
    "libero_object_smolvla_nano": libero.demos,
    **libero.recipes(libero.demos),
    "maniskill_nano": maniskill.demos,
    "metaworld_nano": metaworld.demos,
}
SFT: dict[str, Callable[[], SFTConfig]] = {
    "tabletop_nano": tabletop.sft,
    "tabletop_nano_diffusion": tabletop.diffusion_sft,
    "tabletop_nano_flow": tabletop.flow_sft,
    "tabletop_nano_flow_noise": tabletop.flow_sft,
    "tabletop_smolvla": smolvla.nano_sft,
    "tabletop_smolvla_noise": smolvla.nano_sft,
    "tabletop_pushcut": pushcut.sft,
    "libero_object_smolvla_nano": smolvla.libero_nano_sft,
    **libero.recipes(libero.sft),
    **SMOLVLA_SFT,
    "maniskill_nano": maniskill.sft,
    "metaworld_nano": metaworld.sft,
}


def paper() -> TrainConfig:
    """The published hyper-parameters (arXiv 2509.09674), for a policy of 7 B parameters."""
    return TrainConfig(title="paper", sampling=SamplingConfig(temperature=openvla_oft.TEMPERATURE))


TRAIN: dict[str, Callable[[], TrainConfig]] = {
    "tabletop_nano": tabletop.train,
    "tabletop_nano_diffusion": tabletop.diffusion_train,
    "tabletop_nano_flow": tabletop.flow_train,
    "tabletop_nano_flow_noise": tabletop.flow_noise_train,
    "tabletop_smolvla": smolvla.nano_train,
    "tabletop_smolvla_noise": smolvla.nano_noise_train,
    "tabletop_pushcut": pushcut.train,
    "libero_object_smolvla_nano": smolvla.libero_nano_train,
    **libero.recipes(libero.train),
    "maniskill_nano": maniskill.train,
    "metaworld_nano": metaworld.train,
    "paper": paper,
    **openvla_oft.recipes(),
    **SMOLVLA_TRAIN,
}
ADAPTER_RANKS = {openvla_oft.LORA_24GB: openvla_oft.ADAPTER_RANK}
"""Recipes that are meant for a policy with an adapter -> its rank."""

CONTINUAL: dict[str, Callable[[], ContinualConfig]] = {
    "tabletop_continual": continual.tabletop_continual,
    "libero_continual": continual.libero_continual,
}
