"""Checkpoints as others publish them: JSON and tensors, whole or in pieces; no code in them is run."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from simplevla.errors import UserError


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object."""
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is no valid JSON ({error}); use another checkpoint") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} holds a {type(values).__name__}; expected an object")
    return values


def weight_files(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """The files of the first kind in `names` that `folder` has, whole or in pieces."""
    for name in names:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            pieces = read_json(index).get("weight_map")
            if not isinstance(pieces, dict) or not all(isinstance(piece, str) for piece in pieces.values()):
                raise UserError(f"{index} has no weight_map; use another checkpoint")
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
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{file} is damaged or holds more than tensors ({reason}); nothing in it was run") from error
    if not isinstance(values, dict) or not all(isinstance(tensor, Tensor) for tensor in values.values()):
        raise UserError(f"{file} holds something else than named tensors; expected a model's weights")
    return {str(name): tensor for name, tensor in values.items()}
