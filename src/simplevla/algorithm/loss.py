"""The clipped policy-gradient loss, per sampled unit. D decisions (packed over episodes), U units each."""

from dataclasses import dataclass

import torch
from torch import Tensor

from simplevla.errors import UserError


def unit_weights(mask_DU: Tensor, episode_D: Tensor, episodes: int, aggregation: str = "episode") -> Tensor:
    """The weight of each unit in the mini-batch loss, float32 [D, U]; zero where masked; the sum is 1.

    `"episode"` is the mean over an episode's valid units, then over the mini-batch's episodes: 1 / (|a_i| E)
    (SimpleVLA-RL's code). `"unit"` is DAPO's mean over all valid units: 1 / sum |a_i|.

    Args:
        mask_DU: bool [D, U], true for units of executed actions.
        episode_D: int64 [D], the episode (0 .. episodes - 1) each decision belongs to.
        episodes: number of episodes E in the mini-batch.
    """
    valid = mask_DU.float()
    if aggregation == "unit":
        return valid / valid.sum()
    if aggregation != "episode":
        raise UserError(f"loss aggregation {aggregation!r}; expected 'episode' or 'unit'")
    per_episode = torch.zeros(episodes, device=valid.device).index_add_(0, episode_D, valid.sum(dim=1))
    return valid / (per_episode[episode_D] * episodes)[:, None]


@dataclass(frozen=True)
class PolicyLoss:
    """The loss and the sums that its metrics are made of (docs/metrics.md)."""

    loss: Tensor
    """Scalar, differentiable: the weighted sum over the units given."""
    stats: dict[str, float]
    """Weighted sums over the same units, so that micro-batches add up; the weights of a mini-batch sum to 1."""


def clipped_policy_loss(
    logprobs_DU: Tensor,
    old_logprobs_DU: Tensor,
    advantages_D: Tensor,
    weights_DU: Tensor,
    clip_low: Tensor | float,
    clip_high: Tensor | float,
    discount_U: Tensor | float = 1.0,
) -> PolicyLoss:
    """`sum w max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))` with `r = exp(logprob - old_logprob)`.

    PPO's clipped loss (arXiv 1707.06347) with DAPO's higher upper clip (arXiv 2503.14476), as in arXiv 2509.09674.

    Args:
        logprobs_DU: of the policy that is trained, with gradients.
        old_logprobs_DU: of the policy that sampled.
        advantages_D: one per decision: its episode's.
        weights_DU: from `unit_weights`; masked units have weight 0.
        clip_low: one for all units, or [U].
        clip_high: likewise.
        discount_U: factor of the advantage per unit (denoising steps, as in DPPO, arXiv 2409.00588).
    """
    log_ratio = torch.where(weights_DU > 0, logprobs_DU - old_logprobs_DU, 0.0)
    ratio = log_ratio.exp()
    advantages = advantages_D[:, None] * discount_U
    unclipped = -advantages * ratio
    low, high = (torch.as_tensor(bound, device=ratio.device) for bound in (1 - clip_low, 1 + clip_high))
    clipped = -advantages * ratio.clamp(low, high)
    loss = (weights_DU * torch.maximum(unclipped, clipped)).sum()
    with torch.no_grad():
        binds_low = (ratio < low) & (advantages < 0)
        binds_high = (ratio > high) & (advantages > 0)
        outside = (ratio < low) | (ratio > high)
        stats = {
            "ratio_mean": ratio,
            "ratio_outside": outside.float(),
            "clipfrac_low": binds_low.float(),
            "clipfrac_high": binds_high.float(),
            "approx_kl": ratio - 1 - log_ratio,
            "abs_log_ratio": log_ratio.abs(),
        }
        sums = {name: float((weights_DU * value).sum()) for name, value in stats.items()}
    return PolicyLoss(loss, sums)
