"""A published LoRA adapter, as peft writes it, added to the weights that it was trained on."""

import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor

ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_CONFIG = "adapter_config.json"
WRAPPER = "base_model.model."
"""Stands before every name that peft has to do with."""
LORA_NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")


def merge_lora(tensors: dict[str, Tensor], lora: dict[str, Tensor], config: dict[str, Any], origin: Path) -> int:
    """Add `alpha / r * B @ A` to each weight W that the adapter changes, in float64, rounded once to float32.

    Args:
        tensors: the model's, changed in place.
        lora: the adapter's.
        config: of the adapter, as peft writes it.
        origin: of the adapter, for messages.

    Returns:
        How many weights it changed.

    Raises:
        ValueError: the adapter is of another kind, or its tensors don't fit each other or the model.
    """
    _check_lora_config(config, origin)
    rank = config["r"]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in lora.items():
        match = LORA_NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{origin}'s adapter holds {name}; expected only lora_A and lora_B weights")
        pairs.setdefault(match[1], {})[match[2]] = tensor
    for module, pair in pairs.items():
        weight = tensors.get(f"{module}.weight")
        if weight is None:
            raise ValueError(f"{origin}'s adapter changes {module}, which the model lacks. Is it of another model?")
        if len(pair) < 2:
            raise ValueError(
                f"{origin}'s adapter holds only lora_{''.join(pair)} of {module}; expected lora_A and lora_B"
            )
        shapes = [list(pair["A"].shape), list(pair["B"].shape)]
        expected = [[rank, weight.shape[-1]], [weight.shape[0], rank]]
        if weight.ndim != 2 or shapes != expected:
            raise ValueError(
                f"{origin}'s adapter has A, B of shapes {shapes} for {module}; expected {expected} by r = {rank} and "
                "the model's weight"
            )
        tensors[f"{module}.weight"] = (weight.double() + scale * (pair["B"].double() @ pair["A"].double())).float()
    targets = config.get("target_modules") or []
    unmet = [] if isinstance(targets, str) else [t for t in targets if not _adapted(t, pairs)]
    if not pairs or unmet:
        raise ValueError(
            f"{origin}'s adapter lacks tensors for {unmet[0] if unmet else 'everything'}; use another checkpoint"
        )
    return len(pairs)


def _adapted(target: str, modules: dict[str, dict[str, Tensor]]) -> bool:
    """Whether a module is `target`, or ends with it, as peft understands targets."""
    return target in modules or any(module.endswith(f".{target}") for module in modules)


def _check_lora_config(config: dict[str, Any], origin: Path) -> None:
    got = {
        "peft_type": config.get("peft_type"),
        **{key: config[key] for key in PLAIN_LORA if key != "peft_type" and config.get(key)},
    }
    wrong = {key: value for key, value in got.items() if value != PLAIN_LORA[key]}
    # How A was drawn at the start, as OpenVLA-OFT asks for it; other ways change the base as well.
    if wrong.get("init_lora_weights") == "gaussian":
        del wrong["init_lora_weights"]
    numbers = [config.get("r"), config.get("lora_alpha")]
    if wrong or not all(isinstance(x, int | float) and not isinstance(x, bool) and x > 0 for x in numbers):
        raise ValueError(
            f"{origin / ADAPTER_CONFIG} has {wrong or dict(zip(('r', 'lora_alpha'), numbers, strict=True))}; "
            "expected plain LoRA with r and lora_alpha"
        )


PLAIN_LORA: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layer_replication": None,
    "lora_bias": False,
    "init_lora_weights": True,
    "use_qalora": False,
    "use_bdlora": None,
    "alora_invocation_tokens": None,
    "target_parameters": None,
    "trainable_token_indices": None,
}
"""What `merge_lora` understands; other false or missing values mean these too."""
