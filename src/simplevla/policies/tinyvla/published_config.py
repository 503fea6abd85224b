"""A published TinyVLA checkpoint's config.json as ours, refusing what our model doesn't do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simplevla.checked import Dimensions, Layers, Pixels, Width, from_dict, part
from simplevla.errors import UserError
from simplevla.policies.tinyvla.config import DiffusionConfig, LanguageConfig, TinyVLAConfig, UnetConfig, VisionConfig
from simplevla.policies.tinyvla.published_files import PublishedCheckpoint
from simplevla.policies.tinyvla.vision import CLIP_MEAN, CLIP_STD

FRAME = (180, 320)
"""Height and width that TinyVLA's data loading gives every camera image."""
CROP = 0.95
"""Share of each side that its evaluation keeps; its training crops as much at random places."""

PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user's questions. USER: <image>\n{instruction} ASSISTANT: <|endoftext|>"
)
"""Prompt as in the evaluation of TinyVLA's code. Its training has a second space before the last token."""
PROMPT_TOKENS = 512
"""Most tokens of a prompt, after the views."""

LANGUAGE_SETTINGS: dict[str, Any] = {
    "rotary_pct": 0.25,
    "rotary_emb_base": 10000,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "use_parallel_residual": True,
    "attention_bias": True,
    "mm_use_im_start_end": False,
}
"""Settings of config.json that have one supported value, which is also what a missing one means."""

TOWER_SETTINGS: dict[str, dict[str, Any]] = {
    "clip": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip": {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
}
TOWER_DEFAULTS = {
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
}
"""Defaults of TinyVLA's code for what config.json leaves out."""


@part(frozen=True, kw_only=True)
class TowerSizes:
    """Sizes of the vision tower, by their names in config.json."""

    image_size: Pixels
    patch_size: Pixels
    hidden_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Width
    intermediate_size: Width


