"""`simplevla import openvla-oft`: from a published OpenVLA-OFT checkpoint to a policy folder.

A checkpoint is a folder of `config.json`, safetensors (whole, or in pieces with an index), `dataset_statistics.json`,
`preprocessor_config.json` and the tokenizer's files. Its vision towers carry timm's names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Len
from tokenizers import Tokenizer
from torch import Tensor

from simplevla.checked import Above0, Count, Layers, Pixels, Share, Width, from_dict, part
from simplevla.errors import UserError, brief
from simplevla.policies.files import read_tokenizer
from simplevla.policies.normalization import MEASURES, Statistics
from simplevla.policies.openvla_oft.config import LlamaSizes, OpenVLAOFTConfig, TowerConfig
from simplevla.policies.openvla_oft.policy import OpenVLAOFT
from simplevla.policies.openvla_oft.prompt import BEGIN, SPACE, STOP
from simplevla.policies.openvla_oft.published_tensors import convert
from simplevla.policies.published import read_tensors, weight_files
from simplevla.policies.published_lora import ADAPTER, ADAPTER_CONFIG, merge_lora
from simplevla.policies.trained_on import TrainedOn
from simplevla.storage import atomic_folder, read_as, read_json

CHUNK, ACTION, STATE = 8, 7, 8
"""LIBERO's: actions in a chunk, dimensions of an action and of the state."""
WEIGHTS = ("model.safetensors",)
L1_HEAD = "action_head--*"
"""The files of a regression head."""
PROPRIO = "proprio_projector--*.pt"
LORA = "lora_adapter"
"""The folder, beside the weights, in which its training leaves an adapter."""
TOWERS = {"vit_large_patch14_reg4_dinov2": 16, "vit_so400m_patch14_siglip_224": 16}
"""timm's names, as far as they count, and attention heads, which no tensor shows."""
Numbers = Annotated[tuple[float, ...], Len(1, 10_000)]


@part(frozen=True, kw_only=True)
class TextConfig:
    """Sizes of the language model, by their names in config.json; the defaults are Llama 2 7B's."""

    model_type: Literal["llama"] = "llama"
    hidden_size: Width = LlamaSizes.hidden_size
    num_hidden_layers: Layers = LlamaSizes.layers
    num_attention_heads: Width = LlamaSizes.heads
    num_key_value_heads: Width | None = None
    intermediate_size: Width = LlamaSizes.mlp_size
    vocab_size: Width = LlamaSizes.vocab_size
    rms_norm_eps: Above0 = LlamaSizes.rms_norm_eps
    rope_theta: Above0 = LlamaSizes.rope_theta


@part(frozen=True, kw_only=True)
class PublishedConfig:
    """The part of config.json that says what the policy is."""

    text_config: TextConfig
    use_fused_vision_backbone: Literal[True] = True
    n_action_bins: Literal[256] = 256
    arch_specifier: Literal["no-align+fused-gelu-mlp"] = "no-align+fused-gelu-mlp"
    image_sizes: tuple[Pixels, Pixels] = (224, 224)
    timm_model_ids: tuple[str, str] = ("vit_large_patch14_reg4_dinov2", "vit_so400m_patch14_siglip_224")
    pad_to_multiple_of: Count = LlamaSizes.padded

    def __post_init__(self) -> None:
        if len(set(self.image_sizes)) != 1:
            raise UserError(f"image_sizes are {self.image_sizes}; expected one size for both towers")


Colours = tuple[tuple[Share, Share, Share], tuple[Share, Share, Share]]
"""Red, green, blue of each tower."""


@part(frozen=True, kw_only=True)
class Preprocessor:
    """The part of preprocessor_config.json that says what pixels are normalised with."""

    means: Colours
    stds: Colours


@part(frozen=True, kw_only=True)
class Measured:
    """The measures of state or action, one number per dimension each."""

    mean: Numbers
    std: Numbers
    min: Numbers
    max: Numbers
    q01: Numbers
    q99: Numbers
    mask: tuple[bool, ...] | None = None
    """Dimensions that are normalised."""

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in MEASURES}
        if len(set(lengths.values())) != 1:
            raise UserError(f"the measures have lengths {lengths}; expected equal ones")


@part(frozen=True, kw_only=True)
class PublishedStatistics:
    """Entry of dataset_statistics.json under one key."""

    action: Measured
    proprio: Measured | None = None


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """Report on an import."""

    config: OpenVLAOFTConfig
    statistics_key: str
    tensors: int
    """Tensors of the policy."""
    parameters: int
    unread: int
    """Tensors of the checkpoint that the policy never reads: the ends of the vision towers."""
    merged: int
    """Weights that an adapter was added to."""


def import_openvla_oft(
    folder: Path,
    out: Path,
    *,
    cameras: Sequence[str],
    statistics_key: str | None = None,
    chunk_length: int = CHUNK,
    gripper: Literal["libero", "none"] = "libero",
    lora_adapter: Literal["merge", "merged"] | None = None,
) -> ImportReport:
    """Converts the checkpoint in `folder` into the new policy folder `out`, running no code from it.

    Args:
        folder: as published.
        out: must not exist; nothing is written unless everything fits.
        cameras: names that the suite has for the cameras, in the order that the training had them in.
        statistics_key: of `dataset_statistics.json`, such as `libero_spatial`; None if it has one only. Where it lacks
            KEY, KEY_no_noops is taken.
        chunk_length: of the training; LIBERO's is 8, RoboTwin's 25.
        gripper: the convention of the last action dimension.
        lora_adapter: what to do with an adapter beside the weights: `merge` adds it, `merged` says that they contain
            it.

    Raises:
        UserError: anything that is missing, left over, damaged, or of another kind.
    """
    if out.exists():
        raise UserError(f"{out} exists already; name a new folder for the policy")
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; expected a published OpenVLA-OFT checkpoint")
    _refuse_regression(folder)
    config_file = folder / "config.json"
    published = read_as(_found(config_file), PublishedConfig)
    preprocessor = read_as(_found(folder / "preprocessor_config.json"), Preprocessor)
    files = weight_files(folder, WEIGHTS)
    if not files:
        raise UserError(f"{folder} holds no model; expected {WEIGHTS[0]}, or pieces with {WEIGHTS[0]}.index.json")
    tensors = read_tensors(files) | _read_proprio(folder)
    half = tensors.get("language_model.lm_head.weight", torch.empty(0)).dtype == torch.bfloat16
    merged = _merge_adapter(tensors, folder, lora_adapter)
    key, measured = _read_statistics(folder / "dataset_statistics.json", statistics_key)
    action_dim = len(measured.action.min)
    mask = (True,) * (action_dim - 1) + (False,) if measured.action.mask is None else measured.action.mask
    if gripper == "libero":
        _check_gripper(measured.action, mask, folder / "dataset_statistics.json")
    config = OpenVLAOFTConfig(
        cameras=tuple(cameras),
        state_dim=len(measured.proprio.min) if measured.proprio else STATE,
        action_dim=action_dim,
        chunk_length=chunk_length,
        proprio="proprio_projector.fc1.weight" in tensors,
        image_size=published.image_sizes[0],
        dino=_tower(tensors, "featurizer", "dino", published, preprocessor, folder),
        siglip=_tower(tensors, "fused_featurizer", "siglip", published, preprocessor, folder),
        language=_language(published, tensors, config_file),
        bounds="min_max" if gripper == "none" and all(mask) else "q01_q99",
        action_mask=mask,
        gripper=gripper,
        dtype="bfloat16" if half else "float32",
    )
    statistics = _statistics(measured, config)
    tokenizer = _read_tokenizer(_found(folder / "tokenizer.json"), config.language.vocab_size - config.language.padded)
    policy = OpenVLAOFT.unfilled(config, statistics, tokenizer)
    weights, unread = convert(tensors, policy, config_file)
    policy.load_state_dict(weights, assign=True)
    policy.trained_on = (TrainedOn(stage="published"),)
    with atomic_folder(out) as temporary:
        policy.save(temporary)
    parameters = sum(tensor.numel() for tensor in weights.values())
    return ImportReport(
        config=config, statistics_key=key, tensors=len(weights), parameters=parameters, unread=unread, merged=merged
    )


def _found(file: Path) -> Path:
    if not file.is_file():
        raise UserError(f"{file} is missing; expected a whole published OpenVLA-OFT checkpoint")
    return file


def _refuse_regression(folder: Path) -> None:
    heads = sorted(folder.glob(L1_HEAD))
    if heads:
        raise UserError(
            f"{folder} was trained with a regression or diffusion head ({heads[0].name}): its action tokens are untrained, so a policy "
            "that samples them solves nothing and RL finds no signal. Use a checkpoint that was trained on tokens (SimpleVLA-RL "
            "publishes some), or fine-tune this one with `simplevla sft` first, after moving that file away."
        )


def _merge_adapter(tensors: dict[str, Tensor], folder: Path, lora_adapter: Literal["merge", "merged"] | None) -> int:
    """Adds the adapter that lies beside the weights to them, in place; returns the number of changed weights."""
    place = next(
        (p for p in (folder / LORA, folder) if weight_files(p, ADAPTER) or (p / ADAPTER_CONFIG).is_file()), None
    )
    if place is None:
        if lora_adapter is not None:
            raise UserError(f"--lora-adapter is {lora_adapter!r}, but there is none in {folder} or {folder / LORA}")
        return 0
    if lora_adapter is None:
        raise UserError(
            f"{place} holds a LoRA adapter beside the weights of {folder}, and nothing says whether they contain it. Say "
            "--lora-adapter merged if they do (OpenVLA-OFT's training merges it into what it saves unless told otherwise), or "
            "--lora-adapter merge if they are the base's; then compare the success with the published one before any RL"
        )
    if lora_adapter == "merged":
        return 0
    files = weight_files(place, ADAPTER)
    if not files:
        raise UserError(f"{place} has {ADAPTER_CONFIG} and no weights; expected {' or '.join(ADAPTER)}")
    return merge_lora(tensors, read_tensors(files), read_json(_found(place / ADAPTER_CONFIG)), place)


