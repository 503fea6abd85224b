"""An episode that the environment ends unsolved before the horizon."""

from typing import Any

import numpy as np
import pytest

from fake_suite import FakeEnvironment, FakeSuite
from simplevla.config import DemosConfig, SuiteConfig
from simplevla.demonstrations.expert import Attempt
from simplevla.novelty.replay import Replay
from simplevla.types import ChunkResult


class Fails(FakeEnvironment):
    """Fails in its first env step, and would be solved later."""

    def reset(self, *arguments: Any) -> Any:
        self.steps = 0
        return super().reset(*arguments)

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        self.steps += 1
        result = super().step_chunk(actions)
        result.failed = self.steps == 1
        return result


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> FakeSuite:
    suite = FakeSuite(("reach",))
    monkeypatch.setattr(suite, "make_environment", Fails)
    return suite


def test_it_is_no_demonstration(suite: FakeSuite) -> None:
    config = DemosConfig(suite=SuiteConfig(name="fake_suite:make", tasks=("reach",)))
    attempt = Attempt(config=config, episode=0, number=0, task=suite.tasks[0], initial_state=0)
    environment = suite.make_environment()
    assert attempt.run(suite, environment, lambda: None) is None
    assert environment.steps == 1  # type: ignore[attr-defined]


def test_a_replay_ends_with_it(suite: FakeSuite) -> None:
    replay = Replay(task=suite.tasks[0], initial_state=0, actions=np.full((6, 2), 0.1, np.float32))
    track = replay.run(suite, suite.make_environment(), lambda: None)
    assert len(track.states) == 1
    assert not track.success
