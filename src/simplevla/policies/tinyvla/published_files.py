"""The files that TinyVLA's training writes: which there are, and the tensors in them.

A LoRA run writes into its output folder `config.json`, `dataset_stats.pkl`, `adapter_config.json`, `adapter_model.*` and
`non_lora_trainables.bin`, which holds all other parameters, trained or not; and into `checkpoint-N` below it the
adapter of step N, beside which a script puts that step's `non_lora_trainables.bin` (in newer versions a folder of that
name). A run without LoRA writes the whole model as Hugging Face does.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from simplevla.policies.published import read_json, read_tensors, weight_files

WHOLE_MODEL = ("model.safetensors", "pytorch_model.bin")
ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
REST = "non_lora_trainables.bin"

WRAPPER = "base_model.model."
"""Stands before every name that peft has to do with."""
LORA_NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")


@dataclass(frozen=True, kw_only=True)
class PublishedCheckpoint:
    """Everything in a checkpoint, as read; the adapter is merged."""

    config: dict[str, Any]
    config_file: Path
    statistics_file: Path
    tokenizer_file: Path
    preprocessor: dict[str, Any] | None
    """The image processor's settings, if they are there."""
    tensors: dict[str, Tensor]
    """By the names that they have in the model without adapter."""
    merged: int
    """Matrices that the adapter changed."""


def read_checkpoint(folder: Path, base: Path | None) -> PublishedCheckpoint:
    """Read a checkpoint's files and merge its adapter.

    Args:
        folder: the training's output folder, or a `checkpoint-N` in it.
        base: the Llava-Pythia model that the training started from, for what `folder` lacks; None if it lacks nothing.

    Raises:
        ValueError: a missing or damaged file, or an adapter of another kind than plain LoRA.
    """
    for name in (folder, base):
        if name is not None and not name.is_dir():
            raise ValueError(f"{name} is no folder; expected one that TinyVLA's training wrote")
    run = [folder.parent] if folder.name.startswith("checkpoint-") else []
    own = [folder, *run]
    everywhere = own if base is None else [*own, base]
    config_file = _find("config.json", own, "the training writes it into its output folder")
    statistics_file = _find("dataset_stats.pkl", own, "the training writes it into its output folder")
    tokenizer_file = _find("tokenizer.json", everywhere, "it comes with the Llava-Pythia model: name that with --base")
    preprocessor = next((f for f in (place / "preprocessor_config.json" for place in everywhere) if f.is_file()), None)
    tensors, merged = _read_model(folder, base)
    return PublishedCheckpoint(
        config=read_json(config_file),
        config_file=config_file,
        statistics_file=statistics_file,
        tokenizer_file=tokenizer_file,
        preprocessor=None if preprocessor is None else read_json(preprocessor),
        tensors=tensors,
        merged=merged,
    )


def _find(name: str, places: list[Path], hint: str) -> Path:
    for place in places:
        if (place / name).is_file():
            return place / name
    raise ValueError(f"{name} is missing in {' and '.join(map(str, places))}; {hint}")


def _read_model(folder: Path, base: Path | None) -> tuple[dict[str, Tensor], int]:
    whole = weight_files(folder, WHOLE_MODEL)
    adapter = weight_files(folder, ADAPTER)
    if whole and adapter:
        raise ValueError(
            f"{folder} holds both {whole[0].name} and {adapter[0].name}; expected a whole model or an adapter"
        )
    if whole:
        return _plain_names(read_tensors(whole), folder), 0
    if not adapter:
        raise ValueError(
            f"{folder} holds no model; expected {' or '.join(WHOLE_MODEL)}, or {' or '.join(ADAPTER)} with {REST}"
        )
    rest = [folder / REST] if (folder / REST).is_file() else weight_files(folder / REST, WHOLE_MODEL)
    if not rest:
        raise ValueError(
            f"{folder / REST} is missing: the head and everything else beside the adapter is in it. For a checkpoint-N "
            "it is made from the DeepSpeed files by TinyVLA's process_ckpts script"
        )
    tensors: dict[str, Tensor] = {}
    if base is not None:
        files = weight_files(base, WHOLE_MODEL)
        if not files:
            raise ValueError(f"{base} holds no model; expected {' or '.join(WHOLE_MODEL)}")
        tensors = _plain_names(read_tensors(files), base)
        tensors.pop("embed_out.weight", None)  # the language head, which TinyVLA replaces by its own
    # The same adapter in another precision, where the file was made from the DeepSpeed files.
    others = {name: tensor for name, tensor in read_tensors(rest).items() if ".lora_" not in name}
    tensors |= _plain_names(others, folder / REST)
    config = read_json(_find("adapter_config.json", [folder], "it belongs to the adapter"))
    return tensors, merge_lora(tensors, read_tensors(adapter), config, folder)


def _plain_names(tensors: dict[str, Tensor], origin: Path) -> dict[str, Tensor]:
    """With the names of the model without peft: it puts a prefix before all, and `base_layer` into adapted ones."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        shorter = name.removeprefix(WRAPPER).replace(".base_layer.", ".")
        if shorter in plain:
            raise ValueError(f"{origin} holds {shorter} twice, once as {name}; use another checkpoint")
        plain[shorter] = tensor
    return plain


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
    numbers = [config.get("r"), config.get("lora_alpha")]
    if wrong or not all(isinstance(x, int | float) and not isinstance(x, bool) and x > 0 for x in numbers):
        raise ValueError(
            f"{origin / 'adapter_config.json'} has {wrong or dict(zip(('r', 'lora_alpha'), numbers, strict=True))}; "
            "expected plain LoRA with r and lora_alpha, as TinyVLA trains it"
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
