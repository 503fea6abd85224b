"""The token head: bins of normalised actions, their log-probabilities, sampling.

B batch, H actions in a chunk, A dimensions of an action, U = H * A units, N bins. Bin i of N stands
for the normalised action -1 + 2 i / (N - 1): the centres are spread evenly over [-1, 1], both ends included.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from simplevla.config import DenoisingConfig
from simplevla.errors import UserError
from simplevla.policies.base import Sampling
from simplevla.policies.categorical import sample_tokens, score_tokens
from simplevla.policies.heads import HeadSample


class TokenHead(nn.Module):
    """LayerNorm, one linear map shared by the units, and a bias per unit.

    Unit `u = h * A + a` is dimension `a` of action `h`.
    """

    def __init__(self, width: int, chunk_length: int, action_dim: int, bins: int) -> None:
        super().__init__()
        self.shape = (chunk_length, action_dim)
        self.bins = bins
        units = chunk_length * action_dim
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, bins, bias=False)
        self.unit_bias = nn.Parameter(torch.zeros(units, bins))
        nn.init.normal_(self.linear.weight, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B, U, N] from the language model's outputs [B, U, width]."""
        return self.linear(self.norm(features)) + self.unit_bias

    @property
    def unit_action_index(self) -> np.ndarray:
        """Action in the chunk of each unit, int64 [U]."""
        length, action_dim = self.shape
        return np.repeat(np.arange(length), action_dim)

    @property
    def unit_discount(self) -> np.ndarray:
        """Factors of the advantage, float32 [U]: every unit gets the whole."""
        return np.ones(len(self.unit_action_index), np.float32)

    @property
    def unit_clip_scale(self) -> np.ndarray:
        """Factors of the clip range, float32 [U]: every unit gets the whole."""
        return self.unit_discount

    def set_denoising(self, denoising: DenoisingConfig) -> None:
        """Nothing is denoised here.

        Raises:
            UserError: a frozen backbone; the queries pass through it.
        """
        if denoising.frozen_backbone:
            raise UserError("denoising.frozen_backbone is for a diffusion or flow head; this policy has a token head")

    def empty_trace(self, rows: int, condition: int) -> Tensor:
        """Token ids of `rows` decisions; a token head has no condition to keep."""
        return torch.zeros(rows, len(self.unit_action_index), dtype=torch.int64)

    def sample(self, logits: Tensor, sampling: Sampling, generators: Sequence[np.random.Generator]) -> HeadSample:
        """One bin per unit, from logits [B, U, N]; the trace is the bins, int64 [B, U]."""
        tokens, logprobs = sample_tokens(logits, sampling, generators)
        normalised = from_bins(tokens, self.bins).unflatten(1, self.shape)
        return HeadSample(normalised=normalised, logprobs=logprobs, trace=tokens)

    def score(self, logits: Tensor, trace: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
        """(logprobs [B, U], entropy [B, U]) of bins int64 [B, U]."""
        return score_tokens(logits, trace, sampling)

    def loss_noise(self, samples: int) -> dict[str, Tensor]:
        """No random numbers: the loss has none."""
        return {}

    def loss(self, logits: Tensor, normalised: Tensor, mask: Tensor) -> Tensor:
        """Negative log-likelihood of the bins nearest to `normalised`, nats per unit, over units of valid actions.

        Args:
            logits: [B, U, N].
            normalised: float32 [B, H, A].
            mask: bool [B, H], false after the end of the demonstration.
        """
        weights = mask.float().repeat_interleave(self.shape[1], dim=1)
        nearest = to_bins(normalised.flatten(1), self.bins)[..., None]
        return -(torch.log_softmax(logits, dim=-1).gather(-1, nearest)[..., 0] * weights).sum() / weights.sum()


def to_bins(normalised: Tensor, bins: int) -> Tensor:
    """int64 index of the nearest bin centre; values outside [-1, 1] are clipped."""
    return ((normalised.clamp(-1, 1) + 1) * ((bins - 1) / 2)).round().long()


def from_bins(tokens: Tensor, bins: int) -> Tensor:
    """float32 centre of each bin, in [-1, 1]."""
    return tokens.float() * (2 / (bins - 1)) - 1
