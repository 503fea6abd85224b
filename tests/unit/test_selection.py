import pytest

from simplevla.algorithm.selection import is_mixed


@pytest.mark.parametrize(("solved", "mixed"), [(0, False), (1, True), (4, True), (7, True), (8, False)])
def test_groups_of_eight(solved: int, mixed: bool) -> None:
    assert is_mixed([1.0] * solved + [0.0] * (8 - solved)) is mixed


def test_the_bounds_belong_to_the_filter() -> None:
    # 1 of 10 is exactly 0.1, 1 of 16 is 0.0625
    assert is_mixed([1.0] + [0.0] * 9)
    assert not is_mixed([1.0] + [0.0] * 15)
    assert is_mixed([1.0] * 9 + [0.0])
    assert not is_mixed([1.0] * 15 + [0.0])


def test_equal_rewards_never_train_whatever_the_filter() -> None:
    assert not is_mixed([1.0, 1.0], low=0.0, high=1.0)
    assert not is_mixed([0.0, 0.0], low=0.0, high=1.0)
