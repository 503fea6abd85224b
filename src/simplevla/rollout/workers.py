"""Worker processes that hold the environments; observations and actions cross in shared memory, the rest in a pipe.

No torch here: a worker imports this file, the suite and nothing else, so it starts fast and stays small.
"""

import contextlib
import copy
import ctypes
import mmap
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from simplevla.config import SuiteConfig
from simplevla.errors import UserError
from simplevla.suites.base import Environment, EnvironmentGone, EpisodeBroken, Suite, SuiteSpec
from simplevla.suites.elsewhere import Description, describe
from simplevla.suites.processes import STARTUP_TIMEOUT_S, Process, begin, shared_file
from simplevla.suites.registry import make_suite
from simplevla.types import ChunkResult, Observation

REPLY_INTERVAL_S = 0.02
"""Replies to commands that came together travel together, but none waits longer than this for a later one."""
CLOSE_TIMEOUT_S = 5.0
"""Limit for closing the environments; after that a worker is killed."""


class SuiteError(UserError):
    """The suite breaks its contract or can't be built. Running the episode again can't help, so the run ends."""


class Reset(NamedTuple):
    """Starts an episode in a slot."""

    slot: int
    task: str
    initial_state: int


class Step(NamedTuple):
    """Executes the first `length` actions of the slot's chunk in shared memory."""

    slot: int
    length: int
    last: bool = False
    """True if these actions reach the horizon."""


class Job(Protocol):
    """A whole episode that a worker runs by itself, such as an expert's; it travels to the worker by pickle."""

    def run(self, suite: Suite, environment: Environment, beat: Callable[[], None]) -> Any:
        """Does the job and returns what the reply carries.

        Each env step calls `beat`, and `check_observation` and `check_result` on what it gets.

        Raises:
            SuiteError: the suite breaks its contract.
        """


class Run(NamedTuple):
    """Lets a job reset and step the slot's environment."""

    slot: int
    task: str
    initial_state: int
    job: Job


Command = Reset | Step | Run


class Reply(NamedTuple):
    """Answer to a command; its observation lies in shared memory if the kind is `done`."""

    kind: Literal["ready", "done", "env_error", "gone", "suite_error"]
    """`gone` is an `env_error` after which the environment runs no other episode."""
    slot: int = 0
    executed: int = 0
    success: bool = False
    failed: bool = False
    """True if the episode is over and unsolved."""
    text: str = ""
    """The error, with traceback where there is one."""
    error: str = ""
    """The kind of error, in a few words."""
    outcome: Any = None
    """The value that a job returned."""


@dataclass(frozen=True)
class SlotArrays:
    """Views into a worker's shared memory, one row per slot; a row is the worker's while its command is out."""

    actions: np.ndarray
    """float32 [slots, H, A]."""
    state: np.ndarray
    """float32 [slots, S]."""
    images: dict[str, np.ndarray]
    """Camera -> uint8 [slots, height, width, 3]."""

    @staticmethod
    def nbytes(spec: SuiteSpec, slots: int, chunk_length: int) -> int:
        pixels = sum(height * width for height, width in spec.cameras.values())
        return slots * (4 * chunk_length * len(spec.action_names) + 4 * len(spec.state_names) + 3 * pixels)

    @classmethod
    def over(cls, memory: Any, spec: SuiteSpec, slots: int, chunk_length: int) -> "SlotArrays":
        """The views into `memory` of `nbytes` bytes; floats first, so that they are aligned."""
        rest = np.frombuffer(memory, np.uint8)

        def take(dtype: type, *shape: int) -> np.ndarray:
            nonlocal rest
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            head, rest = rest[:size], rest[size:]
            return head.view(dtype).reshape(shape)

        actions = take(np.float32, slots, chunk_length, len(spec.action_names))
        state = take(np.float32, slots, len(spec.state_names))
        return cls(actions, state, {name: take(np.uint8, slots, *size, 3) for name, size in spec.cameras.items()})


