"""`simplevla import tinyvla`: from the checkpoint that TinyVLA's training writes to a policy folder."""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from simplevla.policies.normalization import Statistics
from simplevla.policies.tinyvla import unet
from simplevla.policies.tinyvla.config import DiffusionConfig, LanguageConfig, TinyVLAConfig, UnetConfig, VisionConfig
from simplevla.policies.tinyvla.policy import TinyVLA
from simplevla.policies.tinyvla.published_files import PublishedCheckpoint, read_checkpoint
from simplevla.policies.tinyvla.published_pickle import read_pickle
from simplevla.policies.tinyvla.vision import CLIP_MEAN, CLIP_STD

FRAME = (180, 320)
"""Height and width that TinyVLA's data loading gives every camera image."""
CROP = 0.95
"""Share of each side that its evaluation keeps; its training crops as much at random places."""

PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
    "polite answers to the user's questions. USER: <image>\n{instruction} ASSISTANT: <|endoftext|>"
)
"""As in its evaluation. Its training has a second space before the last token."""
PROMPT_TOKENS = 512
"""At most, after the views."""

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
"""What TinyVLA's code takes where config.json says nothing."""

COLOURS = {"clip": (CLIP_MEAN, CLIP_STD), "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}

PARTS = (
    ("condition.norm.", "embed_out.norm_after_pool."),
    ("condition.combine.", "embed_out.combine."),
    ("vision.tower.", "gpt_neox.vision_tower.vision_model."),
    ("vision.project.", "gpt_neox.mm_projector."),
    ("language.", "gpt_neox."),
)
"""Our names' beginnings, and the published ones; the U-Net's names are in unet.py."""

BUFFERS = re.compile(
    r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)|gpt_neox\.rotary_emb\.inv_freq|"
    r"gpt_neox\.vision_tower\.vision_model\.embeddings\.position_ids"
)
"""Constants that some versions of transformers save among the weights."""


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What was imported."""

    config: TinyVLAConfig
    tensors: int
    """Tensors of the policy."""
    merged: int
    """Weights that an adapter was merged into."""
    unread: int
    """Tensors of the checkpoint that the model never reads: the vision tower's end, and constants."""


