"""Actions to tokens and back, as OpenVLA-OFT does it.

Token s of the 256 stands for the interval 255 - s of the 255 between the points of linspace(-1, 1, 256): a higher token
is a lower value. Tokens 0 and 1 share the highest interval.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from simplevla.policies.normalization import Statistics
from simplevla.policies.openvla_oft.config import OpenVLAOFTConfig

BINS = 256
EPSILON = 1e-8
"""Added to a range, as published."""


def to_tokens(normalised: Tensor) -> Tensor:
    """int64 tokens of values, which are clipped to [-1, 1].

    >>> to_tokens(torch.tensor([-1.0, 0.0, 0.999, 1.0])).tolist()
    [255, 128, 1, 0]
    """
    edges = torch.from_numpy(np.linspace(-1, 1, BINS)).to(normalised.device)
    return BINS - torch.searchsorted(edges, normalised.double().clamp(-1, 1), right=True)


def from_tokens(tokens: Tensor) -> Tensor:
    """float32 middle of each token's interval.

    >>> from_tokens(torch.tensor([255, 128, 1, 0])).tolist()  # doctest: +ELLIPSIS
    [-0.996..., 0.0, 0.996..., 0.996...]
    """
    interval = (BINS - 1 - tokens).clamp(0, BINS - 2)
    return ((2 * interval.double() + 1) / (BINS - 1) - 1).float()


class Bounds:
    """Between the suite's units and the model's: [-1, 1] over the demonstrations' range."""

    def __init__(
        self, measures: dict[str, list[float]], bounds: Literal["q01_q99", "min_max"], mask: list[bool]
    ) -> None:
        low, high = ("q01", "q99") if bounds == "q01_q99" else ("min", "max")
        self.low, self.high = (torch.tensor(measures[name], dtype=torch.float64) for name in (low, high))
        self.mask = torch.tensor(mask)

    def normalise(self, values: Tensor) -> Tensor:
        """[..., D] in the model's units, normalised dimensions clipped to [-1, 1]."""
        low, high, mask = (x.to(values.device) for x in (self.low, self.high, self.mask))
        scaled = (2 * (values.double() - low) / (high - low + EPSILON) - 1).clamp(-1, 1)
        return torch.where(mask, scaled, values.double()).float()

    def restore(self, normalised: Tensor) -> Tensor:
        """[..., D] in the suite's units."""
        low, high, mask = (x.to(normalised.device) for x in (self.low, self.high, self.mask))
        restored = (normalised.double() + 1) / 2 * (high - low + EPSILON) + low
        return torch.where(mask, restored, normalised.double()).float()


class Actions:
    """Chunks in the environment's units and tokens, with the gripper's conventions."""

    def __init__(self, config: OpenVLAOFTConfig, statistics: Statistics) -> None:
        self._bounds = Bounds(statistics.action, config.bounds, list(config.action_mask))
        self._gripper = config.gripper

    def tokens(self, actions: Tensor) -> Tensor:
        """int64 [B, H, A] from float32 [B, H, A] in the environment's units."""
        if self._gripper == "libero":
            # -1 opens in the simulator; the model says 1 for open, 0 for closed.
            actions = torch.cat([actions[..., :-1], (1 - actions[..., -1:].sign()) / 2], dim=-1)
        return to_tokens(self._bounds.normalise(actions))

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """float32 [B, H, A] in the environment's units from int64 [B, H, A]."""
        actions = self._bounds.restore(from_tokens(tokens))
        if self._gripper == "libero":
            actions = torch.cat([actions[..., :-1], -(2 * actions[..., -1:] - 1).sign()], dim=-1)
        return actions
