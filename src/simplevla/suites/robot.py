"""A robot as a suite: anything with LeRobot's interface, limits on every action, and a person who judges."""

import contextlib
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, Protocol

import numpy as np

from simplevla.errors import UserError, one_line
from simplevla.suites.base import Environment, EnvironmentGone, EpisodeBroken, Suite, SuiteSpec
from simplevla.suites.keyboard import Interrupted, Keyboard
from simplevla.types import ChunkResult, Observation, Split, Task

SOLVED, FAILED, BEGIN, END = "s", "f", "\r\n", "q"
"""Keys. Any other one stops a robot that moves."""
QUESTION_S = 0.2
"""Seconds between two signs of life while a person is asked."""
PARENT_S = 5.0
"""Seconds that the process which started this one has to end it after Ctrl-C."""


class Robot(Protocol):
    """The part of LeRobot's `Robot` that is used (lerobot 0.6.1, lerobot/robots/robot.py)."""

    @property
    def observation_features(self) -> Mapping[str, Any]:
        """Name -> float, or (height, width, 3) of a camera."""

    @property
    def action_features(self) -> Mapping[str, Any]: ...

    @property
    def is_calibrated(self) -> bool: ...

    def connect(self, calibrate: bool = True) -> None: ...

    def get_observation(self) -> Mapping[str, Any]: ...

    def send_action(self, action: dict[str, Any]) -> Mapping[str, Any]:
        """Returns what was sent, after limits of its own."""

    def disconnect(self) -> None: ...


class RobotSuite(Suite):
    """Tasks for one robot; initial state i is the scene of number i, which a person sets.

    Args:
        name: stands in results and in what a policy was trained on.
        make_robot: gives the robot, not yet connected; called in the worker process.
        tasks: instruction -> horizon in env steps.
        cameras: name in the robot's observation -> (height, width).
        state: names in the robot's observation.
        action_limits: each position that the robot takes -> (low, high, largest change in an env step).
        hz: env steps per second.
        start: position of each action's joint at the beginning of an episode; None: the arm stays where it is.
        train_scenes: number of scenes for RL: 1, 2, ...
        test_scenes: number of held-out ones: those after them.

    Raises:
        UserError: limits, start or frequency make no sense.
    """

    real_world = True
    one_environment_per_process = True

    def __init__(
        self,
        *,
        name: str,
        make_robot: Callable[[], Robot],
        tasks: Mapping[str, int],
        cameras: Mapping[str, tuple[int, int]],
        state: tuple[str, ...],
        action_limits: Mapping[str, tuple[float, float, float]],
        hz: float,
        start: Mapping[str, float] | None = None,
        train_scenes: int = 20,
        test_scenes: int = 10,
    ) -> None:
        _check(action_limits, hz, start)
        self.name, self.make_robot, self.start = name, make_robot, start
        self.limits = np.array(list(action_limits.values()), np.float64)
        """[A, 3] of low, high, largest change."""
        low, high, _ = self.limits.T.tolist()
        self.spec = SuiteSpec(
            cameras=dict(cameras),
            state_names=tuple(state),
            action_names=tuple(action_limits),
            action_low=tuple(low),
            action_high=tuple(high),
            control_hz=float(hz),
        )
        self.tasks = tuple(
            Task(
                name=instruction.replace(" ", "_"),
                instruction=instruction,
                horizon=horizon,
                horizon_reason="the suite's own",
            )
            for instruction, horizon in tasks.items()
        )
        self._scenes = {
            "train": range(1, train_scenes + 1),
            "test": range(train_scenes + 1, train_scenes + test_scenes + 1),
        }

    @property
    def protocol(self) -> dict[str, str | int | float]:
        return {
            "judge": "a person",
            "control_hz": self.spec.control_hz,
            "action_limits": json.dumps(dict(zip(self.spec.action_names, self.limits.tolist(), strict=True))),
            "start": json.dumps(self.start and dict(self.start)),
            "train_scenes": len(self._scenes["train"]),
            "test_scenes": len(self._scenes["test"]),
        }

    def initial_states(self, task: Task, split: Split) -> list[int]:
        return list(self._scenes[split])

    def make_environment(self) -> Environment:
        return RobotEnvironment(self)


def _check(limits: Mapping[str, tuple[float, float, float]], hz: float, start: Mapping[str, float] | None) -> None:
    for name, (low, high, change) in limits.items():
        if not (np.isfinite((low, high, change)).all() and low < high and change > 0):
            raise UserError(
                f"action_limits[{name!r}] is {(low, high, change)}; expected finite (low, high, largest change in an env step) "
                "with low < high and a change above 0"
            )
        if name.endswith(".vel"):
            raise UserError(
                f"action_limits has {name!r}, a velocity, which would go on while the policy thinks; expected positions"
            )
    if not 0 < hz < np.inf:
        raise UserError(f"hz is {hz}; expected env steps per second above 0")
    if start is not None and set(start) != set(limits):
        raise UserError(f"start has {', '.join(start)}; expected the names in action_limits: {', '.join(limits)}")
    for name, position in (start or {}).items():
        if not limits[name][0] <= position <= limits[name][1]:
            raise UserError(
                f"start[{name!r}] is {position}; expected {limits[name][0]} to {limits[name][1]}, its limits"
            )


