"""TorchRL's toy environment behind the Gymnasium adapter."""

import numpy as np
import pytest

pytest.importorskip("torchrl")

from benchmarks.support.toy_vla import TASK, make
from simplevla.config import SuiteConfig
from simplevla.suites.checker import check_suite


def test_the_checker_finds_nothing() -> None:
    assert check_suite(make(SuiteConfig()), 1) == []


def test_two_actions_at_the_target_solve_it() -> None:
    environment = make(SuiteConfig()).make_environment()
    target = environment.reset(TASK, 7).state[2:]
    far = np.where(target > 0, -1.0, 1.0)
    result = environment.step_chunk(np.array([target, far, target, target]))
    assert (result.executed, result.success) == (4, True)
    assert np.array_equal(environment.reset(TASK, 7).state, [0, 0, *target])
    assert not environment.step_chunk(np.array([target, far, target, far])).success
