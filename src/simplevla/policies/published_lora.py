"""A published LoRA adapter, as peft writes it, added to the weights that it was trained on."""

import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from simplevla.checked import Above0, Positive, Share, from_dict, part
from simplevla.errors import UserError, brief
from simplevla.policies.files import is_finite

ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_CONFIG = "adapter_config.json"
WRAPPER = "base_model.model."
"""Stands before every name that peft has to do with."""
LORA_NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")


def merge_lora(tensors: dict[str, Tensor], lora: dict[str, Tensor], config: dict[str, Any], origin: Path) -> int:
    """Adds `alpha / r * B @ A` to each weight W that the adapter changes, in float64, rounded once to float32.

    Args:
        tensors: the model's, changed in place.
        lora: the adapter's.
        config: of the adapter, as peft writes it.
        origin: of the adapter, for messages.

    Returns:
        How many weights it changed.

    Raises:
        UserError: the adapter is of another kind, or its tensors don't fit each other or the model.
    """
    check_plain_lora(config, origin / ADAPTER_CONFIG, computed=("use_rslora",))
    rank = config["r"]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in lora.items():
        match = LORA_NAME.fullmatch(name)
        if match is None:
            raise UserError(f"{origin}'s adapter holds {name}; expected only lora_A and lora_B weights")
        if not tensor.is_floating_point() or not is_finite(tensor):
            raise UserError(f"{origin}'s adapter holds {name}, which isn't made of finite numbers ({tensor.dtype})")
        pairs.setdefault(match[1], {})[match[2]] = tensor
    for module, pair in pairs.items():
        weight = tensors.get(f"{module}.weight")
        if weight is None:
            raise UserError(f"{origin}'s adapter changes {module}, which the model lacks. Is it of another model?")
        if len(pair) < 2:
            raise UserError(
                f"{origin}'s adapter holds only lora_{''.join(pair)} of {module}; expected lora_A and lora_B"
            )
        shapes = [list(pair["A"].shape), list(pair["B"].shape)]
        expected = [[rank, weight.shape[-1]], [weight.shape[0], rank]]
        if weight.ndim != 2 or shapes != expected:
            raise UserError(
                f"{origin}'s adapter has A, B of shapes {shapes} for {module}; expected {expected} by r = {rank} and "
                "the model's weight"
            )
        tensors[f"{module}.weight"] = (weight.double() + scale * (pair["B"].double() @ pair["A"].double())).float()
    targets = config.get("target_modules") or []
    unmet = [] if isinstance(targets, str) else [t for t in targets if not _adapted(t, pairs)]
    if not any(config.get(key) for key in ("exclude_modules", "layers_to_transform")) and not isinstance(targets, str):
        # Of the names that target modules end with, peft adapts every one.
        matrices = [
            name.removesuffix(".weight") for name, x in tensors.items() if x.ndim == 2 and name.endswith(".weight")
        ]
        unmet += [m for m in matrices if m not in pairs and any(m == t or m.endswith(f".{t}") for t in targets)]
    if not pairs or unmet:
        raise UserError(
            f"{origin}'s adapter lacks tensors for {unmet[0] if unmet else 'everything'}; use another checkpoint"
        )
    return len(pairs)


def _adapted(target: str, modules: dict[str, dict[str, Tensor]]) -> bool:
    """True if a module is `target`, or ends with it, as peft understands targets."""
    return target in modules or any(module.endswith(f".{target}") for module in modules)


def check_plain_lora(config: dict[str, Any], file: Path, computed: tuple[str, ...] = ()) -> None:
    """Refuses an adapter that computes anything but `W x + lora_alpha / r * B A x`, and options that aren't known here.

    Args:
        config: the content of `file`, as peft writes it.
        computed: further options that the caller computes.

    Raises:
        UserError: naming the options.
    """
    wrong = {key: value for key, value in config.items() if value and value not in PLAIN_LORA.get(key, ())}
    wrong = {key: value for key, value in wrong.items() if key not in (*FREE, *computed)}
    for key in ("r", "lora_alpha"):
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            wrong[key] = value
    if config.get("peft_type") != "LORA":
        wrong = {"peft_type": config.get("peft_type")}
    if wrong:
        raise UserError(
            f"{file} has {brief(wrong)}; expected plain LoRA with r and lora_alpha: nothing else is computed here. Train the adapter "
            "without that, or merge it with peft"
        )

    from_dict(LoraOptions, config, source=str(file))


Names = tuple[str, ...] | str | None


@part(frozen=True, kw_only=True)
class LoraOptions:
    """The types of those options that plain LoRA has, whatever their value."""

    r: Positive
    lora_alpha: Above0
    lora_dropout: Share = 0.0
    target_modules: Names = None
    exclude_modules: Names = None
    layers_pattern: Names = None
    layers_to_transform: tuple[int, ...] | int | None = None

    def __post_init__(self) -> None:
        for pattern in (self.target_modules, self.exclude_modules):
            if isinstance(pattern, str):
                _check_pattern(pattern)


def _check_pattern(pattern: str) -> None:
    """Refuses what is no regular expression, and repetitions of repetitions, which may take for ever."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{brief(pattern)} is no regular expression ({error})") from None
    if len(pattern) > 1000 or re.search(r"[*+}]\)+[*+{]", pattern):
        raise UserError(f"{brief(pattern)} is too intricate a regular expression; list the modules' names instead")


FREE = (
    "peft_type",
    *("r", "lora_alpha", "lora_dropout"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version"),
)
"""Options that plain LoRA has, whatever their value: numbers, which modules it is for, remarks."""
PLAIN_LORA: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    # How A and B are drawn at first; other ways change the base as well.
    "init_lora_weights": (True, "gaussian", "orthogonal"),
    "megatron_core": ("megatron.core",),
    "qalora_group_size": (16,),
}
"""Values of other options, beside false and missing, with which peft computes plain LoRA
(peft/tuners/lora/config.py)."""
