"""Extremes that take the other values' room, told from what robots do; and the quantiles as bounds."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from simplevla.demonstrations.bounds import bounded_statistics
from simplevla.demonstrations.rows import Rows
from simplevla.policies.normalization import measure

EPISODES, LENGTH = 40, 50
FOLDER = Path("demos")


def rows(actions: np.ndarray, state: np.ndarray | None = None) -> Rows:
    frames = len(actions)
    return Rows(
        state=np.random.default_rng(1).normal(size=(frames, 1)).astype(np.float32) if state is None else state,
        actions=actions.astype(np.float32),
        episode_index=np.arange(frames) // LENGTH,
        task_index=np.zeros(frames, np.int64),
        places={},
    )


def ordinary() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (EPISODES * LENGTH, 2))


@pytest.mark.parametrize("factor", [10.0, 100.0, -100.0])
@pytest.mark.parametrize("frames", [219, 60, EPISODES * LENGTH])
def test_one_extreme_action_is_refused_and_named(frames: int, factor: float) -> None:
    actions = ordinary()[:frames]
    actions[57, 1] = factor
    with pytest.raises(
        ValueError, match=rf"action dimension 1 is {factor:.4g} at frame 57 of episode 1; 98 % .* --bounds"
    ):
        bounded_statistics(FOLDER, rows(actions), "min_max")


def test_an_extreme_that_leaves_three_bins_says_so() -> None:
    actions = ordinary()
    actions[:, 0] /= 2
    actions[3, 0], actions[4, 0] = 50, -50
    with pytest.raises(
        ValueError, match=r"would share 3 of a token head's 256 bins; such extremes are in 2 of 2000 frames, 1 of 40"
    ):
        bounded_statistics(FOLDER, rows(actions), "min_max")


@pytest.mark.parametrize("frames", [60, 219, EPISODES * LENGTH])
def test_quantile_bounds_leave_the_bins_to_the_others(frames: int) -> None:
    actions, state = ordinary()[:frames], np.linspace(-1, 1, frames, dtype=np.float32)[:, None]
    actions[57, 1], state[58, 0] = 100.0, 100.0
    bounded = bounded_statistics(FOLDER, rows(actions, state), "quantile")
    assert -1 < bounded.action["min"][1] < -0.85
    assert 0.85 < bounded.action["max"][1] <= 1
    # A uniform distribution's std is half its width over the square root of 3.
    assert bounded.state["std"][0] == pytest.approx(3**-0.5, abs=0.03)
    if frames > 100:
        quantiles = np.quantile(actions[:, 1].astype(np.float32).astype(np.float64), (0.01, 0.99))
        assert [bounded.action["min"][1], bounded.action["max"][1]] == quantiles.tolist()


def test_an_extreme_state_is_refused() -> None:
    state = np.random.default_rng(2).uniform(-1, 1, (EPISODES * LENGTH, 3)).astype(np.float32)
    state[777, 2] = 1000
    with pytest.raises(
        ValueError, match=r"state dimension 2 is 1000 at frame 777 of episode 15; .* remove the episode"
    ):
        bounded_statistics(FOLDER, rows(ordinary(), state), "min_max")


def dimensions() -> dict[str, np.ndarray]:
    """Columns of actions that are as they should be."""
    rng = np.random.default_rng(3)
    frames = EPISODES * LENGTH
    still, switch, button = np.zeros(frames), -np.ones(frames), np.zeros(frames)
    closes = rng.normal(0, 1e-3, frames)
    closes[::LENGTH] = 0.1
    # 5 frames in each of 3 episodes: one task of many turns the wrist.
    for episode in (4, 14, 24):
        still[episode * LENGTH : episode * LENGTH + 5] = rng.uniform(-0.5, 0.5, 5)
    switch[30] = 1.0
    button[LENGTH - 1 :: LENGTH] = 1.0
    return {
        "constant": np.full(frames, 0.3),
        "gripper": np.where(rng.random(frames) < 0.3, 1.0, -1.0),
        "gripper that closes once": switch,
        "end of the episode": button,
        "gripper that is open at the start": closes,
        "hardly ever turned": still,
        "normal": rng.normal(size=frames),
        "long tails": rng.laplace(size=frames),
        "few levels": rng.integers(-3, 4, frames) / 3,
        "nearly two values": np.where(rng.random(frames) < 0.3, 1.0, -1.0) + rng.normal(0, 1e-3, frames),
        "nine of ten rest": np.where(rng.random(frames) < 0.9, 0.0, rng.uniform(-1, 1, frames)),
    }


@pytest.mark.parametrize("name", dimensions())
def test_what_robots_do_is_no_extreme(name: str, recwarn: pytest.WarningsRecorder) -> None:
    actions = dimensions()[name][:, None]
    given = rows(actions, actions.astype(np.float32))
    bounded = bounded_statistics(FOLDER, given, "min_max")
    assert bounded.action == bounded.state == measure(given.actions)
    assert not recwarn.list


@pytest.mark.parametrize(
    "name", ["constant", "gripper", "gripper that closes once", "end of the episode", "hardly ever turned"]
)
def test_quantile_bounds_keep_what_a_switch_can_do(name: str) -> None:
    given = rows(dimensions()[name][:, None])
    assert bounded_statistics(FOLDER, given, "quantile").action == measure(given.actions)


def test_extremes_in_many_episodes_are_warned_of() -> None:
    actions = ordinary()
    actions[LENGTH // 2 :: 4 * LENGTH, 1] = 100.0
    with pytest.warns(UserWarning, match=r"action dimension 1 is 100 .* in 10 of 2000 frames, 10 of 40 episodes"):
        bounded = bounded_statistics(FOLDER, rows(actions), "min_max")
    assert bounded.action["max"][1] == 100.0


@pytest.mark.parametrize("bounds", ["min_max", "quantile"])
def test_extremes_in_more_than_a_hundredth_of_the_frames_are_warned_of(bounds: Literal["min_max", "quantile"]) -> None:
    actions = ordinary()[: 10 * LENGTH]
    state = np.random.default_rng(2).uniform(-1, 1, (10 * LENGTH, 1)).astype(np.float32)
    far = [episode * LENGTH + frame for episode in (1, 4, 7, 8) for frame in (20, 30, 31)]
    actions[far, 1] = state[far, 0] = 100.0
    with pytest.warns(UserWarning, match="the others lie between") as caught:
        bounded_statistics(FOLDER, rows(actions, state), bounds)
    messages = [str(warning.message) for warning in caught]
    assert [message.split(" dimension ")[0] for message in messages] == ["demos: state", "demos: action"]
    for message in messages:
        assert "is 100 at frame 70 of episode 1" in message
        assert "such extremes are in 12 of 500 frames, 4 of 10 episodes. Have they the same units?" in message


@pytest.mark.parametrize("episodes", [5, 10])
def test_an_episode_in_degrees_among_others_in_radians_is_warned_of(episodes: int) -> None:
    actions = ordinary()[: episodes * LENGTH]
    actions[3 * LENGTH : 4 * LENGTH] *= 180 / np.pi
    with pytest.warns(UserWarning, match="same units") as caught:
        bounded_statistics(FOLDER, rows(actions), "min_max")
    assert len(caught) == 2
    assert f" frames, 1 of {episodes} episodes" in str(caught[0].message)
    assert "of episode 3; the others lie between -" in str(caught[0].message)


def test_of_a_policy_without_bounds_an_extreme_is_refused_and_nothing_cuts_it_off() -> None:
    actions = ordinary()
    actions[57, 1] = 1000.0
    with pytest.raises(ValueError, match=r"would hardly differ once they are divided .*: remove the episode$"):
        bounded_statistics(FOLDER, rows(actions), None)