def check_observation(observation: object, spec: SuiteSpec) -> None:
    """Raises SuiteError unless `observation` has the cameras, shapes and dtypes of `spec` and a finite state."""
    if not isinstance(observation, Observation):
        raise SuiteError(f"the observation is a {type(observation).__name__}; expected simplevla.types.Observation")
    if set(observation.images) != set(spec.cameras):
        raise SuiteError(f"the observation has cameras {sorted(observation.images)}; expected {sorted(spec.cameras)}")
    expected: dict[str, tuple[object, tuple[int, ...], type]] = {
        f"image {name!r}": (observation.images[name], (*size, 3), np.uint8) for name, size in spec.cameras.items()
    }
    expected["state"] = (observation.state, (len(spec.state_names),), np.float32)
    for what, (array, shape, dtype) in expected.items():
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
            got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise SuiteError(f"the observation's {what} is {got}; expected {np.dtype(dtype)} {shape}, as in suite.spec")
    finite = np.isfinite(observation.state)
    if not finite.all():
        bad = {
            name: float(v) for name, v, ok in zip(spec.state_names, observation.state, finite, strict=True) if not ok
        }
        raise SuiteError(f"the observation's state has NaN or infinite values: {bad}; expected finite numbers")


def check_result(result: object, count: int) -> None:
    """Raises SuiteError unless `result` is a ChunkResult that `count` actions can have."""
    if not isinstance(result, ChunkResult):
        raise SuiteError(f"step_chunk returned a {type(result).__name__}; expected simplevla.types.ChunkResult")
    if not isinstance(result.success, bool | np.bool_):
        raise SuiteError(
            f"success is {result.success!r} of type {type(result.success).__name__}; expected True or False. "
            "A score or a reward has to be compared with a threshold in the suite."
        )
    executed_is_int = isinstance(result.executed, int | np.integer) and not isinstance(result.executed, bool)
    if not executed_is_int or not 1 <= result.executed <= count:
        raise SuiteError(f"executed is {result.executed!r} of {count} actions; expected an int from 1 to {count}")
    if result.executed < count and not (result.success or result.failed):
        raise SuiteError(
            f"executed is {result.executed} of {count} actions without success; expected all of them: "
            "a chunk ends early only where it solves the task, or says `failed`"
        )


def make_same_suite(config: SuiteConfig, spec: SuiteSpec, told: Description | None = None) -> Suite:
    """The suite as this process builds it.

    Args:
        told: the suite as the process that asked knows it, where that can't build it.

    Raises:
        SuiteError: its spec isn't `spec`, so that observations would be taken for something else; or it isn't as told.
    """
    suite = make_suite(config)
    # As text, since the order of cameras counts as well: shared memory is laid out by it.
    here, there = repr(suite.spec), repr(spec)
    if here != there:
        raise SuiteError(
            f"the spec of suite {suite.name!r} is {here} in this process and {there} in the one that asked; expected the same in every "
            "process, order of cameras included. Take nothing in it from sets, random numbers or the surroundings"
        )
    if told is not None:
        told.check_same(suite)
    return suite


