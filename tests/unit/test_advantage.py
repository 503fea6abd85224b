import pytest
import torch

from simplevla.algorithm.advantage import group_relative_advantages


def test_one_success_of_eight() -> None:
    # mean 1/8; variance (49 + 7) / 64 / 7 = 1/8, so that 0.875 / sqrt(1/8) = 2.4749 and -0.125 / sqrt(1/8) = -0.3536
    advantages = group_relative_advantages(torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 0]]))
    assert advantages[0, 0].item() == pytest.approx(2.474867, abs=2e-5)
    assert advantages[0, 1:].tolist() == pytest.approx([-0.353552] * 7, abs=2e-5)


def test_std_divides_by_n_minus_one() -> None:
    # two siblings: std is sqrt(1/2), not 1/2; so the advantages are +-0.7071 and not +-1
    assert group_relative_advantages(torch.tensor([[1.0, 0.0]]))[0].tolist() == pytest.approx(
        [0.70711, -0.70711], abs=1e-5
    )


def test_groups_do_not_see_one_another() -> None:
    both = group_relative_advantages(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]))
    # second group: mean 3/4, variance 4 * 3/16 / 3 = 1/4
    assert both[0].tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)
    assert both[1].tolist() == pytest.approx([0.5, 0.5, 0.5, -1.5], abs=1e-5)


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_equal_rewards_carry_no_signal(reward: float) -> None:
    assert group_relative_advantages(torch.full((2, 8), reward)).tolist() == [[0.0] * 8] * 2


def test_a_lone_episode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 1\).*at least 2 siblings"):
        group_relative_advantages(torch.zeros(4, 1))
