"""The example suite of docs/add_a_suite.md with the real simulator."""

import sys
from pathlib import Path

import numpy as np
import pytest

from simplevla.config import SuiteConfig
from simplevla.suites.checker import check_suite
from simplevla.suites.registry import make_suite

pytest.importorskip("gymnasium_robotics", reason="the example needs: pip install gymnasium-robotics==1.4.2")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples"), *sys.path])
    return make_suite(SuiteConfig(name="fetch_suite:make", image_size=64))


def test_the_checker_finds_nothing(suite):
    assert check_suite(suite) == []


def test_the_checker_finds_seeds_that_start_solved(suite):
    suite.tasks = (suite.task("push"),)
    suite._skip = {}
    problems = check_suite(suite, states_per_task=11)
    assert problems == [
        "task 'push': expected an unsolved task after reset and one action of zeros, "
        "got success from 1 of 22 initial states: 10"
    ]


def test_the_expert_solves_both_tasks(suite):
    environment = suite.make_environment()
    expert = suite.make_expert(environment)
    for task in suite.tasks:
        for state in suite.initial_states(task, "test")[:3]:
            environment.reset(task, state)
            expert.reset()
            solved = any(environment.step_chunk(expert.action()[None]).success for _ in range(task.horizon))
            assert solved, (task.name, state)
    environment.close()


def test_only_the_image_says_where_the_goal_is(suite):
    environment = suite.make_environment()
    task = suite.task("reach")
    first, second = (environment.reset(task, state) for state in (0, 1))
    environment.close()
    assert np.array_equal(first.state, second.state)
    assert not np.array_equal(first.images["fixed"], second.images["fixed"])
