"""Bit-for-bit repeatable training on CPU."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def deterministic(device: str = "cpu") -> Iterator[None]:
    """Context in which torch's operations on CPU give the same bits every time, whatever the number of threads.

    Without it, sums over threads (the backward pass of indexing, for one) come out in the order in which threads
    finish, and a resumed run is not the uninterrupted one. On other devices nothing changes.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or torch.device(device).type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
