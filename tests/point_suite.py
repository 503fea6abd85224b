"""A fake suite for the tests of demonstrations: a point in the plane that has to reach a target. No physics.

Environment variables that the worker processes inherit:

POINT_BREAK  `HOW TASK STATE` misbehaves there, at the second env step (STATE may be `any`): raise, die, hang, yes, nan, wide
             or action
POINT_ONCE   a file; it misbehaves as long as it isn't there, and makes it
POINT_LOG    a file that gets a line per reset
POINT_SLEEP  seconds that an env step takes
"""

import os
import time
from pathlib import Path

import numpy as np

from simplevla.config import SuiteConfig
from simplevla.suites.base import Environment, Expert, Suite, SuiteSpec
from simplevla.types import ChunkResult, Observation, Split, Task

NAME = "point_suite:make"
STEP = 0.1
"""Distance moved by an action of 1."""
HORIZONS = {"near": 30, "far": 40, "flaky": 30, "hopeless": 5}


def target_of(task: str, initial_state: int) -> np.ndarray:
    """float64 [2]; "far" is twice as far as "near"."""
    angle = 0.7 * initial_state
    radius = 0.8 if task == "far" else 0.4
    return radius * np.array([np.cos(angle), np.sin(angle)])


class PointEnvironment(Environment):
    def reset(self, task: Task, initial_state: int) -> Observation:
        if os.environ.get("POINT_LOG"):
            with open(os.environ["POINT_LOG"], "a") as file:
                file.write(f"{task.name} {initial_state}\n")
        self.task, self.initial_state = task, initial_state
        self.target = target_of(task.name, initial_state)
        self.position = np.zeros(2)
        self.steps = 0
        return self._observe()

    def misbehaviour(self) -> str:
        """How the environment misbehaves in this env step; nothing if it doesn't."""
        how, task, state = os.environ.get("POINT_BREAK", "none none none").split()
        if task != self.task.name or state not in ("any", str(self.initial_state)) or self.steps != 2:
            return ""
        once = os.environ.get("POINT_ONCE")
        if once and Path(once).exists():
            return ""
        if once:
            Path(once).touch()
        return how

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        self.steps += 1
        time.sleep(float(os.environ.get("POINT_SLEEP", "0")))
        how = self.misbehaviour()
        if how == "raise":
            raise RuntimeError("the simulator diverged")
        if how == "die":
            os._exit(9)
        if how == "hang":
            time.sleep(600)
        if how == "yes":
            return ChunkResult(observation=self._observe(), executed=1, success="yes")  # type: ignore[arg-type]
        if how in ("nan", "wide"):
            seen = self._observe()
            state = np.array([np.nan, 0], np.float32) if how == "nan" else np.zeros(3, np.float32)
            return ChunkResult(observation=Observation(images=seen.images, state=state), executed=1, success=False)
        for executed, action in enumerate(actions, start=1):
            self.position = self.position + STEP * np.clip(action[:2].astype(np.float64), -1, 1)
            if np.linalg.norm(self.position - self.target) < 0.02:
                return ChunkResult(observation=self._observe(), executed=executed, success=True)
        return ChunkResult(observation=self._observe(), executed=len(actions), success=False)

    def render(self) -> np.ndarray:
        return self._observe().images["front"]

    def _observe(self) -> Observation:
        return Observation(
            images={"front": picture(self.position, 6, 8), "wrist": picture(self.target, 4, 4)},
            state=self.position.astype(np.float32),
        )


def picture(point: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3] from which `point` can be told; no two rows are alike."""
    x, y = (np.clip(np.round(127 + 100 * point), 0, 255)).astype(np.uint8)
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = x, y
    image[..., 2] = np.arange(height, dtype=np.uint8)[:, None] * 10
    return image


class PointExpert(Expert):
    def __init__(self, environment: PointEnvironment) -> None:
        self.environment = environment

    def reset(self) -> None:
        return None

    def action(self) -> np.ndarray:
        env = self.environment
        if env.steps == 1 and os.environ.get("POINT_BREAK") == f"action {env.task.name} {env.initial_state}":
            return np.array([np.nan, 0, 0], np.float32)
        if env.task.name == "hopeless" or (env.task.name == "flaky" and env.initial_state % 3 == 0):
            return np.zeros(3, np.float32)
        move = np.clip((env.target - env.position) / STEP, -1, 1)
        return np.array([*move, 1.0], np.float32)


class PointSuite(Suite):
    name = "point"
    spec = SuiteSpec(
        cameras={"front": (6, 8), "wrist": (4, 4)},
        state_names=("x_m", "y_m"),
        action_names=("delta_x_10cm", "delta_y_10cm", "gripper_close"),
        action_low=(-1.0,) * 3,
        action_high=(1.0,) * 3,
        control_hz=10.0,
    )

    def __init__(self) -> None:
        self.tasks = tuple(
            Task(name=name, instruction=f"reach the {name} point", horizon=horizon, horizon_reason="a test")
            for name, horizon in HORIZONS.items()
        )

    @property
    def protocol(self) -> dict[str, str | int | float]:
        return {"physics": "none"}

    def initial_states(self, task: Task, split: Split) -> list[int]:
        return list(range(5)) if split == "train" else [5, 6]

    def make_environment(self) -> Environment:
        return PointEnvironment()

    def make_expert(self, environment: Environment) -> Expert | None:
        assert isinstance(environment, PointEnvironment)
        return PointExpert(environment)


class SuiteWithoutExpert(PointSuite):
    def make_expert(self, environment: Environment) -> Expert | None:
        return None


def make(config: SuiteConfig) -> Suite:
    return PointSuite()


def make_without_expert(config: SuiteConfig) -> Suite:
    return SuiteWithoutExpert()
