"""Named sizes of TinyVLA."""

import difflib
from collections.abc import Callable

from simplevla.errors import UserError
from simplevla.policies.tinyvla.config import DiffusionConfig, LanguageConfig, UnetConfig, VisionConfig

Preset = tuple[VisionConfig, LanguageConfig, DiffusionConfig]

SMALL_DIFFUSION = DiffusionConfig(steps=5, noise_samples=8, unet=UnetConfig(channels=(64, 128), kernel=3, time_size=32))
"""A U-Net for chunks of a few actions and two cores."""

PYTHIA_VOCABULARY = 50304
"""Rows of Pythia's word embedding; its tokenizer knows fewer words."""


def nano() -> Preset:
    """About 0.55 M parameters, made for two CPU cores and images of about 64 pixels."""
    return VisionConfig(summary=True), LanguageConfig(), SMALL_DIFFUSION


def siglip_test() -> Preset:
    """A SigLIP tower of two layers, for tests of the path that larger policies take."""
    vision = VisionConfig(kind="siglip", image_size=32, patch_size=16, hidden_size=32, layers=2, heads=2, mlp_size=64)
    return vision, LanguageConfig(hidden_size=32, layers=2, heads=2, mlp_size=64), SMALL_DIFFUSION


def _published(hidden_size: int, layers: int, heads: int) -> Preset:
    """CLIP ViT-L/14 at 336 pixels and a Pythia, which has MLPs of four times its width."""
    vision = VisionConfig(
        kind="clip", image_size=336, patch_size=14, hidden_size=1024, layers=24, heads=16, mlp_size=4096
    )
    language = LanguageConfig(
        hidden_size=hidden_size,
        layers=layers,
        heads=heads,
        mlp_size=4 * hidden_size,
        vocab_size=PYTHIA_VOCABULARY,
        init_std=0.02,
    )
    return vision, language, DiffusionConfig()


def tinyvla_s() -> Preset:
    """0.4 B parameters: the language model of Pythia-70M."""
    return _published(512, 6, 8)


def tinyvla_b() -> Preset:
    """0.7 B parameters: the language model of Pythia-410M."""
    return _published(1024, 24, 16)


def tinyvla_h() -> Preset:
    """1.3 B parameters: the language model of Pythia-1B."""
    return _published(2048, 16, 8)


PRESETS: dict[str, Callable[[], Preset]] = {
    "nano": nano,
    "siglip_test": siglip_test,
    "tinyvla_s": tinyvla_s,
    "tinyvla_b": tinyvla_b,
    "tinyvla_h": tinyvla_h,
}


def make_preset(name: str) -> Preset:
    """The sizes called `name`.

    Raises:
        UserError: unknown name, with near ones.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown tinyvla preset {name!r}; expected one of {', '.join(PRESETS)}.{hint}")
    return PRESETS[name]()