@part(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the language model and the head, by their names in config.json."""

    hidden_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Width
    intermediate_size: Width
    vocab_size: Width
    state_dim: Dimensions
    action_dim: Dimensions
    chunk_size: Dimensions


@part(frozen=True, kw_only=True)
class Colours:
    """The part of preprocessor_config.json that says what pixels are normalised with."""

    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]


COLOURS = {"clip": (CLIP_MEAN, CLIP_STD), "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}


def policy_config(
    checkpoint: PublishedCheckpoint, cameras: Sequence[str], frame: tuple[int, int] | None
) -> TinyVLAConfig:
    """The policy's sizes, from the checkpoint's config.json and, of the U-Net, from its tensors.

    Raises:
        UserError: another head, or a setting that our model doesn't have.
    """
    settings, file = checkpoint.config, checkpoint.config_file
    head = settings.get("action_head_type")
    if settings.get("model_type") != "llava_pythia" or head != "droid_diffusion":
        raise UserError(
            f"{file} is of a {settings.get('model_type')!r} with the head {head!r}; expected 'llava_pythia' with "
            "'droid_diffusion'. (Llava-Pythia itself has no action head: it is what TinyVLA's training starts from.)"
        )
    _check_language(settings, file)
    _check_cameras(cameras, settings.get("concat", "None"), file)
    vision = _vision_config(settings, file, frame)
    if checkpoint.preprocessor is not None:
        _check_preprocessor(checkpoint.preprocessor, vision, file.parent)
    sizes = from_dict(Sizes, settings, source=str(file))
    language = LanguageConfig(
        hidden_size=sizes.hidden_size,
        layers=sizes.num_hidden_layers,
        heads=sizes.num_attention_heads,
        mlp_size=sizes.intermediate_size,
        vocab_size=sizes.vocab_size,
        max_instruction_tokens=PROMPT_TOKENS,
        init_std=0.02,
        prompt=PROMPT,
    )
    return TinyVLAConfig(
        cameras=tuple(cameras),
        state_dim=sizes.state_dim,
        action_dim=sizes.action_dim,
        chunk_length=sizes.chunk_size,
        head="diffusion",
        # TinyVLA makes its DDIMScheduler with clip_sample and calls its step with diffusers' defaults.
        diffusion=DiffusionConfig(
            clip_sample=True,
            use_clipped_model_output=False,
            unet=_unet_config(checkpoint.tensors, file.parent),
        ),
        vision=vision,
        language=language,
    )


def _check_language(settings: Mapping[str, Any], file: Path) -> None:
    rope = settings.get("rope_parameters")
    rope = rope if isinstance(rope, dict) else {}
    newer = {"rotary_pct": rope.get("partial_rotary_factor"), "rotary_emb_base": rope.get("rope_theta")}
    got = {**settings, **{key: value for key, value in newer.items() if value is not None}}
    for key, expected in LANGUAGE_SETTINGS.items():
        if got.get(key, expected) != expected:
            raise UserError(f"{file} has {key} {got[key]!r}; expected {expected!r}, which every Pythia has")
    if settings.get("image_aspect_ratio") != "pad":
        raise UserError(f"{file} has image_aspect_ratio {settings.get('image_aspect_ratio')!r}; expected 'pad'")


def _check_cameras(cameras: Sequence[str], concat: Any, file: Path) -> None:
    allowed = {"None": (1,), "token_cat": (2, 3)}.get(concat if isinstance(concat, str) else "")
    if allowed is None:
        raise UserError(f"{file} has concat {concat!r}; expected 'token_cat', or 'None' for one camera")
    if len(cameras) not in allowed or len(set(cameras)) < len(cameras):
        raise UserError(
            f"got the cameras {', '.join(cameras) or 'none'}; expected {' or '.join(map(str, allowed))} different ones by "
            f"concat {concat!r} in {file}, in the order that the training had them in"
        )


def _vision_config(settings: Mapping[str, Any], file: Path, frame: tuple[int, int] | None) -> VisionConfig:
    parts = settings.get("vision_config")
    if not isinstance(parts, dict) or not all(isinstance(parts.get(x), dict) for x in ("vision_tower", "mm_projector")):
        raise UserError(f"{file} has no vision_config with vision_tower and mm_projector")
    tower, projector = TOWER_DEFAULTS | parts["vision_tower"], parts["mm_projector"]
    source = str(tower.get("vision_model_name_or_path"))
    kind = next((kind for kind in TOWER_SETTINGS if kind in source), None)
    if kind is None:
        raise UserError(f"{file} has a vision tower from {source!r}; expected one with clip or siglip in its name")
    expected = {**TOWER_SETTINGS[kind], "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch"}
    for key, value in expected.items():
        if tower.get(key) != value:
            raise UserError(f"{file} has {key} {tower.get(key)!r} for the vision tower; expected {value!r}")
    if projector.get("mm_projector_type") != "mlp2x_gelu":
        raise UserError(f"{file} has mm_projector_type {projector.get('mm_projector_type')!r}; expected 'mlp2x_gelu'")
    sizes = from_dict(TowerSizes, tower, source=f"the vision tower in {file}")
    return VisionConfig(
        kind="clip" if kind == "clip" else "siglip",
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        hidden_size=sizes.hidden_size,
        layers=sizes.num_hidden_layers,
        heads=sizes.num_attention_heads,
        mlp_size=sizes.intermediate_size,
        frame=frame,
        crop=CROP,
        pad=True,
        resample="bicubic",
    )


def _check_preprocessor(settings: Mapping[str, Any], vision: VisionConfig, folder: Path) -> None:
    mean, std = COLOURS[vision.kind]
    colours = from_dict(Colours, settings, source=f"the preprocessor_config.json of {folder}")
    got = [list(colours.image_mean), list(colours.image_std)]
    if not np.allclose(got, (mean, std), atol=1e-6):
        raise UserError(
            f"the preprocessor_config.json of {folder} has image_mean {got[0]} and image_std {got[1]}; expected "
            f"{list(mean)} and {list(std)} for a {vision.kind} tower"
        )
    size = settings.get("size")
    side = size.get("shortest_edge", size.get("height")) if isinstance(size, dict) else size
    if side != vision.image_size:
        raise UserError(
            f"the preprocessor_config.json of {folder} has size {size!r}; expected {vision.image_size}, the tower's"
        )


def _unet_config(tensors: Mapping[str, Tensor], folder: Path) -> UnetConfig:
    """The published code's constants, unless the tensors show others."""
    convolutions: list[torch.Size] = []
    while (name := f"embed_out.down_modules.{len(convolutions)}.0.blocks.0.block.0.weight") in tensors:
        convolutions.append(tensors[name].shape)
    time = tensors.get("embed_out.diffusion_step_encoder.1.weight")
    if not convolutions or time is None or time.ndim != 2 or any(len(shape) != 3 for shape in convolutions):
        held = [name for name in tensors if name.startswith("embed_out.")]
        raise UserError(
            f"{folder} holds no diffusion head: of embed_out it has {', '.join(held[:3]) or 'nothing'}; expected a "
            "ConditionalUnet1D"
        )
    channels = tuple(int(shape[0]) for shape in convolutions)
    if any(width % UnetConfig.groups for width in channels):
        raise UserError(f"{folder} has a U-Net of channels {channels}; expected multiples of {UnetConfig.groups}")
    return UnetConfig(
        channels=channels, kernel=int(convolutions[0][2]), time_size=int(time.shape[1]), time_bfloat16=True
    )
