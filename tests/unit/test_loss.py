import math

import pytest
import torch
from torch import Tensor

from simplevla.algorithm.loss import clipped_policy_loss, unit_weights


def loss_of(ratio: float, advantage: float) -> tuple[float, float]:
    """Loss of one unit, and its derivative with respect to the log-probability."""
    logprob = torch.tensor([[-1.0 + math.log(ratio)]], requires_grad=True)
    result = clipped_policy_loss(
        logprob, torch.tensor([[-1.0]]), torch.tensor([advantage]), torch.ones(1, 1), clip_low=0.2, clip_high=0.28
    )
    (gradient,) = torch.autograd.grad(result.loss, logprob)
    return result.loss.item(), gradient.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.25, 2.0, -2.5, -2.5),  # inside the clip on the high side, outside of a symmetric 0.2
        (1.5, 2.0, -2.56, 0.0),  # clipped at 1.28
        (0.7, 2.0, -1.4, -1.4),  # a good action that became rarer is never clipped
        (0.7, -2.0, 1.6, 0.0),  # clipped at 0.8
        (0.9, -2.0, 1.8, 1.8),
        (1.5, -2.0, 3.0, 3.0),  # a bad action that became more frequent is never clipped
    ],
)
def test_clip_on_both_signs(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    assert loss_of(ratio, advantage) == pytest.approx((loss, gradient), abs=1e-5)


def two_episodes() -> tuple[Tensor, Tensor]:
    """Decisions 0 and 1 are episode 0 with 3 + 1 valid units; decision 2 is episode 1 with 2."""
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    return mask, torch.tensor([0, 0, 1])


def test_weights_per_episode_then_over_episodes() -> None:
    mask, episode = two_episodes()
    weights = unit_weights(mask, episode, 2, "episode")
    expected = [[1 / 8, 1 / 8, 1 / 8], [1 / 8, 0, 0], [1 / 4, 1 / 4, 0]]
    torch.testing.assert_close(weights, torch.tensor(expected), atol=1e-7, rtol=0)


def test_weights_over_all_units() -> None:
    mask, episode = two_episodes()
    weights = unit_weights(mask, episode, 2, "unit")
    torch.testing.assert_close(weights, mask / 6, atol=1e-7, rtol=0)


def test_aggregations_differ_in_the_loss() -> None:
    mask, episode = two_episodes()
    old = torch.zeros(3, 3)
    advantages = torch.tensor([1.0, 1.0, -1.0])
    # at ratio 1: episode-wise -(1/2) + 1/2 = 0; unit-wise (-4 + 2) / 6 = -1/3
    for aggregation, expected in (("episode", 0.0), ("unit", -1 / 3)):
        weights = unit_weights(mask, episode, 2, aggregation)
        assert clipped_policy_loss(old, old, advantages, weights, 0.2, 0.28).loss.item() == pytest.approx(
            expected, abs=1e-6
        )


def test_unknown_aggregation() -> None:
    with pytest.raises(ValueError, match="'token'; expected 'episode' or 'unit'"):
        unit_weights(*two_episodes(), 2, "token")


def test_masked_units_count_for_nothing() -> None:
    mask = torch.tensor([[True, False]])
    weights = unit_weights(mask, torch.tensor([0]), 1)
    logprobs = torch.tensor([[-1.0, 50.0]], requires_grad=True)
    result = clipped_policy_loss(logprobs, torch.tensor([[-1.0, -50.0]]), torch.tensor([1.0]), weights, 0.2, 0.28)
    (gradient,) = torch.autograd.grad(result.loss, logprobs)
    assert result.loss.item() == -1.0
    assert gradient.tolist() == [[-1.0, 0.0]]
    assert result.stats["ratio_mean"] == 1.0
    assert result.stats["ratio_outside"] == 0.0


def test_statistics_by_hand() -> None:
    ratios = torch.tensor([[1.5, 0.7, 1.0, 1.5]])
    weights = torch.full((1, 4), 0.25)
    positive = clipped_policy_loss(ratios.log(), torch.zeros(1, 4), torch.tensor([1.0]), weights, 0.2, 0.28).stats
    negative = clipped_policy_loss(ratios.log(), torch.zeros(1, 4), torch.tensor([-1.0]), weights, 0.2, 0.28).stats
    assert positive["ratio_mean"] == pytest.approx(1.175, abs=1e-6)
    assert positive["ratio_outside"] == pytest.approx(0.75)
    assert (positive["clipfrac_high"], positive["clipfrac_low"]) == pytest.approx((0.5, 0.0))
    assert (negative["clipfrac_high"], negative["clipfrac_low"]) == pytest.approx((0.0, 0.25))
    # r - 1 - log r: 0.094535 for 1.5, 0.056675 for 0.7, 0 for 1
    assert positive["approx_kl"] == pytest.approx((2 * 0.094535 + 0.056675) / 4, abs=1e-5)
    assert positive["abs_log_ratio"] == pytest.approx((2 * 0.405465 + 0.356675) / 4, abs=1e-5)


def test_units_may_have_their_own_share_of_the_advantage_and_of_the_clip_range() -> None:
    # Both ratios are 1.15. The first unit's range is 0.1 above: clipped at 1.1, times half an advantage of 2: -1.1 * 1.
    # The second one's is 0.2: not clipped, -1.15 * 2. Weights of one half: -(1.1 + 2.3) / 2 = -1.7.
    logprobs = torch.full((1, 2), math.log(1.15), requires_grad=True)
    result = clipped_policy_loss(
        logprobs,
        torch.zeros(1, 2),
        torch.tensor([2.0]),
        torch.full((1, 2), 0.5),
        clip_low=torch.tensor([0.1, 0.2]),
        clip_high=torch.tensor([0.1, 0.2]),
        discount_U=torch.tensor([0.5, 1.0]),
    )
    (gradient,) = torch.autograd.grad(result.loss, logprobs)
    assert result.loss.item() == pytest.approx(-1.7, abs=1e-6)
    assert gradient.tolist()[0] == pytest.approx([0.0, -1.15], abs=1e-6)
    assert result.stats["clipfrac_high"] == pytest.approx(0.5)
