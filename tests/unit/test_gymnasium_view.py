"""A suite seen through Gymnasium: spaces, reward, ends, chunks."""

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="needs the extra 'gymnasium'")

from gymnasium.utils.env_checker import check_env

from fake_suite import HORIZON
from simplevla.config import SuiteConfig
from simplevla.suites.gymnasium_view import SuiteEnv

SUITE = SuiteConfig(name="fake_suite:make")
FORWARD, STAND = np.float32([1, 0]), np.float32([0, 0])


def test_gymnasiums_own_checker_accepts_it() -> None:
    check_env(SuiteEnv(SUITE), skip_render_check=True)


def test_success_terminates_with_reward_one() -> None:
    env = SuiteEnv(SUITE)
    # "reach" from state 1: the goal is at 0.45, so the second step of 0.25 solves it.
    seen, info = env.reset(options={"task": "reach", "initial_state": 1})
    assert info == {"instruction": "do reach", "initial_state": 1}
    assert env.instructions[seen["task"]] == "do reach"
    assert env.step(FORWARD)[1:4] == (0.0, False, False)
    assert env.step(FORWARD)[1:4] == (1.0, True, False)


def test_the_horizon_truncates() -> None:
    env = SuiteEnv(SUITE)
    env.reset(options={"task": "far", "initial_state": 0})
    ends = [env.step(STAND)[1:4] for _ in range(HORIZON)]
    assert ends == [(0.0, False, False)] * (HORIZON - 1) + [(0.0, False, True)]
    with pytest.raises(ValueError, match="ended at its horizon of 11 env steps; reset first"):
        env.step(STAND)


def test_a_chunk_ends_at_success_and_at_the_horizon() -> None:
    env = SuiteEnv(SUITE, chunk_length=4)
    assert env.action_space.shape == (4, 2)
    env.reset(options={"task": "reach", "initial_state": 1})
    seen, reward, terminated, truncated, info = env.step(np.tile(FORWARD, (4, 1)))
    assert (reward, terminated, truncated, info["executed"]) == (1.0, True, False, 2)
    assert seen["state"][2] == 2, "rendered at the reset and after the chunk only"
    env.reset(options={"task": "far", "initial_state": 0})
    steps = [env.step(np.tile(STAND, (4, 1))) for _ in range(3)]
    assert [(step[3], step[4]["executed"]) for step in steps] == [(False, 4), (False, 4), (True, 3)]


def test_states_are_drawn_from_the_split() -> None:
    for split, expected in (("train", {0, 1, 2, 3}), ("test", {4, 5})):
        env = SuiteEnv(SUITE, split=split)
        env.reset(seed=0)
        assert {env.reset()[1]["initial_state"] for _ in range(40)} == expected
