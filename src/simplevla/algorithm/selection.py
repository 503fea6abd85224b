"""Dynamic sampling's criterion: which groups carry a learning signal."""

from collections.abc import Sequence


def is_mixed(rewards: Sequence[float], low: float = 0.1, high: float = 0.9) -> bool:
    """Whether a group's mean success lies in [low, high], so that its advantages aren't all zero (SPEC 1.3).

    >>> is_mixed([1, 0, 0, 0, 0, 0, 0, 0]), is_mixed([0] * 8), is_mixed([1] * 8)
    (True, False, False)
    """
    mean = sum(rewards) / len(rewards)
    return low <= mean <= high and min(rewards) != max(rewards)
