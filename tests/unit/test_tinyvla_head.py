import math

import numpy as np
import pytest
import torch

from simplevla.policies.categorical import draw
from simplevla.policies.tinyvla.head import TokenHead, from_bins, to_bins


class Fixed:
    """A generator that gives the numbers it was made with."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = list(numbers)

    def random(self, size: int) -> np.ndarray:
        return np.array([self.numbers.pop(0) for _ in range(size)])


def test_bins_are_centred_evenly_with_both_ends_included() -> None:
    # 5 bins: -1, -0.5, 0, 0.5, 1.
    assert to_bins(torch.tensor([-1.0, -0.76, -0.74, 0.2, 0.3, 1.0, 7.0, -7.0]), 5).tolist() == [0, 0, 1, 2, 3, 4, 4, 0]
    assert from_bins(torch.arange(5), 5).tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert from_bins(torch.tensor([0, 255]), 256).tolist() == [-1.0, 1.0]


def test_every_one_of_256_bins_survives_the_round_trip() -> None:
    tokens = torch.arange(256)
    assert torch.equal(to_bins(from_bins(tokens, 256), 256), tokens)


def test_draw_inverts_the_cumulative_distribution() -> None:
    # Probabilities 0.1, 0.2, 0.3, 0.4 -> cumulative 0.1, 0.3, 0.6, 1.
    logprobs = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(2, 4, 4)
    tokens = draw(logprobs, [Fixed(0.0, 0.09, 0.11, 0.29), Fixed(0.31, 0.59, 0.61, 0.9999999)])  # type: ignore[list-item]
    assert tokens.tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]


def test_draw_never_gives_a_bin_of_probability_zero() -> None:
    logprobs = torch.tensor([-math.inf, 0.0, -math.inf]).expand(1, 2, 3)
    assert draw(logprobs, [Fixed(0.0, 0.99999999999)]).tolist() == [[1, 1]]  # type: ignore[list-item]


def test_draw_has_the_frequencies_of_the_distribution() -> None:
    probabilities = torch.tensor([0.05, 0.15, 0.3, 0.5])
    tokens = draw(probabilities.log().expand(1, 40_000, 4), [np.random.default_rng(0)])
    frequencies = torch.bincount(tokens[0], minlength=4) / 40_000
    # Four standard errors of the rarest sum: 4 sqrt(0.25 / 40000) = 0.01.
    torch.testing.assert_close(frequencies, probabilities, atol=0.01, rtol=0)


def test_the_units_share_the_map_and_have_their_own_bias() -> None:
    head = TokenHead(width=4, chunk_length=2, action_dim=1, bins=3)
    features = torch.randn(1, 1, 4).expand(1, 2, 4)
    with torch.no_grad():
        head.unit_bias[1] = torch.tensor([1.0, 2.0, 3.0])
    difference = (head(features)[0, 1] - head(features)[0, 0]).tolist()
    assert difference == pytest.approx([1.0, 2.0, 3.0], abs=1e-6)
