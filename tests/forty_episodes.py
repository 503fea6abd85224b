"""The same forty episodes of the fake suite on any engine, for tests that compare engines."""

from collections.abc import Callable

from simplevla.config import SuiteConfig
from simplevla.policies.base import Policy, Sampling
from simplevla.rollout.scheduler import Engine
from simplevla.suites.registry import make_suite
from simplevla.types import Episode, EpisodeRequest


def rolled_out(
    engine: Engine, policy: Policy, suite: SuiteConfig, at: Callable[[int], None] = lambda n: None
) -> dict[int, Episode]:
    """By number; `at` is told how many are back."""
    task = make_suite(suite).tasks[0]
    requests = [EpisodeRequest(task=task, initial_state=n % 8, seed=(7, n), group=n) for n in range(40)]
    queue, found = iter(requests), []

    def sink(episode: Episode) -> None:
        found.append(episode)
        at(len(found))

    engine.run(policy, Sampling(), lambda: next(queue, None), sink)
    assert len(found) == len(requests)
    return {episode.request.group: episode for episode in found}