def import_tinyvla(
    folder: Path,
    out: Path,
    *,
    cameras: Sequence[str],
    base: Path | None = None,
    frame: tuple[int, int] | None = FRAME,
) -> ImportReport:
    """Convert the TinyVLA checkpoint in `folder` into the new policy folder `out`, running no code from it.

    Args:
        folder: the training's output folder, or a `checkpoint-N` in it.
        out: must not exist; nothing is written unless everything fits.
        cameras: names that the suite has for the cameras, in the order that the training had them in.
        base: the Llava-Pythia model that the training started from, for what `folder` lacks.
        frame: (height, width) that the training's data loading resized camera images to; None for images left as
            they are.

    Raises:
        ValueError: anything that is missing, left over, damaged, or of another head or size.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; name a new folder for the policy")
    checkpoint = read_checkpoint(folder, base)
    config = policy_config(checkpoint, cameras, frame)
    statistics = read_statistics(checkpoint.statistics_file, config)
    tokenizer = _read_tokenizer(checkpoint.tokenizer_file, config.language.vocab_size)
    with torch.device("meta"):
        policy = TinyVLA(config, statistics, tokenizer)
    names = {name: published_name(name) for name in policy.state_dict()}
    unread = _check_tensors(checkpoint, policy.state_dict(), names, config.vision.layers, base)
    weights = {name: checkpoint.tensors[theirs].float().contiguous() for name, theirs in names.items()}
    policy.load_state_dict(weights, assign=True)
    _save_as(policy, out)
    return ImportReport(config=config, tensors=len(weights), merged=checkpoint.merged, unread=unread)


def published_name(name: str) -> str:
    """What the published checkpoints call the policy's tensor `name`.

    >>> published_name("language.embed_in.weight")
    'gpt_neox.embed_in.weight'
    """
    if name.startswith("head.unet."):
        return f"embed_out.{unet.published_name(name.removeprefix('head.unet.'))}"
    for ours, theirs in PARTS:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise AssertionError(f"no published name for {name!r}")


def policy_config(
    checkpoint: PublishedCheckpoint, cameras: Sequence[str], frame: tuple[int, int] | None
) -> TinyVLAConfig:
    """The policy's sizes, from the checkpoint's config.json and, of the U-Net, from its tensors.

    Raises:
        ValueError: another head, or a setting that our model doesn't have.
    """
    settings, file = checkpoint.config, checkpoint.config_file
    head = settings.get("action_head_type")
    if settings.get("model_type") != "llava_pythia" or head != "droid_diffusion":
        raise ValueError(
            f"{file} is of a {settings.get('model_type')!r} with the head {head!r}; expected 'llava_pythia' with "
            "'droid_diffusion'. (Llava-Pythia itself has no action head: it is what TinyVLA's training starts from.)"
        )
    _check_language(settings, file)
    _check_cameras(cameras, settings.get("concat", "None"), file)
    vision = _vision_config(settings, file, frame)
    if checkpoint.preprocessor is not None:
        _check_preprocessor(checkpoint.preprocessor, vision, file.parent)
    language = LanguageConfig(
        hidden_size=_size(settings, "hidden_size", file),
        layers=_size(settings, "num_hidden_layers", file),
        heads=_size(settings, "num_attention_heads", file),
        mlp_size=_size(settings, "intermediate_size", file),
        vocab_size=_size(settings, "vocab_size", file),
        max_instruction_tokens=PROMPT_TOKENS,
        init_std=0.02,
        prompt=PROMPT,
    )
    return TinyVLAConfig(
        cameras=tuple(cameras),
        state_dim=_size(settings, "state_dim", file),
        action_dim=_size(settings, "action_dim", file),
        chunk_length=_size(settings, "chunk_size", file),
        head="diffusion",
        diffusion=DiffusionConfig(unet=_unet_config(checkpoint.tensors, file.parent)),
        vision=vision,
        language=language,
    )


def _size(settings: Mapping[str, Any], key: str, file: Path) -> int:
    value = settings.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{file} has {key} {value!r}; expected a whole number of 1 or more")
    return value


def _check_language(settings: Mapping[str, Any], file: Path) -> None:
    rope = settings.get("rope_parameters") or {}
    newer = {"rotary_pct": rope.get("partial_rotary_factor"), "rotary_emb_base": rope.get("rope_theta")}
    got = {**settings, **{key: value for key, value in newer.items() if value is not None}}
    for key, expected in LANGUAGE_SETTINGS.items():
        if got.get(key, expected) != expected:
            raise ValueError(f"{file} has {key} {got[key]!r}; expected {expected!r}, which every Pythia has")
    if settings.get("image_aspect_ratio") != "pad":
        raise ValueError(f"{file} has image_aspect_ratio {settings.get('image_aspect_ratio')!r}; expected 'pad'")


def _check_cameras(cameras: Sequence[str], concat: Any, file: Path) -> None:
    allowed = {"None": (1,), "token_cat": (2, 3)}.get(concat)
    if allowed is None:
        raise ValueError(f"{file} has concat {concat!r}; expected 'token_cat', or 'None' for one camera")
    if len(cameras) not in allowed or len(set(cameras)) < len(cameras):
        raise ValueError(
            f"got the cameras {', '.join(cameras) or 'none'}; expected {' or '.join(map(str, allowed))} different ones by "
            f"concat {concat!r} in {file}, in the order that the training had them in"
        )


def _vision_config(settings: Mapping[str, Any], file: Path, frame: tuple[int, int] | None) -> VisionConfig:
    parts = settings.get("vision_config")
    if not isinstance(parts, dict) or not all(isinstance(parts.get(x), dict) for x in ("vision_tower", "mm_projector")):
        raise ValueError(f"{file} has no vision_config with vision_tower and mm_projector")
    tower, projector = TOWER_DEFAULTS | parts["vision_tower"], parts["mm_projector"]
    source = str(tower.get("vision_model_name_or_path"))
    kind = next((kind for kind in TOWER_SETTINGS if kind in source), None)
    if kind is None:
        raise ValueError(f"{file} has a vision tower from {source!r}; expected one with clip or siglip in its name")
    expected = {**TOWER_SETTINGS[kind], "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch"}
    for key, value in expected.items():
        if tower.get(key) != value:
            raise ValueError(f"{file} has {key} {tower.get(key)!r} for the vision tower; expected {value!r}")
    if projector.get("mm_projector_type") != "mlp2x_gelu":
        raise ValueError(f"{file} has mm_projector_type {projector.get('mm_projector_type')!r}; expected 'mlp2x_gelu'")
    sizes = {
        "image_size": _size(tower, "image_size", file),
        "patch_size": _size(tower, "patch_size", file),
        "hidden_size": _size(tower, "hidden_size", file),
        "layers": _size(tower, "num_hidden_layers", file),
        "heads": _size(tower, "num_attention_heads", file),
        "mlp_size": _size(tower, "intermediate_size", file),
    }
    return VisionConfig(
        kind="clip" if kind == "clip" else "siglip", frame=frame, crop=CROP, pad=True, resample="bicubic", **sizes
    )


def _check_preprocessor(settings: Mapping[str, Any], vision: VisionConfig, folder: Path) -> None:
    mean, std = COLOURS[vision.kind]
    got = [settings.get("image_mean"), settings.get("image_std")]
    close = [
        isinstance(x, list) and len(x) == 3 and np.allclose(x, y, atol=1e-6)
        for x, y in zip(got, (mean, std), strict=True)
    ]
    if not all(close):
        raise ValueError(
            f"the preprocessor_config.json of {folder} has image_mean {got[0]} and image_std {got[1]}; expected "
            f"{list(mean)} and {list(std)} for a {vision.kind} tower"
        )
    size = settings.get("size")
    side = size.get("shortest_edge", size.get("height")) if isinstance(size, dict) else size
    if side != vision.image_size:
        raise ValueError(
            f"the preprocessor_config.json of {folder} has size {size!r}; expected {vision.image_size}, the tower's"
        )


def _unet_config(tensors: Mapping[str, Tensor], folder: Path) -> UnetConfig:
    """The published code's constants, unless the tensors show others."""
    convolutions = []
    while (name := f"embed_out.down_modules.{len(convolutions)}.0.blocks.0.block.0.weight") in tensors:
        convolutions.append(tensors[name].shape)
    time = tensors.get("embed_out.diffusion_step_encoder.1.weight")
    if not convolutions or time is None or time.ndim != 2 or any(len(shape) != 3 for shape in convolutions):
        held = [name for name in tensors if name.startswith("embed_out.")]
        raise ValueError(
            f"{folder} holds no diffusion head: of embed_out it has {', '.join(held[:3]) or 'nothing'}; expected a "
            "ConditionalUnet1D"
        )
    channels = tuple(int(shape[0]) for shape in convolutions)
    if any(width % UnetConfig.groups for width in channels):
        raise ValueError(f"{folder} has a U-Net of channels {channels}; expected multiples of {UnetConfig.groups}")
    return UnetConfig(
        channels=channels, kernel=int(convolutions[0][2]), time_size=int(time.shape[1]), time_bfloat16=True
    )


