"""Several processes that train one policy: what each has a part of, and what all know. Alone, nothing of this does anything."""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def place_among_ranks() -> tuple[int, int]:
    """(this process's rank, number of ranks)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def add_up(values: dict[str, float], how: Literal["sum", "min", "max"]) -> dict[str, float]:
    """Each value over all ranks; every rank gets the result."""
    if place_among_ranks()[1] == 1:
        return values
    tensor = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(tensor, {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}[how])
    return dict(zip(values, tensor.tolist(), strict=True))


def whole(tensor: Tensor) -> Tensor:
    """The tensor of which this rank has a part; all ranks must ask for it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of `tensor` on the device of `like`, or this rank's part of it, if `like` is divided."""
    if isinstance(like, DTensor):
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor.clone().to(like.device)
