"""Parts that heads share: a decision, normal log-densities, errors over valid actions, training without the backbone.

B batch, H actions in a chunk, A dimensions of an action, U units.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from simplevla.errors import UserError


@dataclass(frozen=True, kw_only=True)
class HeadSample:
    """A head's decision for B rows."""

    normalised: Tensor
    """float32 [B, H, A], in [-1, 1] where the policy normalises by a range."""
    logprobs: Tensor
    """float32 [B, U]."""
    trace: Tensor
    """[B, ...] what `score` needs."""


def normal_logprobs(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density of each entry under N(mean, std^2)."""
    z = (value - mean) / std
    return -0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi)


def normal_entropy(std: Tensor) -> Tensor:
    """Entropy of each entry of N(., std^2), nats."""
    return std.log() + 0.5 * math.log(2 * math.pi * math.e)


def masked_error(predicted: Tensor, expected: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of [B, H, A] over the actions for which `mask`, bool [B, H], is true."""
    weights = mask[..., None].expand_as(expected).float()
    return ((predicted - expected).square() * weights).sum() / weights.sum()


def freeze_backbone(policy: nn.Module, in_backbone: Callable[[str], bool]) -> None:
    """Leaves the backbone's parameters out of training, for `denoising.frozen_backbone`.

    Args:
        policy: the backbone and what follows it; part of it may be frozen already.
        in_backbone: true for a backbone parameter's name.

    Raises:
        UserError: nothing but the backbone trains.
    """
    trainable = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    if trainable and all(map(in_backbone, trainable)):
        raise UserError(
            f"denoising.frozen_backbone trains what follows the backbone alone, and only {next(iter(trainable))!r} and the like "
            "may be trained here; let the adapter target the head, or leave it off"
        )
    for name, parameter in trainable.items():
        parameter.requires_grad_(not in_backbone(name))
