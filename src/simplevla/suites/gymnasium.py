"""Any Gymnasium environment whose `info` has a success flag, as a suite; docs/add_a_suite.md has an example."""

import importlib.metadata
import itertools
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from simplevla.errors import UserError
from simplevla.suites.base import Environment, Expert, Suite, SuiteSpec
from simplevla.types import SPLITS, ChunkResult, Observation, Split, Task

if TYPE_CHECKING:
    import gymnasium

MakeEnv = Callable[[Task], "gymnasium.Env"]
Observe = Callable[["gymnasium.Env", Any], Observation]


class GymnasiumSuite(Suite):
    """Tasks that are Gymnasium environments; initial state i is what `reset(seed=i)` gives.

    Args:
        tasks: the suite's tasks; `make_env` gets one of them.
        make_env: builds a task's environment with `render_mode="rgb_array"` and without its own time limit
            (`max_episode_steps=-1`), since the horizon is the task's.
        observe: (environment, what its reset or step returned) -> Observation; renders the cameras, once per chunk.
        success_key: the entry of `info` that is true (or 1) once the task is solved.
        train_states: number of initial states per task for demonstrations and RL: seeds 0, 1, ...
        test_states: number of held-out ones: the seeds after those.
        skip_seeds: task name -> seeds to leave out, such as those from which the task is solved before the policy acts
            (the checker finds them).
        make_expert: (the task's environment, task) -> scripted expert; None where there is none.
        protocol: what else changes the meaning of a success rate (camera, package versions).
    """

    def __init__(
        self,
        *,
        name: str,
        spec: SuiteSpec,
        tasks: tuple[Task, ...],
        make_env: MakeEnv,
        observe: Observe,
        success_key: str,
        train_states: int = 100,
        test_states: int = 50,
        skip_seeds: Mapping[str, Collection[int]] | None = None,
        make_expert: Callable[["gymnasium.Env", Task], Expert] | None = None,
        protocol: Mapping[str, str | int | float] | None = None,
    ) -> None:
        self.name, self.spec, self.tasks = name, spec, tasks
        self._make_env, self._observe, self._success_key = make_env, observe, success_key
        self._counts = {"train": train_states, "test": test_states}
        self._skip = dict(skip_seeds or {})
        self._make_expert = make_expert
        self._protocol = dict(protocol or {})

    @property
    def protocol(self) -> dict[str, str | int | float]:
        return {
            "gymnasium": importlib.metadata.version("gymnasium"),
            "train_states_per_task": self._counts["train"],
            "test_states_per_task": self._counts["test"],
            **self._protocol,
        }

    def initial_states(self, task: Task, split: Split) -> list[int]:
        if split not in self._counts:
            raise UserError(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
        usable = (seed for seed in itertools.count() if seed not in self._skip.get(task.name, ()))
        states = list(itertools.islice(usable, sum(self._counts.values())))
        return states[: self._counts["train"]] if split == "train" else states[self._counts["train"] :]

    def make_environment(self) -> Environment:
        return GymnasiumEnvironment(self._make_env, self._observe, self._success_key)

    def make_expert(self, environment: Environment) -> Expert | None:
        assert isinstance(environment, GymnasiumEnvironment)
        return _TaskExpert(environment, self._make_expert) if self._make_expert else None


class GymnasiumEnvironment(Environment):
    """One Gymnasium environment per task, built when first needed and kept."""

    def __init__(self, make_env: MakeEnv, observe: Observe, success_key: str) -> None:
        self._make_env, self._observe, self._success_key = make_env, observe, success_key
        self._built: dict[str, gymnasium.Env] = {}
        self.task: Task | None = None
        """Task of the last reset."""
        self._last: Any = None
        self._terminated = False

    @property
    def current(self) -> "gymnasium.Env":
        """The Gymnasium environment of the current task."""
        assert self.task is not None, "reset first"
        return self._built[self.task.name]

    def reset(self, task: Task, initial_state: int) -> Observation:
        if task.name not in self._built:
            self._built[task.name] = self._make_env(task)
        self.task, self._terminated = task, False
        self._last, _ = self.current.reset(seed=initial_state)
        return self._observe(self.current, self._last)

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Executes a chunk as in the contract.

        After a termination without success (the robot fell, say) the scene stays as it is and further actions
        change nothing: the episode can only time out.
        """
        executed, success = 0, False
        for action in actions:
            executed += 1
            if self._terminated:
                continue
            self._last, _, self._terminated, truncated, info = self.current.step(action)
            success = self._success(info)
            if success:
                break
            if truncated:
                raise UserError(
                    f"the Gymnasium environment {self.current} truncated the episode by itself; expected that only the "
                    "task's horizon does. Make it with max_episode_steps=-1."
                )
        return ChunkResult(
            observation=lambda: self._observe(self.current, self._last), executed=executed, success=success
        )

    def render(self) -> np.ndarray:
        return np.asarray(self.current.render())

    def close(self) -> None:
        for env in self._built.values():
            env.close()
        self._built.clear()

    def _success(self, info: Mapping[str, Any]) -> bool:
        if self._success_key not in info:
            raise UserError(
                f"info has no {self._success_key!r}; it has: {', '.join(sorted(info)) or 'nothing'}. "
                "Name the environment's success flag in success_key."
            )
        flag = info[self._success_key]
        if np.ndim(flag) != 0 or flag not in (0, 1):
            raise UserError(f"info[{self._success_key!r}] is {flag!r}; expected true or false, 1 or 0")
        return bool(flag)


class _TaskExpert(Expert):
    """Expert for the task of the last reset."""

    def __init__(
        self, environment: GymnasiumEnvironment, make_expert: Callable[["gymnasium.Env", Task], Expert]
    ) -> None:
        self._environment, self._make = environment, make_expert

    def reset(self) -> None:
        task = self._environment.task
        assert task is not None, "reset the environment first"
        self._expert = self._make(self._environment.current, task)
        self._expert.reset()

    def action(self) -> np.ndarray:
        return self._expert.action()
