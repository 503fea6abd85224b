"""Named sizes of TinyVLA."""

import difflib
from collections.abc import Callable

from simplevla.policies.tinyvla.config import DiffusionConfig, LanguageConfig, UnetConfig, VisionConfig

Preset = tuple[VisionConfig, LanguageConfig, DiffusionConfig]


SMALL_DIFFUSION = DiffusionConfig(steps=5, noise_samples=8, unet=UnetConfig(channels=(64, 128), kernel=3, time_size=32))
"""A U-Net for chunks of a few actions and two cores."""


def nano() -> Preset:
    """About 0.55 M parameters, made for two CPU cores and images of about 64 pixels."""
    return VisionConfig(summary=True), LanguageConfig(), SMALL_DIFFUSION


def siglip_test() -> Preset:
    """A SigLIP tower of two layers, for tests of the path that larger policies take."""
    vision = VisionConfig(kind="siglip", image_size=32, patch_size=16, hidden_size=32, layers=2, heads=2, mlp_size=64)
    return vision, LanguageConfig(hidden_size=32, layers=2, heads=2, mlp_size=64), SMALL_DIFFUSION


PRESETS: dict[str, Callable[[], Preset]] = {
    "nano": nano,
    "siglip_test": siglip_test,
}


def make_preset(name: str) -> Preset:
    """The sizes called `name`.

    Raises:
        ValueError: unknown name, with near ones.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown tinyvla preset {name!r}; expected one of {', '.join(PRESETS)}.{hint}")
    return PRESETS[name]()
