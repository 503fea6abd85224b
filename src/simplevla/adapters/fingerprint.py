"""Hashes of the base weights and statistics that an adapter was trained on; it works on no others."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from simplevla.policies.normalization import Statistics


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over name, dtype, shape and bytes of every tensor, sorted by name; the same on every device."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def json_sha256(value: Any) -> str:
    """sha256 over JSON with sorted keys and no spaces."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def statistics_sha256(statistics: Statistics) -> str:
    """sha256 over the numbers that a policy normalises with."""
    return json_sha256(statistics.to_dict())
