"""Bytes that an update and its rollouts need, on each GPU and on the host. docs/memory.md explains the terms.

Weights stay in the policy's own dtype. What is trained has float32 gradients and AdamW's two moments, and a float32
master copy where the weights are of half precision, whose own gradient is there until it was added to the master's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from simplevla.config import TrainConfig
from simplevla.policies.base import Policy
from simplevla.policies.towers import layers
from simplevla.suites.base import SuiteSpec

CONTEXT_BYTES = 1_000_000_000
"""Assumed, of a process on a GPU: CUDA's context, the libraries' workspaces, gaps between tensors."""
PROCESS_BYTES = 420_000_000
"""Memory of a CPU process before it has a policy (docs/results/tinyvla_s.md: 2.06 GB with one of 1.64 GB loaded)."""
BLOCK, SMALLEST = 256, 4096
"""torchao quantises moments in blocks of 256 with one float32 scale each, and leaves tensors alone that are smaller
than 4,096 or no multiple of a block."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a policy: numbers of parameters, and bytes."""

    parameters: int
    weight_bytes: int
    trained: tuple[int, ...]
    """Numbers in each tensor that is trained."""
    trained_half: int
    """Numbers of half precision among them, which have master copies."""
    layer_bytes: int
    """Weights of the largest transformer layer: several learners gather one at a time."""
    outside_bytes: int
    """Weights outside of all layers, which stay gathered during a micro-batch."""
    stored_bytes: int
    """Bytes of a decision that an episode keeps until the update."""


def sizes_of(policy: Policy, spec: SuiteSpec) -> Sizes:
    """Counts the sizes of a policy, whose parameters may be without values."""
    parameters = list(policy.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    half = [parameter.numel() for parameter in trained if parameter.dtype != torch.float32]
    each = [_bytes(layer) for layer in layers(policy)]
    images = 0 if policy.scores_from_trace else 3 * sum(height * width for height, width in spec.cameras.values())
    numbers = policy.state_dim + len(policy.unit_action_index) + policy.chunk_length * policy.action_dim
    return Sizes(
        parameters=sum(parameter.numel() for parameter in parameters),
        weight_bytes=_bytes(policy),
        trained=tuple(parameter.numel() for parameter in trained),
        trained_half=sum(half),
        layer_bytes=max(each, default=0),
        outside_bytes=_bytes(policy) - sum(each),
        # `executed` is an int64.
        stored_bytes=images + 4 * numbers + 8 + policy.empty_trace(1).nbytes,
    )


def bfloat16_copies(policy: Policy) -> int:
    """Most bytes of the copies of float32 weights that autocast keeps while a batch is computed in bfloat16."""
    return 2 * sum(parameter.numel() for parameter in policy.parameters() if parameter.dtype == torch.float32)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def moment_bytes(sizes: Sequence[int], states: str) -> int:
    """Both moments of tensors of so many numbers."""
    if states == "float32":
        return 8 * sum(sizes)
    return sum(
        # A byte per number, a scale per block, a table of 256 float32 per tensor.
        2 * (size + 4 * size // BLOCK + 4 * 256) if size >= SMALLEST and size % BLOCK == 0 else 8 * size
        for size in sizes
    )


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one GPU, or of a host without one."""

    kept: dict[str, int]
    """Bytes that are in use all the time."""
    passing: dict[str, int]
    """Bytes in use for a while, one entry after another; the largest counts."""

    @property
    def total(self) -> int:
        return sum(self.kept.values()) + max(self.passing.values())


def device_memory(sizes: Sizes, config: TrainConfig, gpus: int, update_bytes: int, batch_bytes: int) -> Memory:
    """Memory of each of `gpus` GPUs, or of the CPU process if there are none.

    One process rolls out and trains with the same weights; with several GPUs each has a learner, with its part of
    parameters and optimizer or a copy of all (`ray.divide`), and beside it a rollout actor with a replica.

    Args:
        update_bytes: footprint of a micro-batch, whose activations aren't divided.
        batch_bytes: footprint of a policy batch.
    """
    parts = gpus if gpus > 1 and config.ray.divide == "full" else 1
    trained = sum(sizes.trained)
    kept = {
        "weights": sizes.weight_bytes // parts,
        "float32 master weights": 4 * sizes.trained_half // parts,
        "gradients": 4 * trained // parts,
        "AdamW's moments": moment_bytes(sizes.trained, config.optimizer.moments) // parts,
    }
    micro_batch = update_bytes + 2 * sizes.trained_half // parts
    if parts > 1:
        # This layer and the next, and this one's gradient before it is divided.
        micro_batch += sizes.outside_bytes + (3 if sizes.trained_half else 2) * sizes.layer_bytes
    at_once = gpus > 0 and config.optimizer.moments == "float32"
    passing = {
        "a micro-batch": micro_batch,
        # On a GPU torch computes the square roots of all second moments at once.
        "an optimizer step": 4 * trained // parts if at_once else 12 * max(sizes.trained),
    }
    if gpus > 1:
        kept["replica for rollouts"] = sizes.weight_bytes
        kept["a policy batch beside it"] = batch_bytes
        kept["two processes (assumed)"] = 2 * CONTEXT_BYTES
    else:
        if config.rollouts_ahead:
            kept["a copy that rolls out ahead"] = sizes.weight_bytes
            kept["a policy batch beside it"] = batch_bytes
        else:
            passing["a policy batch"] = batch_bytes
        kept["process (assumed)" if gpus else "process"] = CONTEXT_BYTES if gpus else PROCESS_BYTES
    return Memory(kept={name: size for name, size in kept.items() if size}, passing=passing)


def stored_episodes(sizes: Sizes, config: TrainConfig, decisions: int) -> int:
    """Most bytes of the episodes that an update trains on, on the host: all have as many `decisions` as the horizon.

    Those of the next update are there too where rollouts go ahead.
    """
    updates = 2 if config.rollouts_ahead else 1
    return updates * config.sampling.groups * config.sampling.group_size * decisions * sizes.stored_bytes
