"""Categorical units of a token head: sampling, and the log-probabilities of what was sampled.

B batch, U units, N bins. The temperature T that samples also scores: logprob = log_softmax(logits / T).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from simplevla.policies.base import Sampling


def sample_tokens(
    logits: Tensor, sampling: Sampling, generators: Sequence[np.random.Generator]
) -> tuple[Tensor, Tensor]:
    """(tokens int64 [B, U], their logprobs [B, U]) from logits [B, U, N]; the likeliest if greedy."""
    logprobs = torch.log_softmax(logits / sampling.temperature, dim=-1)
    tokens = logprobs.argmax(dim=-1) if sampling.greedy else draw(logprobs, generators)
    return tokens, logprobs.gather(-1, tokens[..., None])[..., 0]


def score_tokens(logits: Tensor, tokens: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """(logprobs [B, U], entropy [B, U]) of tokens int64 [B, U] under logits [B, U, N]."""
    logprobs = torch.log_softmax(logits / sampling.temperature, dim=-1)
    return logprobs.gather(-1, tokens[..., None])[..., 0], -(logprobs.exp() * logprobs).sum(dim=-1)


def draw(logprobs: Tensor, generators: Sequence[np.random.Generator]) -> Tensor:
    """int64 [B, U] bins drawn by inverting the cumulative distribution of log-probabilities [B, U, N].

    Each row takes U uniforms from its own generator, so what is drawn doesn't depend on who else is in the batch.
    """
    assert len(generators) == len(logprobs), "one generator per row"
    uniform = torch.from_numpy(np.stack([generator.random(logprobs.shape[1]) for generator in generators]))
    cumulative = logprobs.float().exp().cumsum(dim=-1, dtype=torch.float64)
    threshold = uniform.to(logprobs.device)[..., None] * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[..., 0].clamp_(max=logprobs.shape[-1] - 1)
