"""Replay of an episode's recorded actions, one env step at a time. Imports no torch, so that workers start fast."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from simplevla.config import RolloutConfig, SuiteConfig
from simplevla.errors import UserError
from simplevla.rollout.crew import Crew, Loss, cores, last_lines
from simplevla.rollout.workers import Run, Worker, check_observation, check_result
from simplevla.suites.base import Environment, Suite, order_of
from simplevla.types import Task


@dataclass(frozen=True, kw_only=True)
class Track:
    """One episode, by env step."""

    states: np.ndarray
    """float32 [T, S], before each of T env steps, as a dataset has them."""
    events: str | None
    """The order in which it was solved (`order_of`); None where the suite tells no events."""
    success: bool
    pictures: tuple[np.ndarray, ...] = ()
    """uint8 [height, width, 3] before the first and after each env step, if they were wanted."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The actions of an episode from its initial state; a worker's `Job`."""

    task: Task
    initial_state: int
    actions: np.ndarray
    """float32 [T, A]."""
    film: bool = False

    def run(self, suite: Suite, environment: Environment, beat: Callable[[], None]) -> Track:
        """Executes the actions and looks at each state that they lead to."""
        environment.watch()
        observation = environment.reset(self.task, self.initial_state)
        states, success = [observation.state.copy()], False
        events: list[tuple[str, ...] | None] = []
        pictures = [environment.render().copy()] if self.film else []
        for action in self.actions:
            beat()
            result = environment.step_chunk(action[None].copy())
            check_result(result, 1)
            check_observation(result.observation, suite.spec)
            success = bool(result.success)
            states.append(result.observation.state.copy())
            events.append(environment.events())
            if self.film:
                pictures.append(environment.render().copy())
            if success or result.failed:
                break
        return Track(
            states=np.stack(states[:-1]),
            events=order_of(events),
            success=success,
            pictures=tuple(pictures),
        )


def replayed(
    config: SuiteConfig, suite: Suite, rollout: RolloutConfig, jobs: Sequence[Replay]
) -> Iterator[tuple[int, Track]]:
    """(number of the job, its track), as they come, from `rollout.workers` processes.

    Raises:
        UserError: an environment broke at the same episode `rollout.max_attempts` times, or the suite is a robot.
    """
    if suite.real_world:
        raise UserError(f"suite {suite.name!r} is a robot; episodes are replayed in a simulator only")
    waiting, attempts = list(range(len(jobs)))[::-1], [0] * len(jobs)
    running: dict[Worker, int] = {}
    workers = min(rollout.workers or cores(), max(1, len(jobs)))
    crew = Crew(partial(Worker, config, suite.spec, 1, 1), workers, suite.name, rollout.chunk_timeout_s)

    def occupy(workers: Sequence[Worker]) -> None:
        for worker in workers:
            if waiting and worker not in running:
                number = running[worker] = waiting.pop()
                job = jobs[number]
                worker.send(Run(0, job.task.name, job.initial_state, job))
                worker.flush()

    try:
        while waiting or running:
            occupy(crew.workers)
            for worker, event in crew.receive():
                number = running.pop(worker, None)
                if number is None:
                    continue
                if isinstance(event, Loss) or event.kind == "env_error":
                    attempts[number] += 1
                    if attempts[number] == rollout.max_attempts:
                        raise UserError(
                            f"the environment broke {attempts[number]} times where it replayed task {jobs[number].task.name!r}, "
                            f"initial state {jobs[number].initial_state}: {last_lines(event.text, 1)}"
                        )
                    waiting.append(number)
                else:
                    yield number, event.outcome
                occupy([worker])
    finally:
        crew.close()
