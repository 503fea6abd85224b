"""The layers that carry adapters: peft's LoRA, and a bottleneck layer, which peft doesn't have."""

import re
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import layer as lora
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import functional as F

from simplevla.adapters.config import AdapterConfig
from simplevla.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
KINDS = ("lora", "bottleneck")
"""Kinds of wrappers around a base layer, from the innermost to the outermost."""


def check_name(name: str) -> None:
    """Refuses what can't be an adapter's name.

    Raises:
        UserError: saying what a name holds.
    """
    # peft keeps adapters in ModuleDicts, which can't hold the names of their own methods.
    if not NAME.fullmatch(name) or hasattr(nn.ModuleDict, name):
        raise UserError(
            f"{name!r} can't be an adapter's name; expected letters, digits, _ and -, and no word that torch uses"
        )


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """Houlsby adapters on the output of `base_layer`: `y + up(GELU(down(dropout(y))))`, one per name.

    For convolutions down and up are 1 x 1, so they act on the channels of every place alike.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_dropout",)
    base_layer: nn.Module
    active_adapters: list[str]

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_dropout = nn.ModuleDict()

    def add(self, name: str, base: nn.Module, rank: int, dropout: float) -> None:
        """A new one for the innermost layer `base`; it changes nothing yet, since `up` is zero."""
        width = _width_out(base)
        down, up = _pointwise(base, width, rank), _pointwise(base, rank, width)
        for parameter in up.parameters():
            nn.init.zeros_(parameter)
        self.bottleneck_down[name] = down
        self.bottleneck_up[name] = up
        self.bottleneck_dropout[name] = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """The base layer's output, changed by the active adapter if this layer has it."""
        output = self.base_layer(*args, **kwargs)
        for name in self.active_adapters:
            if name in self.bottleneck_down:
                down = self.bottleneck_down[name]
                hidden = F.gelu(down(self.bottleneck_dropout[name](output.to(down.weight.dtype))))
                output = (output + self.bottleneck_up[name](hidden)).to(output.dtype)
        return output


def add_to_layer(layer: nn.Module, carrier: Any, name: str, config: AdapterConfig) -> Any:
    """Puts the adapter `name`, freshly initialised and inactive, on the base layer `layer`.

    Args:
        carrier: the peft layer of this kind that already wraps it, or None.

    Returns:
        The carrier: the one given, or a new one, not yet placed in the policy. Parameters are float32 where the base
        is of half precision, since optimizer steps vanish in it.
    """
    if config.kind == "bottleneck":
        carrier = carrier or BottleneckLayer(layer)
        assert isinstance(carrier, BottleneckLayer)
        carrier.add(name, layer, config.rank, config.dropout)
    else:
        settings = LoraConfig(
            r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, bias="none", inference_mode=True
        )
        if carrier is None:
            carrier = lora.dispatch_default(layer, name, settings, r=config.rank, lora_alpha=config.alpha)
        else:
            carrier.update_layer(name, config.rank, lora_alpha=config.alpha, config=settings)
        assert isinstance(carrier, lora.LoraLayer), f"peft has no LoRA for {type(layer).__name__}"
    assert isinstance(layer.weight, Tensor)
    dtype = torch.promote_types(layer.weight.dtype, torch.float32)
    for part in carrier.adapter_layer_names:
        modules = getattr(carrier, part)
        if name in modules:
            modules[name].to(layer.weight.device, dtype)
    carrier.train(layer.training)
    carrier.set_adapter([], inference_mode=True)
    return carrier


def parameter_shapes(layer: nn.Module, config: AdapterConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the parameters that `add_to_layer` makes, such as `lora_A.weight`."""
    assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    out, inner, *kernel = layer.weight.shape
    ones = (1,) * len(kernel)
    if config.kind == "lora":
        return {"lora_A.weight": (config.rank, inner, *kernel), "lora_B.weight": (out, config.rank, *ones)}
    return {
        "bottleneck_down.weight": (config.rank, out, *ones),
        "bottleneck_down.bias": (config.rank,),
        "bottleneck_up.weight": (out, config.rank, *ones),
        "bottleneck_up.bias": (out,),
    }


def parameters_of(carrier: Any, name: str) -> dict[str, nn.Parameter]:
    """`lora_A.weight` and so on -> the parameter of the adapter `name`."""
    found: dict[str, nn.Parameter] = {}
    for part in carrier.adapter_layer_names:
        modules = getattr(carrier, part)
        if name in modules:
            found |= {f"{part}.{key}": parameter for key, parameter in modules[name].named_parameters()}
    return found


def _width_out(layer: nn.Module) -> int:
    assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _pointwise(like: nn.Module, width_in: int, width_out: int) -> nn.Module:
    if isinstance(like, nn.Linear):
        return nn.Linear(width_in, width_out)
    kind = nn.Conv1d if isinstance(like, nn.Conv1d) else nn.Conv2d
    return kind(width_in, width_out, 1)
