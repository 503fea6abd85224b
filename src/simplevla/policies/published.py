"""Checkpoints as others publish them: JSON and tensors, whole or in pieces; no code in them is run."""

import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from simplevla.checked import part
from simplevla.errors import UserError, one_line
from simplevla.storage import read_as

NUMBERS = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}


@part(frozen=True, kw_only=True)
class WeightIndex:
    """The index of weights in pieces."""

    weight_map: dict[str, str]
    """Tensor -> file beside the index."""


def weight_files(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """The files of the first kind in `names` that `folder` has, whole or in pieces."""
    for name in names:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            pieces = read_as(index, WeightIndex).weight_map
            outside = [piece for piece in pieces.values() if Path(piece).name != piece]
            if outside:
                raise UserError(f"{index} names {outside[0]!r}; expected files beside it")
            return [folder / piece for piece in dict.fromkeys(pieces.values())]
    return []


def read_tensors(files: list[Path]) -> dict[str, Tensor]:
    """All tensors of .safetensors or torch .bin files, each name once; code in a .bin isn't run."""
    tensors: dict[str, Tensor] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing, though the index beside it names it; use another checkpoint")
        for name, tensor in _read_file(file).items():
            _check_plain(file, name, tensor)
            if name in tensors:
                raise UserError(f"{file} holds {name} for the second time; use another checkpoint")
            tensors[name] = tensor
    return tensors


def _read_file(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise UserError(f"{file} is damaged ({error}); use another checkpoint") from error
    try:
        values = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # a damaged pickle raises almost anything
        reason = one_line(str(error).partition("\n")[0])
        raise UserError(f"{file} is damaged or holds more than tensors ({reason}); nothing in it was run") from error
    if not isinstance(values, dict) or not all(isinstance(tensor, Tensor) for tensor in values.values()):
        raise UserError(f"{file} holds something else than named tensors; expected a model's weights")
    return {str(name): tensor for name, tensor in values.items()}


def _check_plain(file: Path, name: str, tensor: Tensor) -> None:
    """Refuses tensors whose numbers aren't all in the file: sparse, on another device, or one number for many."""
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.dtype in NUMBERS
    if not plain or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.itemsize:
        raise UserError(
            f"{file} holds {name} as a {tensor.layout} tensor of shape {list(tensor.shape)}, {tensor.dtype}, on {tensor.device}; expected "
            "one whose numbers are all in the file. Save the weights again, as dense numbers"
        )