def read_statistics(file: Path, config: TinyVLAConfig) -> Statistics:
    """The numbers that the training normalised with, from its `dataset_stats.pkl`.

    The pickle has mean and std of the state, and mean, std, min and max of the action, min and max already widened by
    1e-4. What it lacks nobody reads: the state's other measures are set to three std around the mean, the action's
    quantiles to its extremes.

    Raises:
        ValueError: a measure is missing or of another length than the policy's.
    """
    values = read_pickle(file)
    wanted = {"action_mean", "action_std", "action_min", "action_max", "qpos_mean", "qpos_std"}
    if not isinstance(values, dict) or not wanted <= set(values):
        got = ", ".join(map(str, values)) if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{file} holds {got}; expected {', '.join(sorted(wanted))}")
    measures: dict[str, list[float]] = {}
    for name in wanted:
        size = config.action_dim if name.startswith("action") else config.state_dim
        array = np.asarray(values[name])
        if array.shape != (size,) or array.dtype.kind not in "fiu":
            raise ValueError(f"{file} has {name} of shape {array.shape}; expected ({size},) by config.json")
        measures[name] = [float(x) for x in array]
    low, high = (
        [m + sign * 3 * s for m, s in zip(measures["qpos_mean"], measures["qpos_std"], strict=True)] for sign in (-1, 1)
    )
    return Statistics(
        state={
            "mean": measures["qpos_mean"],
            "std": measures["qpos_std"],
            **{"min": low, "max": high, "q01": low, "q99": high},
        },
        action={
            **{name: measures[f"action_{name}"] for name in ("mean", "std", "min", "max")},
            **{"q01": measures["action_min"], "q99": measures["action_max"]},
        },
    )


def _read_tokenizer(file: Path, vocab_size: int) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more specific
        raise ValueError(f"{file} is damaged ({error}); use another checkpoint") from error
    if tokenizer.token_to_id("<|endoftext|>") is None or tokenizer.get_vocab_size() > vocab_size:
        raise ValueError(
            f"{file} knows {tokenizer.get_vocab_size()} tokens; expected Pythia's, of at most {vocab_size} with "
            "<|endoftext|> among them"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _check_tensors(
    checkpoint: PublishedCheckpoint,
    expected: Mapping[str, Tensor],
    names: Mapping[str, str],
    vision_layers: int,
    base: Path | None,
) -> int:
    """How many tensors are rightly left over, after checking that all others fit one to one."""
    got = checkpoint.tensors
    # The patch tokens are read before the tower's last layer.
    end = re.compile(
        rf"gpt_neox\.vision_tower\.vision_model\.(encoder\.layers\.{vision_layers - 1}|post_layernorm|head)\..+"
    )
    left = [name for name in got if name not in set(names.values())]
    unknown = [name for name in left if not end.fullmatch(name) and not BUFFERS.fullmatch(name)]
    missing = [theirs for theirs in names.values() if theirs not in got]
    present = [(theirs, expected[ours], got[theirs]) for ours, theirs in names.items() if theirs in got]
    problems = [f"{name} is missing" for name in missing]
    problems += [f"{name} is unknown" for name in unknown]
    problems += [
        f"{name} has shape {list(have.shape)}, expected {list(want.shape)}"
        for name, want, have in present
        if have.shape != want.shape
    ]
    problems += [
        f"{name} isn't made of finite numbers"
        for name, _, have in present
        if not have.is_floating_point() or not bool(have.isfinite().all())
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        hint = " Name the Llava-Pythia model that the training started from with --base." if missing and not base else ""
        raise ValueError(
            f"the tensors don't fit {checkpoint.config_file}: {'; '.join(problems[:3])}{more}.{hint}"
        )
    return len(left)


def _save_as(policy: TinyVLA, out: Path) -> None:
    """All of the folder or nothing."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        policy.save(temporary)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