class SimulatorSlots:
    """The environments of one worker, each built when its slot is first used.

    Args:
        beat: called at a job's env steps, as a sign of life.
    """

    def __init__(self, suite: Suite, slots: int, arrays: SlotArrays, beat: Callable[[], None] = lambda: None) -> None:
        self.suite = suite
        self.arrays = arrays
        self._beat = beat
        self._begun = [("", 0)] * slots
        """(task, initial state) of each slot."""
        self.environments: list[Environment | None] = [None] * slots
        self.environments[0] = self._build()
        self._first: tuple[tuple[str, int], Observation] | None = None
        """Task and initial state of the last reset, and what was seen."""

    def _build(self) -> Environment:
        environment = self.suite.make_environment()
        environment.beat = self._beat
        return environment

    def execute(self, command: Command) -> Reply:
        slot = command.slot
        try:
            executed, success = 0, False
            environment = self.environments[slot]
            if not isinstance(command, Step):
                self._begun[slot] = command.task, command.initial_state
                if environment is None:
                    environment = self.environments[slot] = self._build()
            assert environment is not None, "a slot is reset before its first chunk"
            if isinstance(command, Run):
                return Reply("done", slot, outcome=command.job.run(self.suite, environment, self._beat))
            if isinstance(command, Reset):
                observation = self._reset(environment, command)
            else:
                result = environment.step_chunk(self.arrays.actions[slot, : command.length].copy())
                check_result(result, command.length)
                executed, success = int(result.executed), bool(result.success)
                if success or result.failed or command.last:
                    # The episode is over: nobody looks.
                    return Reply("done", slot, executed, success, bool(result.failed) and not success)
                observation = result.observation
            check_observation(observation, self.suite.spec)
        except SuiteError as error:
            task, initial_state = self._begun[slot]
            where = f"suite {self.suite.name!r}, task {task!r}, initial state {initial_state}"
            return Reply("suite_error", slot, text=f"{where}, {type(command).__name__.lower()}: {error}")
        except EpisodeBroken as error:
            kind: Literal["gone", "env_error"] = "gone" if isinstance(error, EnvironmentGone) else "env_error"
            return Reply(kind, slot, text=str(error), error=str(error))
        except UserError as error:
            # The suite is used wrongly, in every episode alike; as a crash it would take the episodes out of the rate.
            return Reply("suite_error", slot, text=str(error))
        except Exception as error:
            text = traceback.format_exc()
            self.discard(slot)
            who = "environment or expert" if isinstance(command, Run) else "environment"
            return Reply("env_error", slot, text=text, error=f"{who} raised {type(error).__name__}")
        self.arrays.state[slot] = observation.state
        for name, image in observation.images.items():
            self.arrays.images[name][slot] = image
        return Reply("done", slot, executed, success)

    def _reset(self, environment: Environment, command: Reset) -> Observation:
        """Siblings follow one another; the first of them renders for all, where the suite says that it may."""
        task, begun = self.suite.task(command.task), (command.task, command.initial_state)
        if self._first is not None and self._first[0] == begun:
            seen = environment.reset_unseen(task, command.initial_state)
            return self._first[1] if seen is None else seen
        observation = environment.reset(task, command.initial_state)
        self._first = begun, copy.deepcopy(observation)
        return observation

    def discard(self, slot: int) -> None:
        """Closes the slot's environment; the next reset builds a new one."""
        environment, self.environments[slot] = self.environments[slot], None
        if environment is not None:
            # A broken simulator may not even close; the traceback that matters has been taken.
            with contextlib.suppress(Exception):
                environment.close()


class Signs:
    """A worker's signs of life, at the beginning of its shared memory."""

    SIZE = 16

    def __init__(self, memory: Any) -> None:
        self.finished = ctypes.c_int64.from_buffer(memory)
        """Commands that were executed, so that the one which kills the process is known."""
        self.beaten = ctypes.c_double.from_buffer(memory, 8)
        """Time of a job's last env step."""


def serve(connection: Connection, sentinel: int, descriptor: int) -> None:
    """The body of a worker process: one reply per command, in the order of the commands, until the pipe closes.

    Commands and replies travel in lists, since a message costs as much as half a millisecond of simulation.

    Args:
        descriptor: of the shared memory.
    """
    begin(sentinel)
    config, spec, told, slots, chunk_length = connection.recv()
    memory = mmap.mmap(descriptor, 0)
    signs = Signs(memory)

    def beat() -> None:
        signs.beaten.value = time.monotonic()

    try:
        suite = make_same_suite(config, spec, told)
        arrays = SlotArrays.over(memoryview(memory)[Signs.SIZE :], spec, slots, chunk_length)
        server = SimulatorSlots(suite, slots, arrays, beat)
    except Exception as error:
        why = f" {error}" if isinstance(error, UserError) else f"\n{traceback.format_exc()}"
        text = f"suite {config.name!r} can't build environments:{why}"
        connection.send([Reply("suite_error", text=text)])
        return
    connection.send([Reply("ready")])
    with contextlib.suppress(EOFError, OSError):
        while (commands := connection.recv()) is not None:
            replies, sent = [], time.monotonic()
            for command in commands:
                replies.append(server.execute(command))
                signs.finished.value += 1
                if time.monotonic() - sent > REPLY_INTERVAL_S or command is commands[-1]:
                    connection.send(replies)
                    replies, sent = [], time.monotonic()
    for slot in range(slots):
        server.discard(slot)


