"""The contract between a suite of tasks and everything else. No torch here: worker processes import only this side."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from simplevla.errors import UserError
from simplevla.types import ChunkResult, Observation, Split, Task


class EpisodeBroken(Exception):
    """An episode that says nothing about the policy, such as one that a person stopped; the environment itself is well.

    The episode is run again in the same environment. After any other exception a new environment is built.
    """


class EnvironmentGone(EpisodeBroken):
    """The environment won't run any more episodes; those that have no result yet end ENV_ERROR."""


class Environment(ABC):
    """One simulator instance, or a robot. It is built once and reset often; it renders once per chunk."""

    beat: Callable[[], None] = staticmethod(lambda: None)
    """A sign of life, for a reset or chunk that may take longer than `RolloutConfig.chunk_timeout_s`; who runs the
    environment sets it."""

    @abstractmethod
    def reset(self, task: Task, initial_state: int) -> Observation:
        """Puts the scene into initial state `initial_state` of `task`; the same pair always gives the same scene."""

    def reset_unseen(self, task: Task, initial_state: int) -> Observation | None:
        """Resets for a sibling of an episode that this process has begun.

        None says that the observation is the same to the last bit and needn't be rendered again.
        Worth overriding where episodes are short.
        """
        return self.reset(task, initial_state)

    @abstractmethod
    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Executes float32 `actions` [h, A], h >= 1, up to the first env step that solves the task.

        A result that says `failed` ends the episode as TIMEOUT, before the horizon. Raises EpisodeBroken for an episode
        that is to be run again.

        Renders only after the last executed action, best in a function that the result carries, since nobody looks at
        the end of an episode. The caller keeps the horizon by shortening `actions`.
        """

    @abstractmethod
    def render(self) -> np.ndarray:
        """A picture for people, uint8 [height, width, 3], of the current state; used for videos only."""

    def watch(self) -> None:
        """Makes `events` count what is so between env steps too; rollouts of a policy save the time that it takes."""
        return None

    def events(self) -> tuple[str, ...] | None:
        """Names what has been so since the last call, `grasps blue` for example, the weaker first; None: not known.

        Called after each env step, for `simplevla novelty` and never for training. Without `watch`, what is so now.
        """
        return None

    def close(self) -> None:
        """Frees the simulator's resources."""
        return None


def order_of(events: Sequence[tuple[str, ...] | None]) -> str | None:
    """The order in which events began for the first time, such as `touches blue > grasps blue`; `nothing` if none did.

    None where a suite tells no events.

    >>> order_of([(), ("a",), ("a", "b"), ("a",)])
    'a > b'
    """
    seen: dict[str, None] = {}
    for now in events:
        if now is None:
            return None
        seen.update(dict.fromkeys(now))
    return " > ".join(seen) or "nothing"


def execute(step: Callable[[np.ndarray], bool], actions: np.ndarray, size: int, who: str) -> tuple[int, bool]:
    """Executes `actions` [h, size] up to the env step that solves the task: (number executed, solved).

    Args:
        step: one env step; true if the task is solved after it.
        who: the simulator's name, for errors.

    Raises:
        UserError: wrong shape, or a number that isn't finite.
    """
    if actions.ndim != 2 or actions.shape[1] != size or len(actions) == 0:
        raise UserError(f"actions have shape {actions.shape}; {who} expects [h, {size}] with h >= 1")
    if not np.isfinite(actions).all():
        raise UserError("actions contain NaN or infinity; expected numbers in [-1, 1]")
    for executed, action in enumerate(actions, start=1):
        if step(action):
            return executed, True
    return len(actions), False


class Expert(ABC):
    """A scripted policy that reads the simulator's state. For demonstrations only, never for training signals."""

    @abstractmethod
    def reset(self) -> None:
        """Forgets the last episode; called right after the environment's reset."""

    @abstractmethod
    def action(self) -> np.ndarray:
        """The action float32 [A] for the environment's current state; it must recover from disturbances."""


@dataclass(frozen=True, kw_only=True)
class SuiteSpec:
    """Shapes and units that a policy must fit."""

    cameras: dict[str, tuple[int, int]]
    """Camera name -> (height, width) in pixels; the first one is the fixed view."""
    state_names: tuple[str, ...]
    """One name per state dimension, with its unit: `"gripper_x_m"`. `novelty` finds the hand by unit and axis."""
    action_names: tuple[str, ...]
    """One name per action dimension, with its unit or meaning."""
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    control_hz: float
    """Env steps per simulated second."""


class Suite(ABC):
    """A set of tasks over one kind of environment."""

    name: str
    spec: SuiteSpec
    tasks: tuple[Task, ...]
    all_tasks: tuple[Task, ...] = ()
    """Tasks before `SuiteConfig.tasks` chose among them; `make_suite` sets it."""
    one_environment_per_process: bool = False
    """True where two environments in one process disturb each other (robosuite's rendering contexts)."""
    real_world: bool = False
    """True for a robot: there is one, so it has one worker process, and no two starts are alike to the last bit."""
    task_change_is_slow: bool = False
    """True where an environment builds its scene anew for another task; rollouts then keep a slot at one task as long
    as they can."""

    @property
    @abstractmethod
    def protocol(self) -> dict[str, str | int | float]:
        """All that changes what a success rate means (horizon protocol, visual mode, renderer, split, versions);
        written beside every result."""

    @abstractmethod
    def initial_states(self, task: Task, split: Split) -> list[int]:
        """Indices of the initial states of `task` in `split`; the splits are disjoint."""

    @abstractmethod
    def make_environment(self) -> Environment:
        """Builds one environment; called inside the process that will use it."""

    def make_expert(self, environment: Environment) -> Expert | None:
        """The scripted expert that reads `environment`'s state, or None where the suite has none."""
        return None

    def task(self, name: str) -> Task:
        """The task called `name`."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise UserError(f"suite {self.name!r} has no task {name!r}; it has: {', '.join(t.name for t in self.tasks)}")
