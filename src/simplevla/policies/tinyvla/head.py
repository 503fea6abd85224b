"""The token head: bins of normalised actions, their log-probabilities, sampling.

B batch, U units, N bins. Bin i of N stands for the normalised action -1 + 2 i / (N - 1): the centres are spread evenly
over [-1, 1], both ends included.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


class TokenHead(nn.Module):
    """LayerNorm, one linear map shared by the units, and a bias per unit."""

    def __init__(self, width: int, units: int, bins: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, bins, bias=False)
        self.unit_bias = nn.Parameter(torch.zeros(units, bins))
        nn.init.normal_(self.linear.weight, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, U, N] from the language model's outputs [B, U, width]."""
        return self.linear(self.norm(features)) + self.unit_bias


def to_bins(normalised: Tensor, bins: int) -> Tensor:
    """int64 index of the nearest bin centre; values outside [-1, 1] are clipped."""
    return ((normalised.clamp(-1, 1) + 1) * ((bins - 1) / 2)).round().long()


def from_bins(tokens: Tensor, bins: int) -> Tensor:
    """float32 centre of each bin, in [-1, 1]."""
    return tokens.float() * (2 / (bins - 1)) - 1


def draw(logprobs: Tensor, generators: Sequence[np.random.Generator]) -> Tensor:
    """int64 [B, U] bins drawn by inverting the cumulative distribution of log-probabilities [B, U, N].

    Each row takes U uniforms from its own generator, so what is drawn doesn't depend on who else is in the batch.
    """
    assert len(generators) == len(logprobs), "one generator per row"
    uniform = torch.from_numpy(np.stack([generator.random(logprobs.shape[1]) for generator in generators]))
    cumulative = logprobs.double().exp().cumsum(dim=-1)
    threshold = uniform.to(logprobs.device)[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[..., 0].clamp_(max=logprobs.shape[-1] - 1)