class Worker:
    """The parent's end of one worker process, which it can kill and replace; shared memory outlives the process."""

    shares_cores = True
    """True if the worker is on this machine, where the policy must leave it a core."""

    def __init__(self, config: SuiteConfig, spec: SuiteSpec, slots: int, chunk_length: int) -> None:
        self._python = config.python
        told = describe(config) if config.python else None
        self._arguments = (replace(config, python=None), spec, told, slots, chunk_length)
        self._file = shared_file(Signs.SIZE + SlotArrays.nbytes(spec, slots, chunk_length))
        memory = mmap.mmap(self._file.fileno(), 0)
        self._signs = Signs(memory)
        self.arrays = SlotArrays.over(memoryview(memory)[Signs.SIZE :], spec, slots, chunk_length)
        self.start()

    def start(self) -> None:
        """Starts a process; its first reply is `ready` or the reason why not."""
        self._begin()
        self._signs.finished.value = 0
        self.process = Process("simplevla.rollout.workers:serve", self._arguments, self._python, self._file)
        self.connection = self.process.connection

    def _begin(self) -> None:
        self.ready = False
        self.pending: deque[int] = deque()
        """Slots whose commands have no reply yet, oldest first."""
        self._outbox: list[Command] = []
        self._answered = 0
        self._heard = time.monotonic()

    def send(self, command: Command) -> None:
        """Queue a command for the next `flush`."""
        if self.ready and not self.pending:
            self._heard = time.monotonic()
        self.pending.append(command.slot)
        self._outbox.append(command)

    def flush(self) -> None:
        """Sends what is queued, in one message; a dead worker is noticed at the next `receive`."""
        if self._outbox:
            with contextlib.suppress(OSError):
                self.connection.send(self._outbox)
            self._outbox = []

    def receive(self) -> list[Reply]:
        """The next replies, waiting for them; none if the process is dead and all its replies are read."""
        try:
            replies: list[Reply] = self.connection.recv()
        except (EOFError, OSError):
            return []
        self._heard = time.monotonic()
        for reply in replies:
            if reply.kind == "ready":
                self.ready = True
            elif self.ready:
                slot = self.pending.popleft()
                self._answered += 1
                assert slot == reply.slot, "a worker answers in the order of the commands"
        return replies

    @property
    def executing(self) -> int | None:
        """The slot whose command the worker is at, or was when it died; None if it has none."""
        unread = self._signs.finished.value - self._answered
        return self.pending[unread] if unread < len(self.pending) else None

    def deadline(self, chunk_timeout_s: float) -> float:
        """The `time.monotonic()` after which silence means that the worker hangs."""
        if not self.ready:
            return self._heard + STARTUP_TIMEOUT_S
        return self._alive_at() + chunk_timeout_s if self.pending else float("inf")

    def _alive_at(self) -> float:
        """The `time.monotonic()`, which is one for all processes of a machine, of the last sign of life."""
        return max(self._heard, self._signs.beaten.value)

    def kill(self) -> int | None:
        """Ends the process at once; returns its exit code as it was found, None if it still ran."""
        self.process.join(0.5 if self.process.exitcode is None else 0)
        exitcode = self.process.exitcode
        self.process.kill()
        return exitcode

    def ask_to_close(self) -> None:
        """Lets an idle worker close its environments; `kill` after `wait_closed` frees the rest."""
        if self.ready and not self.pending:
            with contextlib.suppress(OSError):
                self.connection.send(None)

    def wait_closed(self, deadline: float) -> None:
        if self.ready and not self.pending:
            self.process.join(max(0.0, deadline - time.monotonic()))


def close_all(workers: list[Worker]) -> None:
    """Ends the workers: idle ones close their environments, the others are killed. Leaves the list empty."""
    for worker in workers:
        worker.ask_to_close()
    deadline = time.monotonic() + CLOSE_TIMEOUT_S
    while workers:
        workers[-1].wait_closed(deadline)
        workers.pop().kill()
