"""The files that TinyVLA's training writes: which there are, and the tensors in them.

A LoRA run writes into its output folder `config.json`, `dataset_stats.pkl`, `adapter_config.json`, `adapter_model.*`
and `non_lora_trainables.bin`, which holds all other parameters, trained or not; and into `checkpoint-N` below it the
adapter of step N, beside which a script puts that step's `non_lora_trainables.bin` (in newer versions a folder of that
name). A run without LoRA writes the whole model as Hugging Face does.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from simplevla.errors import UserError
from simplevla.policies.published import read_tensors, weight_files
from simplevla.policies.published_lora import ADAPTER, ADAPTER_CONFIG, WRAPPER, merge_lora
from simplevla.storage import read_json

WHOLE_MODEL = ("model.safetensors", "pytorch_model.bin")
REST = "non_lora_trainables.bin"


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
    """Tensors by the names that they have in the model without adapter."""
    merged: int
    """Matrices that the adapter changed."""


def read_checkpoint(folder: Path, base: Path | None) -> PublishedCheckpoint:
    """Reads a checkpoint's files and merges its adapter.

    Args:
        folder: the training's output folder, or a `checkpoint-N` in it.
        base: the Llava-Pythia model that the training started from, for what `folder` lacks; None if it lacks nothing.

    Raises:
        UserError: a missing or damaged file, or an adapter of another kind than plain LoRA.
    """
    for name in (folder, base):
        if name is not None and not name.is_dir():
            raise UserError(f"{name} is no folder; expected one that TinyVLA's training wrote")
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
    raise UserError(f"{name} is missing in {' and '.join(map(str, places))}; {hint}")


def _read_model(folder: Path, base: Path | None) -> tuple[dict[str, Tensor], int]:
    whole = weight_files(folder, WHOLE_MODEL)
    adapter = weight_files(folder, ADAPTER)
    if whole and adapter:
        raise UserError(
            f"{folder} holds both {whole[0].name} and {adapter[0].name}; expected a whole model or an adapter"
        )
    if whole:
        return _plain_names(read_tensors(whole), folder), 0
    if not adapter:
        raise UserError(
            f"{folder} holds no model; expected {' or '.join(WHOLE_MODEL)}, or {' or '.join(ADAPTER)} with {REST}"
        )
    rest = [folder / REST] if (folder / REST).is_file() else weight_files(folder / REST, WHOLE_MODEL)
    if not rest:
        raise UserError(
            f"{folder / REST} is missing: the head and everything else beside the adapter is in it. For a checkpoint-N "
            "it is made from the DeepSpeed files by TinyVLA's process_ckpts script"
        )
    tensors: dict[str, Tensor] = {}
    if base is not None:
        files = weight_files(base, WHOLE_MODEL)
        if not files:
            raise UserError(f"{base} holds no model; expected {' or '.join(WHOLE_MODEL)}")
        tensors = _plain_names(read_tensors(files), base)
        tensors.pop("embed_out.weight", None)  # the language head, which TinyVLA replaces by its own
    # The same adapter in another precision, where the file was made from the DeepSpeed files.
    others = {name: tensor for name, tensor in read_tensors(rest).items() if ".lora_" not in name}
    tensors |= _plain_names(others, folder / REST)
    config = read_json(_find(ADAPTER_CONFIG, [folder], "it belongs to the adapter"))
    return tensors, merge_lora(tensors, read_tensors(adapter), config, folder)


def _plain_names(tensors: dict[str, Tensor], origin: Path) -> dict[str, Tensor]:
    """The tensors by their names without peft, which adds a prefix to all and `base_layer` to adapted ones."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        shorter = name.removeprefix(WRAPPER).replace(".base_layer.", ".")
        if shorter in plain:
            raise UserError(f"{origin} holds {shorter} twice, once as {name}; use another checkpoint")
        plain[shorter] = tensor
    return plain
