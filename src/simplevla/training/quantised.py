"""AdamW with moments of 8 bits: torchao's, and how its state is written without its tensor classes.

A moment is a code of 8 bits per element and a float32 scale per block of 256 elements, the block's largest (Dettmers et
al., arXiv 2110.02861). Tensors below 4096 elements, or not a multiple of 256, keep float32 moments.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from simplevla.config import OptimizerConfig
from simplevla.errors import UserError

BLOCK = 256


def adamw_8bit(groups: list[dict[str, Any]], settings: OptimizerConfig) -> torch.optim.Optimizer:
    """torchao's optimizer.

    Raises:
        UserError: torchao isn't installed.
    """
    try:
        from torchao.optim import AdamW8bit
    except ModuleNotFoundError as error:
        raise UserError(
            f"optimizer.moments is 8bit, which needs {error.name}: pip install 'simplevla[eightbit]'; or leave it at "
            "float32"
        ) from None
    optimizer: torch.optim.Optimizer = AdamW8bit(
        groups, lr=settings.lr or 0.0, betas=settings.betas, weight_decay=settings.weight_decay
    )
    return optimizer


def stepping(device: torch.device) -> AbstractContextManager[object]:
    """Context of an optimizer step: on CPU torchao's formula runs uncompiled, since that would need a C++ compiler."""
    return torch.compiler.set_stance("force_eager") if device.type == "cpu" else nullcontext()


def keep_unequal_parts(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    """Gives parameters that ranks hold unequal parts of float32 moments: their blocks would end differently on each."""
    for parameter in parameters:
        if isinstance(parameter, DTensor) and len(parameter) % parameter.device_mesh.size():
            moments = {kind: torch.zeros_like(parameter.detach()) for kind in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.tensor(0.0), **moments}


def plain(kind: str, value: Tensor) -> dict[str, Tensor]:
    """Plain tensors of an optimizer's state: `kind.codes` and `kind.scale`, or `kind` where nothing is quantised."""
    local: Any = value.to_local() if isinstance(value, DTensor) else value
    if not hasattr(local, "codes"):
        return {kind: value}
    parts = {f"{kind}.codes": local.codes, f"{kind}.scale": local.scale}
    if isinstance(value, DTensor):
        return {name: DTensor.from_local(part, value.device_mesh, value.placements) for name, part in parts.items()}
    return parts


def shape_of(kind: str, parameter: Tensor) -> tuple[int, ...]:
    """The shape that `plain` gives the state `kind` of a whole parameter."""
    if kind.endswith(".scale"):
        return (parameter.numel() // BLOCK,)
    return () if kind == "step" else tuple(parameter.shape)


def quantised(kind: str, codes: Tensor, scale: Tensor, like: Tensor) -> Tensor:
    """Moment from the whole `codes` and `scale` that `plain` gave, for the parameter `like` or this rank's part."""
    from torchao.optim.subclass_8bit import OptimState8bit

    parts = [part.to(like.device) for part in (codes, scale)]
    if isinstance(like, DTensor):
        parts = [distribute_tensor(part, like.device_mesh, like.placements).to_local() for part in parts]
    zeros = OptimState8bit.zeros(parts[0].shape, kind == "exp_avg", BLOCK, like.device, dtype=like.dtype)
    zeros.codes.copy_(parts[0])
    zeros.scale.copy_(parts[1])
    moment: Tensor = zeros
    return DTensor.from_local(moment, like.device_mesh, like.placements) if isinstance(like, DTensor) else moment