def _read_proprio(folder: Path) -> dict[str, Tensor]:
    """The state's projector, where it is a file of its own."""
    files = sorted(folder.glob(PROPRIO))
    if len(files) > 1:
        raise UserError(f"{folder} has {len(files)} files like {PROPRIO}; expected one at most")
    return {f"proprio_projector.{name.removeprefix('module.')}": x for name, x in read_tensors(files).items()}


def _read_statistics(file: Path, key: str | None) -> tuple[str, PublishedStatistics]:
    """(key, the measures under it)."""
    statistics = read_json(_found(file))
    if key is None and len(statistics) == 1:
        key = next(iter(statistics))
    found = next((name for name in (str(key), f"{key}_no_noops") if name in statistics), None)
    if found is None:
        raise UserError(
            f"{file} has statistics for {', '.join(statistics)}; expected {'one of them' if key is None else repr(key)}. Name one with "
            "--statistics-key"
        )
    return found, from_dict(PublishedStatistics, statistics[found], source=f"{file}, {found}")


def _check_gripper(action: Measured, mask: tuple[bool, ...], file: Path) -> None:
    """Refuses statistics of a robot whose last action isn't LIBERO's gripper, from 0 to 1 and not normalised."""
    low, high, last = action.min[-1], action.max[-1], mask[-1:]
    if not 0 <= low <= high <= 1 or last != (False,):
        raise UserError(
            f"{file}: the last action dimension runs from {low} to {high} and its mask is {list(last)}; LIBERO's gripper runs from "
            "0 (closed) to 1 (open) and isn't normalised (mask false). Say --gripper none if it is an action like the others"
        )


def _statistics(measured: PublishedStatistics, config: OpenVLAOFTConfig) -> Statistics:
    """Statistics in the suite's units, which for the gripper aren't the model's."""
    action = {name: list(getattr(measured.action, name)) for name in MEASURES}
    if config.gripper == "libero":
        last = {name: 1 - 2 * action[name][-1] for name in MEASURES} | {"std": 2 * action["std"][-1]}
        last |= {"min": last["max"], "max": last["min"], "q01": last["q99"], "q99": last["q01"]}
        action = {name: [*action[name][:-1], last[name]] for name in MEASURES}
    unknown = {name: [1.0 if name in ("std", "max", "q99") else 0.0] * config.state_dim for name in MEASURES}
    proprio = measured.proprio
    state = {name: list(getattr(proprio, name)) for name in MEASURES} if proprio else unknown
    return Statistics(state=state, action=action)


def _tower(
    tensors: Mapping[str, Tensor],
    tower: str,
    name: Literal["dino", "siglip"],
    published: PublishedConfig,
    preprocessor: Preprocessor,
    folder: Path,
) -> TowerConfig:
    number = ("dino", "siglip").index(name)
    prefix = f"vision_backbone.{tower}."
    layers = 0
    while f"{prefix}blocks.{layers}.attn.qkv.weight" in tensors:
        layers += 1
    first = tensors.get(f"{prefix}blocks.0.mlp.fc1.weight")
    identifier = published.timm_model_ids[number]
    if layers < 2 or first is None or first.ndim != 2:
        raise UserError(f"{folder} holds no {name} tower: {prefix}blocks has {layers} whole layers; expected 2 or more")
    heads = next((count for start, count in TOWERS.items() if identifier.startswith(start)), None)
    if heads is None:
        raise UserError(f"{folder} has the {name} tower {brief(identifier)}; expected {list(TOWERS)[number]!r}")
    return TowerConfig(
        hidden_size=first.shape[1],
        layers=layers,
        heads=heads,
        mlp_size=first.shape[0],
        mean=preprocessor.means[number],
        std=preprocessor.stds[number],
    )


def _language(published: PublishedConfig, tensors: Mapping[str, Tensor], file: Path) -> LlamaSizes:
    text = published.text_config
    sizes = LlamaSizes(
        hidden_size=text.hidden_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        key_value_heads=text.num_key_value_heads or text.num_attention_heads,
        mlp_size=text.intermediate_size,
        vocab_size=text.vocab_size,
        padded=published.pad_to_multiple_of,
        rms_norm_eps=text.rms_norm_eps,
        rope_theta=text.rope_theta,
    )
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        rows = tensors[name].shape[0] if name in tensors and tensors[name].ndim else 0
        if rows != sizes.vocab_size:
            raise UserError(f"{name} has {rows} rows; expected {sizes.vocab_size}, the vocab_size of {file}")
    return sizes


def _read_tokenizer(file: Path, tokens: int) -> Tokenizer:
    tokenizer = read_tokenizer(file)
    got = [tokenizer.id_to_token(i) for i in (BEGIN, STOP, SPACE)]
    # The padding token is the 32001st.
    if got != ["<s>", "</s>", "▁"] or tokenizer.get_vocab_size() > tokens + 1:
        raise UserError(
            f"{file} knows {tokenizer.get_vocab_size()} tokens, of which {BEGIN}, {STOP} and {SPACE} are {got}; expected Llama's {tokens}, "
            "with <s>, </s> and ▁ there"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
