"""Exchange between the processes (ranks) that train one policy; in a single process nothing of this does anything."""

import math
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def rank_and_count() -> tuple[int, int]:
    """(this process's rank, number of ranks)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def share_of(parts: int) -> list[tuple[int, bool]]:
    """This rank's among so many micro-batches: their numbers, and whether each counts.

    All ranks get as many, since they meet after each: a surplus place is another rank's micro-batch and must weigh
    nothing.
    """
    rank, ranks = rank_and_count()
    places = range(rank, ranks * math.ceil(parts / ranks), ranks)
    return [(min(place, parts - 1), place < parts) for place in places]


def all_reduce_metrics(values: dict[str, float], how: Literal["sum", "min", "max"]) -> dict[str, float]:
    """Each value over all ranks; every rank gets the result."""
    if rank_and_count()[1] == 1:
        return values
    tensor = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(tensor, {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}[how])
    return dict(zip(values, tensor.tolist(), strict=True))


def all_reduce_rows(rows: Tensor) -> Tensor:
    """Fills in the rows of all ranks: `rows` is on the CPU, zero but for this rank's own rows, and gets the others'."""
    if rank_and_count()[1] > 1:
        dist.all_reduce(rows)
    return rows


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor of which this rank has a part; all ranks must ask for it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Copy of `tensor` on the device and with the strides of `like`, or this rank's part of it if `like` is divided."""
    if isinstance(like, DTensor):
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    # A fused optimizer pairs elements by their place in memory.
    return torch.empty_like(like).copy_(tensor)