def _require_names(robot: Robot, spec: SuiteSpec) -> None:
    seen, taken = robot.observation_features, robot.action_features
    for name in (*spec.cameras, *spec.state_names, *spec.action_names):
        if name not in seen:
            raise UserError(f"the robot's observation has no {name!r}, which the suite names; it has {', '.join(seen)}")
    for name, size in spec.cameras.items():
        if seen[name] != (*size, 3):
            raise UserError(f"the robot's camera {name!r} has the shape {seen[name]}; the suite says {(*size, 3)}")
    if set(taken) != set(spec.action_names):
        raise UserError(
            f"the robot takes {', '.join(taken)}; action_limits has {', '.join(spec.action_names)}. Expected the same"
        )


def _in_a_line(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}")


class RobotEnvironment(Environment):
    """The connected robot. Every exception holds it where it is, and no episode that one ended counts as failed."""

    def __init__(self, suite: RobotSuite) -> None:
        self._suite, self._names = suite, suite.spec.action_names
        self._period = 1 / suite.spec.control_hz
        self._keyboard = Keyboard()
        self._lost = ""
        """Error by which the robot was lost; empty while it works."""
        self._number = 0
        """Episodes begun."""
        self._due = 0.0
        """Time of the next action, by `time.monotonic()`."""
        self._last_sent: float | None = None
        """Time of the action before, in the same chunk."""
        self._scene: tuple[str, int] | None = None
        self._picture = np.zeros((1, 1, 3), np.uint8)
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def reset(self, task: Task, initial_state: int) -> Observation:
        """Moves the arm to its start and asks for the scene; each after a key."""
        again = " again" if self._scene == (task.name, initial_state) else ""
        self._scene = task.name, initial_state
        self._horizon = task.horizon
        self._number += 1
        with self._guarded():
            while self._lost:
                self._ask(f"the robot failed ({self._lost}). Mend it. Enter connects again, q ends here")
                self._connect_again()
            self._go_to_start()
            self._ask(
                f"episode {self._number}: {task.instruction}. Set scene {initial_state}{again}. "
                "Enter begins, q ends here; then s solved, f failed, any other key stops"
            )
            return self._begin()

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        with self._guarded():
            now = time.monotonic()
            self._paused += max(0.0, now - self._due)
            self._due = max(self._due, now)
            self._last_sent = None
            for executed, action in enumerate([*actions, None]):
                verdict = self._wait()
                if verdict:
                    # At least one, by the contract, also where the key came before the chunk.
                    return self._end(verdict == SOLVED, max(executed, 1))
                if action is not None:
                    self._move(action)
            if self._steps == self._horizon:
                solved = self._ask("time is up. Solved? y or n; any other key: it doesn't count", "yn") == "y"
                return self._end(solved, len(actions))
            return ChunkResult(observation=self._look(), executed=len(actions), success=False)

    def render(self) -> np.ndarray:
        """The last picture of the first camera."""
        return self._picture

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._robot.disconnect()
        self._keyboard.close()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Listens to keys; whatever is raised inside, the robot holds its position first."""
        try:
            with self._keyboard.listening():
                try:
                    yield
                except BaseException:
                    with contextlib.suppress(Exception):
                        self._hold()
                    raise
        except Interrupted:
            self._interrupt()
        except EpisodeBroken as error:
            self._keyboard.say(f"episode {self._number}: {error}; it doesn't count")
            raise
        except Exception as error:
            self._lost = _in_a_line(error)
            raise EpisodeBroken(f"the robot failed: {self._lost}") from error

    def _interrupt(self) -> NoReturn:
        """Disconnects the robot after Ctrl-C was read, and then does what the terminal would have done."""
        with contextlib.suppress(Exception):
            self._robot.disconnect()
        os.kill(0, signal.SIGINT)
        # A worker doesn't get it, and is ended by the process that started it.
        time.sleep(PARENT_S)
        raise EnvironmentGone("interrupted")

    def _ask(self, question: str, keys: str = BEGIN) -> str:
        """The key of `keys` that answers the question.

        Raises:
            EnvironmentGone: q was pressed instead of Enter.
            EpisodeBroken: another key was pressed instead of y or n.
        """
        self._keyboard.forget()
        self._keyboard.say(question)
        while True:
            self.beat()
            key = self._keyboard.key(QUESTION_S)
            if key and key in keys:
                return key
            if keys == BEGIN and key == END:
                raise EnvironmentGone("ended at the terminal (q)")
            if keys != BEGIN and key:
                raise EpisodeBroken("stopped")

    def _connect(self) -> None:
        """Connects, and looks whether all is there that the suite names."""
        self._robot = self._suite.make_robot()
        _require_names(self._robot, self._suite.spec)
        self._robot.connect(calibrate=False)
        if not self._robot.is_calibrated:
            raise UserError("the robot isn't calibrated; do it once, with lerobot-calibrate if it is one of LeRobot's")
        self._look()
        self._lost = ""

    def _connect_again(self) -> None:
        with contextlib.suppress(Exception):
            self._robot.disconnect()
        try:
            self._connect()
        except Exception as error:
            self._lost = _in_a_line(error)

    def _look(self) -> Observation:
        """Raises ValueError if something isn't there; `self._measured` is where the arm was seen."""
        seen, spec = self._robot.get_observation(), self._suite.spec
        missing = [name for name in (*spec.cameras, *spec.state_names, *self._names) if name not in seen]
        if missing:
            raise ValueError(f"the observation lacks {', '.join(missing)}; it has {', '.join(seen)}")
        self._measured = np.array([seen[name] for name in self._names], np.float64)
        images = {name: np.asarray(seen[name]) for name in spec.cameras}
        self._picture = next(iter(images.values()))
        return Observation(images=images, state=np.array([seen[name] for name in spec.state_names], np.float32))

    def _go_to_start(self) -> None:
        self._begin()
        if self._suite.start is None:
            return
        goal = np.array([self._suite.start[name] for name in self._names])
        if (np.abs(goal - self._sent) <= self._suite.limits[:, 2]).all():
            return
        self._ask("Keep clear: Enter moves the arm to its start, q ends here; then any key stops it")
        self._due = time.monotonic()
        for _ in range(math.ceil((np.abs(goal - self._sent) / self._suite.limits[:, 2]).max())):
            if self._wait():
                raise EpisodeBroken("stopped")
            self._move(goal)

    def _begin(self) -> Observation:
        """Forgets the last episode; limits of the first action begin where the arm is."""
        seen = self._look()
        self._sent = self._measured
        self._steps = self._late = self._clipped = self._slowed = 0
        self._intervals: list[float] = []
        self._paused, self._due = 0.0, time.monotonic()
        self._last_sent = None
        return seen

    def _wait(self) -> str:
        """Waits until the next action is due; returns a verdict if one is given.

        Raises:
            EpisodeBroken: another key stops the robot.
        """
        while True:
            key = self._keyboard.key(self._due - time.monotonic())
            if key in (SOLVED, FAILED):
                return key
            if key and key not in BEGIN:
                raise EpisodeBroken("stopped")
            if not key and time.monotonic() >= self._due:
                return ""

    def _move(self, action: np.ndarray) -> None:
        """Sends one action within the limits."""
        if not np.isfinite(action).all():
            raise ValueError(f"the action is {action.tolist()}; expected finite numbers")
        low, high, change = self._suite.limits.T
        inside = np.clip(action.astype(np.float64), low, high)
        target = np.clip(inside, self._sent - change, self._sent + change)
        now = time.monotonic()
        if self._last_sent is not None:
            self._intervals.append(now - self._last_sent)
            if now - self._due > self._period / 2:
                # Not made up for: two actions at once would be a jump.
                self._late, self._due = self._late + 1, now
        sent = self._robot.send_action(dict(zip(self._names, target.tolist(), strict=True))) or {}
        self._sent = np.array(
            [sent.get(name, value) for name, value in zip(self._names, target, strict=True)], np.float64
        )
        self._last_sent, self._due = now, self._due + self._period
        self._steps += 1
        self._clipped += not np.allclose(inside, action)
        self._slowed += not np.allclose(target, inside)

    def _hold(self) -> None:
        """Sends the arm where it is; a picture isn't needed for that, but an answer of the robot is."""
        seen = self._robot.get_observation()
        self._robot.send_action({name: float(seen[name]) for name in self._names})

    def _end(self, solved: bool, executed: int) -> ChunkResult:
        """Says how the episode went."""
        hz = len(self._intervals) / sum(self._intervals) if self._intervals else float("nan")
        self._keyboard.say(
            f"episode {self._number}: {'solved' if solved else 'failed'} after {self._steps} env steps; {hz:.1f} of "
            f"{self._suite.spec.control_hz:g} a second, {self._late} late; {self._clipped} beyond the limits, {self._slowed} "
            f"slowed down; {self._paused:.1f} s waiting for the policy"
        )
        return ChunkResult(observation=self._look, executed=executed, success=solved, failed=not solved)
