import numpy as np
import pytest

from simplevla.evaluation.statistics import hierarchical_bootstrap, mcnemar_exact, wilson


def test_wilson_at_99_percent_of_500_is_977_to_996():
    low, high = wilson(495, 500)
    assert round(100 * low, 1) == 97.7
    assert round(100 * high, 1) == 99.6


def test_wilson_of_one_in_two_by_hand():
    # n = 2, p = 1/2, z = 1.959964, z² = 3.841459: centre 0.5, half = z sqrt(1/8 + z²/16) / (1 + z²/2) = 0.405470
    low, high = wilson(1, 2)
    assert low == pytest.approx(0.5 - 0.405470, abs=1e-5)
    assert high == pytest.approx(0.5 + 0.405470, abs=1e-5)


def test_wilson_at_the_ends_touches_0_and_1_and_has_width():
    # p = 0: high = (z²/n) / (1 + z²/n) = 3.841459 / 13.841459
    assert wilson(0, 10) == (0.0, pytest.approx(0.277533, abs=1e-5))
    assert wilson(10, 10) == (pytest.approx(0.722467, abs=1e-5), 1.0)


def test_wilson_without_episodes_knows_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_refuses_more_solved_than_run():
    with pytest.raises(ValueError, match="solved is 6 of n = 5"):
        wilson(6, 5)


@pytest.mark.parametrize(("b", "c", "p"), [(0, 5, 2 / 32), (5, 0, 2 / 32), (1, 5, 14 / 64), (3, 3, 1.0), (0, 0, 1.0)])
def test_mcnemar_by_counting_coin_flips(b, c, p):
    # (1, 5): sequences of 6 flips with at most one head: 1 + 6 = 7 of 64, twice
    assert mcnemar_exact(b, c) == pytest.approx(p, abs=1e-12)


def test_bootstrap_of_one_seed_and_task_is_binomial():
    # 50 of 100: the 2.5 and 97.5 percentiles of Binomial(100, 1/2) are 40 and 60
    mean, low, high = hierarchical_bootstrap(np.array([[50]]), np.array([[100]]))
    assert mean == 0.5
    assert (low, high) == (pytest.approx(0.40, abs=0.011), pytest.approx(0.60, abs=0.011))


def test_bootstrap_keeps_the_spread_between_training_seeds():
    # Two seeds, one at 0 % and one at 100 %: drawing both from the same one has probability 1/4 each way, so [0, 1].
    # Pooled over 200 episodes the interval would be about 0.43 to 0.57.
    assert hierarchical_bootstrap(np.array([[0], [100]]), np.array([[100], [100]])) == (0.5, 0.0, 1.0)


def test_bootstrap_keeps_the_spread_between_tasks():
    assert hierarchical_bootstrap(np.array([[0, 100]]), np.array([[100, 100]])) == (0.5, 0.0, 1.0)


def test_bootstrap_keeps_the_tasks_of_a_training_seed_together():
    # Both draws are of the first seed with probability 1/4; task by task it would be 1/256, and the low end above 0.
    solved = np.array([[0] * 4, [100] * 4])
    assert hierarchical_bootstrap(solved, np.full((2, 4), 100)) == (0.5, 0.0, 1.0)


def test_bootstrap_weighs_tasks_alike_whatever_their_n():
    # 10 of 10 and 0 of 90: mean over tasks 0.5, not 10 / 100
    assert hierarchical_bootstrap(np.array([[10, 0]]), np.array([[10, 90]]))[0] == 0.5


def test_bootstrap_refuses_tasks_without_episodes():
    with pytest.raises(ValueError, match="n >= 1"):
        hierarchical_bootstrap(np.array([[1, 0]]), np.array([[2, 0]]))
