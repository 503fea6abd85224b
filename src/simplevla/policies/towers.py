"""Operations on the transformers models inside policies."""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

MASKED = -1e9
"""Added to attention scores that must not count; its exponential is exactly 0."""


def checkpoint_towers(policy: nn.Module) -> None:
    """Lets every layer's activations be computed again in the backward pass, until `eval()` or `train()` is called."""
    towers = [module for module in policy.modules() if isinstance(module, PreTrainedModel)]
    for tower in towers:
        tower.activation_checkpointing_enable({"use_reentrant": False})
    for layer in layers(policy):
        # The layer alone: its children stay in evaluation mode, without dropout.
        layer.training = True


def compile_modules(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Runs them through torch.compile from now on."""
    # CUDA graphs need fixed shapes; on CPU one kernel for any batch is better.
    graphs = device.type == "cuda"
    for module in modules:
        module.compile(mode="reduce-overhead" if graphs else "default", dynamic=None if graphs else True)


def layers(policy: nn.Module) -> list[nn.Module]:
    """Transformer layers of all towers, the units that are recomputed, or gathered from several processes."""
    return [module for module in policy.modules() if isinstance(module, GradientCheckpointingLayer)]
