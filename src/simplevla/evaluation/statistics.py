"""Uncertainty of success rates: intervals, paired tests, averages over training seeds."""

import math

import numpy as np

from simplevla.errors import UserError


def wilson(solved: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a success rate, (low, high) as shares.

    `(p + z^2/2n ± z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)` with `p = solved / n` (Wilson, JASA 22, 1927). It
    stays inside [0, 1] and is useful at 0 % and 100 %, where `p ± z s` has no width. Without episodes nothing is known:
    (0, 1).

    >>> [round(100 * bound, 1) for bound in wilson(495, 500)]
    [97.7, 99.6]

    Raises:
        UserError: unless 0 <= solved <= n and 0 < confidence < 1.
    """
    if not 0 <= solved <= n:
        raise UserError(f"solved is {solved} of n = {n}; expected 0 <= solved <= n")
    if not 0 < confidence < 1:
        raise UserError(f"confidence is {confidence}; expected between 0 and 1, for example 0.95")
    if n == 0:
        return 0.0, 1.0
    # Imported late, also below: it takes a second, and most processes have no statistics to make.
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + confidence / 2))
    p = solved / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At p = 0 and p = 1 the bound is exact on paper; rounding must not push it past the rate itself.
    low = 0.0 if solved == 0 else (centre - half) / scale
    high = 1.0 if solved == n else (centre + half) / scale
    return low, high


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided p-value that two policies are equally good, from the pairs on which they disagree.

    Under that hypothesis each of the b + c discordant pairs falls either way with probability 1/2, so b is
    Binomial(b + c, 1/2) (McNemar 1947, exact form). No discordant pair: 1.

    Args:
        b: pairs that only the first policy solved.
        c: pairs that only the second policy solved.

    >>> mcnemar_exact(0, 5)
    0.0625
    """
    if b < 0 or c < 0:
        raise UserError(f"discordant pairs are b = {b}, c = {c}; expected 0 or more")
    if b + c == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(b, b + c, 0.5).pvalue)


def mean_interval(
    values: np.ndarray, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval (low, high) of the mean of `values` [n], n at least 1."""
    rng, n = np.random.default_rng(seed), len(values)
    # One draw at a time: all at once take 16 bytes for each of draws x n.
    means = [values[rng.integers(n, size=n)].mean() for _ in range(draws)]
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def hierarchical_bootstrap(
    solved_ST: np.ndarray, n_ST: np.ndarray, confidence: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """The suite average over several training seeds: (mean, low, high) as shares.

    Seeds are drawn with replacement, then tasks within each seed, then episodes within each task; the statistic is the
    mean over seeds of the mean over tasks of the success rate, the interval its percentiles. Pooling all episodes
    instead would hide the spread between training seeds.

    Args:
        solved_ST: int [training seeds, tasks], episodes solved.
        n_ST: int, same shape, episodes run, at least 1 each.
    """
    solved, n = np.asarray(solved_ST), np.asarray(n_ST)
    if solved.ndim != 2 or solved.shape != n.shape or solved.size == 0:
        raise UserError(
            f"solved has shape {solved.shape}, n {n.shape}; expected the same [training seeds, tasks], not empty"
        )
    if (n < 1).any() or (solved < 0).any() or (solved > n).any():
        raise UserError("expected 0 <= solved <= n and n >= 1 for every training seed and task")
    seeds, tasks = solved.shape
    rng = np.random.default_rng(seed)
    s = rng.integers(seeds, size=(draws, seeds, 1))
    t = rng.integers(tasks, size=(draws, seeds, tasks))
    # Drawing n episodes with replacement out of n, of which k were solved, is Binomial(n, k / n).
    rates = rng.binomial(n[s, t], solved[s, t] / n[s, t]) / n[s, t]
    low, high = np.quantile(rates.mean(axis=(1, 2)), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float((solved / n).mean()), float(low), float(high)
