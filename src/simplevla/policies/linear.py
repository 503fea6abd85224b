"""Linear layers through oneDNN, which PyTorch's CPU build has but uses for half precision only.

In float32 PyTorch multiplies with MKL, and MKL leaves out AVX-512 on processors that aren't Intel's: there oneDNN can
be more than twice as fast, forward, where the processor computes 512 bits at once (docs/performance.md).
"""

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROWS = 8
"""Rows to a multiple of which a policy fills up its larger batches.

oneDNN compiles every product for every batch size, which takes half a millisecond and a third of a megabyte each, and
rollouts have batches of a hundred sizes.
"""
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")
"""Compiled products that it keeps; a diffusion head has more of them than its usual 1024. Read at its first product."""


class _Product(torch.autograd.Function):
    """input weight^T + bias by oneDNN; its gradients by MKL, which is faster at products of transposed matrices."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, weight)
        return _product(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        of_input = gradient @ weight if ctx.needs_input_grad[0] else None
        of_weight = rows.t() @ input.flatten(0, -2) if ctx.needs_input_grad[1] else None
        of_bias = rows.sum(dim=0) if ctx.needs_input_grad[2] else None
        return of_input, of_weight, of_bias


def _product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


class Linear(nn.Linear):
    """`nn.Linear` whose float32 products on CPU are oneDNN's, where PyTorch has it."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Linear map, as `torch.nn.functional.linear`."""
    by_onednn = (
        input.device.type == "cpu"
        and input.dtype == weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
    if not by_onednn:
        return F.linear(input, weight, bias)
    return _Product.apply(input, weight, bias) if torch.is_grad_enabled() else _product(input, weight, bias)


def through_onednn(module: nn.Module) -> None:
    """Lets all plain linear layers inside multiply so, those of transformers' models too; parameters and names stay."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear
