"""LoRA in peft's own layout: the two files that `PeftModel.from_pretrained` reads."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from simplevla.adapters.config import AdapterConfig
from simplevla.errors import UserError
from simplevla.policies.published_lora import ADAPTER, ADAPTER_CONFIG, WRAPPER, check_plain_lora
from simplevla.storage import read_json

CONFIG = ADAPTER_CONFIG
TENSORS, PICKLE = ADAPTER
WITH_CARD = "card"
"""Key in the tensors' metadata that names the file beside them: a copy without that file isn't taken for peft's own."""
KEY = re.compile(re.escape(WRAPPER) + r"(.+)\.(lora_[AB]\.weight)")

TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""Options that say which modules have the adapter."""


def write_lora(
    folder: Path, config: AdapterConfig, modules: Sequence[str], tensors: dict[str, Tensor], card: str
) -> None:
    """Writes both files into `folder`.

    Args:
        tensors: by module and part, such as `head.linear.lora_A.weight`.
        card: name of the file that is written beside them.
    """
    values = {
        "peft_type": "LORA",
        "task_type": None,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "bias": "none",
        "target_modules": list(modules),
        "inference_mode": True,
    }
    renamed = {f"{WRAPPER}{name}": tensor for name, tensor in tensors.items()}
    # One key alone: safetensors writes several in an order that changes, and so would the policy's fingerprint.
    (folder / TENSORS).write_bytes(safetensors.torch.save(renamed, {WITH_CARD: card}))
    (folder / CONFIG).write_text(json.dumps(values, indent=1) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """The content of `adapter_config.json`, if it describes plain LoRA.

    Raises:
        UserError: no such file, or an option that isn't plain LoRA's, such as DoRA's.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise UserError(f"{file} is missing; a LoRA adapter consists of {CONFIG} and {TENSORS}. Export it again")
    values = read_json(file)
    check_plain_lora(values, file)
    if values.get("target_modules") is None or values.get("lora_dropout") is None:
        raise UserError(f"{file} lacks target_modules or lora_dropout; expected both. Export it again")
    return values


def adapter_config(folder: Path) -> AdapterConfig:
    """Reads what peft wrote: rank, strength and dropout of `adapter_config.json`, for the modules that have tensors.

    Raises:
        UserError: as `read_config` and `read_lora`, an impossible value, or a card was written too and is missing.
    """
    values = read_config(folder)
    modules = _modules(folder)
    try:
        return AdapterConfig(
            rank=values["r"], alpha=values["lora_alpha"], dropout=values["lora_dropout"], targets=modules
        )
    except ValueError as error:
        raise UserError(f"{folder / CONFIG} doesn't describe an adapter ({error})") from error


def read_lora(folder: Path) -> dict[str, Tensor]:
    """The tensors by module and part, without peft's prefix.

    Raises:
        UserError: no such file, a pickle in its place, a damaged one, or one that holds more than LoRA's matrices.
    """
    try:
        tensors = safetensors.torch.load_file(_tensor_file(folder))
    except SafetensorError as error:
        raise _damaged(folder, error) from error
    return {".".join(_split(folder, name)): tensor for name, tensor in tensors.items()}


def _modules(folder: Path) -> tuple[str, ...]:
    """Names of the modules that peft's file of tensors holds matrices for; reads none of them."""
    try:
        with safe_open(_tensor_file(folder), framework="pt") as file:
            names, card = list(file.keys()), (file.metadata() or {}).get(WITH_CARD)
    except SafetensorError as error:
        raise _damaged(folder, error) from error
    if card is not None:
        raise UserError(
            f"{folder / card} is missing: it was written with {TENSORS} and says which base it is for. Copy it too"
        )
    return tuple(dict.fromkeys(_split(folder, name)[0] for name in names))


def _tensor_file(folder: Path) -> Path:
    file = folder / TENSORS
    if not file.is_file():
        if (folder / PICKLE).is_file():
            raise UserError(
                f"{folder / PICKLE} is a pickle, which can run code, so it isn't read; save the adapter as {TENSORS}: "
                "save_pretrained(folder, safe_serialization=True)"
            )
        raise UserError(f"{file} is missing; a LoRA adapter consists of {CONFIG} and {TENSORS}")
    return file


def _damaged(folder: Path, error: SafetensorError) -> UserError:
    return UserError(f"{folder / TENSORS} is damaged ({error}); export the adapter again")


def _split(folder: Path, name: str) -> tuple[str, str]:
    match = KEY.fullmatch(name)
    if match is None:
        raise UserError(
            f"{folder / TENSORS} holds {name}; expected only {WRAPPER}MODULE.lora_A.weight and .lora_B.weight"
        )
    return match[1], match[2]
