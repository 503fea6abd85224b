"""Fake suites that look right and aren't, in a file without torch, since worker processes import it."""

import itertools
import os
from dataclasses import replace

import numpy as np

from fake_suite import FakeEnvironment, FakeSuite
from simplevla.config import SuiteConfig
from simplevla.suites.base import SuiteSpec
from simplevla.types import Observation, Task

RESETS = itertools.count()


class ElsewhereInEachProcess(FakeSuite):
    """A spec whose cameras come in another order in a worker, as those of a set may."""

    @property
    def spec(self) -> SuiteSpec:  # type: ignore[override]
        cameras = FakeSuite.spec.cameras
        order = cameras if os.environ.get("UNSOUND_PARENT") == str(os.getpid()) else reversed(cameras)
        return replace(FakeSuite.spec, cameras={name: cameras[name] for name in order})


class Drifting(FakeSuite):
    """Each reset puts the goal a little farther away."""

    def make_environment(self) -> FakeEnvironment:
        class Environment(FakeEnvironment):
            def reset(self, task: Task, initial_state: int) -> Observation:
                super().reset(task, initial_state)
                self.goal += np.float32(0.02 * (next(RESETS) % 5))
                self.renders = 0
                return self.observe()

        return Environment()


def make_elsewhere(config: SuiteConfig) -> FakeSuite:
    return ElsewhereInEachProcess(("reach",))


def make_drifting(config: SuiteConfig) -> FakeSuite:
    return Drifting(("reach",))
