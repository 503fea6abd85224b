"""Dynamic sampling's criterion: which groups carry a learning signal."""

from collections.abc import Sequence


def is_mixed(rewards: Sequence[float], low: float = 0.1, high: float = 0.9) -> bool:
    """True if a group's mean success lies in [low, high] and its advantages aren't all zero.

    This is the filter of dynamic sampling in SimpleVLA-RL (arXiv 2509.09674), after DAPO (arXiv 2503.14476).

    >>> is_mixed([1, 0, 0, 0, 0, 0, 0, 0]), is_mixed([0] * 8), is_mixed([1] * 8)
    (True, False, False)
    """
    mean = sum(rewards) / len(rewards)
    return low <= mean <= high and min(rewards) != max(rewards)
