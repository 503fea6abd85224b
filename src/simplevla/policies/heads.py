"""Parts that heads share: a decision, normal log-densities, the error of a prediction over valid actions.

B batch, H actions in a chunk, A dimensions of an action, U units.
"""

import math
from dataclasses import dataclass

from torch import Tensor


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
