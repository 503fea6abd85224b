"""Names and shapes of a published OpenVLA-OFT checkpoint, timm's among them, as the policy's."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from simplevla.errors import UserError
from simplevla.policies.files import is_finite
from simplevla.policies.openvla_oft.actions import BINS
from simplevla.policies.openvla_oft.config import OpenVLAOFTConfig
from simplevla.policies.openvla_oft.policy import OpenVLAOFT

Source = tuple[str, Callable[[Tensor], Tensor] | None]
"""Name of a published tensor, and the change applied to it; None is no change."""


def convert(tensors: Mapping[str, Tensor], policy: OpenVLAOFT, origin: Path) -> tuple[dict[str, Tensor], int]:
    """The policy's tensors from the published ones, and how many of those are rightly left over.

    Raises:
        UserError: a tensor is missing, unknown, or of another shape.
    """
    wanted = policy.state_dict()
    config = policy.config
    sources = {name: source(name, config) for name in wanted}
    used = {theirs for theirs, _ in sources.values()}
    missing = sorted(used - tensors.keys())
    ends = tuple(
        f"vision_backbone.{tower}.{part}"
        for tower, sizes in (("featurizer", config.dino), ("fused_featurizer", config.siglip))
        for part in (f"blocks.{sizes.layers - 1}.", "norm.", "attn_pool.", "fc_norm.")
    )
    left = [name for name in tensors if name not in used]
    unknown = [name for name in left if not name.startswith(ends)]
    problems = [f"{name} is missing" for name in missing] + [f"{name} is unknown" for name in unknown]
    weights: dict[str, Tensor] = {}
    dtype = getattr(torch, config.dtype)
    for name, (theirs, change) in sources.items():
        if theirs in tensors:
            tensor = tensors[theirs]
            try:
                changed = tensor if change is None else change(tensor)
            except (IndexError, RuntimeError):
                problems.append(f"{theirs} has shape {list(tensor.shape)}, which {name} can't have")
                continue
            if changed.shape != wanted[name].shape:
                problems.append(
                    f"{theirs} has shape {list(tensor.shape)}, which gives {list(changed.shape)} for {name}; expected {list(wanted[name].shape)}"
                )
            elif not changed.is_floating_point() or not is_finite(changed):
                problems.append(f"{theirs} isn't made of finite numbers")
            weights[name] = changed.to(dtype).contiguous()
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"the tensors don't fit {origin}: {'; '.join(problems[:3])}{more}. Is the download complete?")
    return weights, len(left)


def source(name: str, config: OpenVLAOFTConfig) -> Source:
    """Source of the policy's tensor `name` in the published checkpoint."""
    if name == "head.weight":
        end = config.language.vocab_size - config.language.padded
        return "language_model.lm_head.weight", lambda tensor: tensor[end - BINS : end]
    if name.startswith("vision.dino."):
        return _dino_source(name.removeprefix("vision.dino."))
    if name.startswith("vision.siglip."):
        return _siglip_source(name.removeprefix("vision.siglip."))
    if name.startswith("language."):
        return f"language_model.model.{name.removeprefix('language.')}", None
    if name.startswith("proprio."):
        return f"proprio_projector.{name.removeprefix('proprio.')}", None
    return name, None  # projector.fc1 and so on


def _dino_source(name: str) -> Source:
    prefix = "vision_backbone.featurizer."
    embeddings: dict[str, Source] = {
        "embeddings.cls_token": ("cls_token", None),
        "embeddings.register_tokens": ("reg_token", None),
        # timm gives the class token no position; ours is zero.
        "embeddings.position_embeddings": ("pos_embed", lambda x: torch.cat([torch.zeros_like(x[:, :1]), x], dim=1)),
        "embeddings.patch_embeddings.projection.weight": ("patch_embed.proj.weight", None),
        "embeddings.patch_embeddings.projection.bias": ("patch_embed.proj.bias", None),
    }
    if name in embeddings:
        theirs, change = embeddings[name]
        return prefix + theirs, change
    number, rest = name.removeprefix("encoder.layer.").split(".", 1)
    # OpenVLA's code renames timm's `gamma`, which transformers would take for an old norm's.
    renamed = rest.replace("layer_scale", "ls").replace(".lambda1", ".scale_factor")
    return _block_source(f"{prefix}blocks.{number}.", renamed, "attention", "o_proj")


def _siglip_source(name: str) -> Source:
    prefix = "vision_backbone.fused_featurizer."
    embeddings: dict[str, Source] = {
        "embeddings.position_embedding.weight": ("pos_embed", lambda x: x[0]),
        "embeddings.patch_embedding.weight": ("patch_embed.proj.weight", None),
        "embeddings.patch_embedding.bias": ("patch_embed.proj.bias", None),
    }
    if name in embeddings:
        theirs, change = embeddings[name]
        return prefix + theirs, change
    number, rest = name.removeprefix("encoder.layers.").split(".", 1)
    return _block_source(f"{prefix}blocks.{number}.", rest.replace("layer_norm", "norm"), "self_attn", "out_proj")


def _block_source(prefix: str, rest: str, attention: str, out: str) -> Source:
    """Source of a tensor of a timm block, which keeps query, key and value in one matrix."""
    module, _, kind = rest.rpartition(".")
    for third, which in enumerate(("q_proj", "k_proj", "v_proj")):
        if module == f"{attention}.{which}":
            return f"{prefix}attn.qkv.{kind}", lambda tensor, third=third: tensor.chunk(3)[third]
    return prefix + rest.replace(f"{attention}.{out}", "attn.proj"), None
