"""Condition of the diffusion and the flow head: the language model's outputs as one vector."""

import torch
from torch import Tensor, nn


def masked_mean(outputs: Tensor, valid: Tensor) -> Tensor:
    """[B, width]: mean over the valid tokens of [B, L, width]; what stands in the padding doesn't matter."""
    weights = valid[..., None].to(outputs.dtype)
    return (outputs * weights).sum(dim=1) / weights.sum(dim=1)


class PooledCondition(nn.Module):
    """LayerNorm of the pooled outputs, then one linear map of them and the state, as in TinyVLA (arXiv 2409.12514)."""

    def __init__(self, width: int, state_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.combine = nn.Linear(width + state_dim, width)

    def forward(self, pooled: Tensor, state: Tensor) -> Tensor:
        """[B, width].

        Args:
            pooled: [B, width].
            state: float32 [B, S], normalised.
        """
        return self.combine(torch.cat([self.norm(pooled), state], dim=1))
