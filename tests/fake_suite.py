"""A suite without physics for tests of everything around it: a point on a line that has to reach a goal.

`position += 0.25 * actions[0]` at each env step, from 0; solved once position >= goal. Chunks of 4 actions of 2
dimensions are usual, the horizon of 11 ends inside the third one. State: position, goal, renders since the reset.

Tasks with a misbehaviour in their name are there only where `SuiteConfig.tasks` names them; the suite without names has
the first three. Environment variables that the worker processes inherit:

FAKE_SUITE_FOLDER  a `..._once` task misbehaves as long as the file of its name isn't in there, and makes it;
                   `wait` steps only once the file `go` is there
FAKE_SUITE_LOG     file to which every reset appends the task's name and the initial state
FAKE_SUITE_BUILD   `raise` or `exit` breaks the construction of environments; `exit 2 3` that of the second and third one alone,
                   counted in the folder over all processes
FAKE_SUITE_JITTER  longest of the random delays, in seconds, that chunks then have
"""

import ctypes
import itertools
import os
import random
import sys
import time
from pathlib import Path

import numpy as np

from simplevla.config import SuiteConfig
from simplevla.suites.base import Environment, Expert, Suite, SuiteSpec
from simplevla.types import ChunkResult, Observation, Split, Task

HORIZON = 11
GOALS = {"reach": 0.4, "far": 0.8, "near": 0.1, "trivial": -9.0, "impossible": 99.0}
REGULAR = ("reach", "far", "near")
MISBEHAVIOURS = (
    *("crash", "crash_once", "crash_at_reset", "hang", "hang_once", "hold", "kill", "kill_once", "wait"),
    *("nan", "int_success", "executed_0", "executed_5", "ends_early", "float_image", "long_state", "no_camera"),
)


def make(config: SuiteConfig) -> "FakeSuite":
    return FakeSuite(REGULAR if not config.tasks else (*GOALS, *MISBEHAVIOURS, "inspect"))


class FakeSuite(Suite):
    name = "fake"
    spec = SuiteSpec(
        cameras={"front": (8, 8), "wrist": (4, 6)},
        state_names=("position_x_m", "goal_m", "renders"),
        action_names=("forward", "unused"),
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        control_hz=10.0,
    )

    def __init__(self, names: tuple[str, ...]) -> None:
        self.tasks = tuple(
            Task(name=name, instruction=f"do {name}", horizon=HORIZON, horizon_reason="ends inside a chunk of 4")
            for name in names
        )

    @property
    def protocol(self) -> dict[str, str | int | float]:
        return {"suite": "fake", "horizon": HORIZON}

    def initial_states(self, task: Task, split: Split) -> list[int]:
        return list(range(4)) if split == "train" else list(range(4, 6))

    def make_environment(self) -> "FakeEnvironment":
        build, *numbers = os.environ.get("FAKE_SUITE_BUILD", "well").split()
        if build == "raise":
            raise RuntimeError("no display in this fake world")
        if build == "exit" and (not numbers or str(number_of_build()) in numbers):
            os._exit(7)
        return FakeEnvironment()

    def make_expert(self, environment: Environment) -> "FakeExpert":
        return FakeExpert()


def number_of_build() -> int:
    """1 for the first environment that any process builds, and so on."""
    for number in itertools.count(1):
        try:
            (Path(os.environ["FAKE_SUITE_FOLDER"]) / f"build_{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return number
    raise AssertionError


class FakeExpert(Expert):
    def reset(self) -> None:
        pass

    def action(self) -> np.ndarray:
        return np.array([1.0, 0.0], np.float32)


class FakeEnvironment(Environment):
    """Once it has crashed it can't be reset: it has to be built anew."""

    crashed = False
    watched = False

    def watch(self) -> None:
        self.watched = True

    def events(self) -> tuple[str, ...] | None:
        return ("is watched",) if self.watched and "FAKE_SUITE_EVENTS" in os.environ else None

    def reset(self, task: Task, initial_state: int) -> Observation:
        if self.crashed:
            raise RuntimeError("a crashed environment was used again")
        self.task, self.initial_state = task.name, initial_state
        if "FAKE_SUITE_LOG" in os.environ:
            with open(os.environ["FAKE_SUITE_LOG"], "a") as file:
                file.write(f"{task.name} {initial_state}\n")
        self.position = np.float32(0)
        goal = GOALS["impossible"] if task.name == "nan" else GOALS.get(task.name, GOALS["reach"])
        self.goal = np.float32(goal + 0.05 * initial_state)
        self.renders = 0
        if task.name == "crash_at_reset":
            raise RuntimeError("the scene is on fire")
        return self.observe()

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        self.misbehave()
        time.sleep(random.random() * float(os.environ.get("FAKE_SUITE_JITTER", "0")))
        executed = 0
        while executed < len(actions):
            self.position += np.float32(0.25) * actions[executed, 0]
            executed += 1
            if self.position >= self.goal:
                break
        success = bool(self.position >= self.goal)
        if self.task == "int_success":
            success = 1  # type: ignore[assignment]
        if self.task.startswith("executed_"):
            executed = int(self.task[-1])
        if self.task == "ends_early":
            success, executed = False, 2
        return ChunkResult(observation=self.observe, executed=executed, success=success)

    def misbehave(self) -> None:
        what, _, once = self.task.partition("_")
        if what == "wait":
            gate, deadline = Path(os.environ["FAKE_SUITE_FOLDER"]) / "go", time.monotonic() + 20
            while not gate.exists():
                if time.monotonic() > deadline:
                    raise RuntimeError("nobody opened the gate")
                time.sleep(0.01)
        if what not in ("crash", "hang", "hold", "kill"):
            return
        if once:
            marker = Path(os.environ["FAKE_SUITE_FOLDER"]) / self.task
            if marker.exists():
                return
            marker.touch()
        if what == "crash":
            self.crashed = True
            raise RuntimeError("the gripper fell off")
        if what == "hang":
            time.sleep(600)
        if what == "hold":
            # Unlike the one above it keeps Python's lock.
            ctypes.PyDLL(None).sleep(600)
        os._exit(9)

    def observe(self) -> Observation:
        self.renders += 1
        state = np.array([self.position, self.goal, self.renders], np.float32)
        if self.task == "inspect":
            state[:] = ["torch" in sys.modules, float(os.environ["OMP_NUM_THREADS"]), os.getpid()]
        if self.task == "nan" and self.renders == 2:
            state[0] = np.nan
        if self.task == "long_state":
            state = np.zeros(4, np.float32)
        level = int(np.clip(128 + 100 * self.position, 0, 255))
        images = {
            "front": np.full((8, 8, 3), level, np.uint8),
            "wrist": np.full((4, 6, 3), self.renders, np.uint8),
        }
        images["wrist"][-1, -1] = int(np.float32(100) * self.goal) % 256  # NumPy 1 would compute it in float64
        if self.task == "float_image":
            images["front"] = images["front"].astype(np.float32)
        if self.task == "no_camera":
            del images["wrist"]
        return Observation(images=images, state=state)

    def render(self) -> np.ndarray:
        self.renders += 1
        return np.zeros((16, 16, 3), np.uint8)
