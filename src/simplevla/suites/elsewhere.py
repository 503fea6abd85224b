"""A suite in an interpreter of its own (`suite.python`): what it says is asked once, and its environments run there.

Workers run there too and are faster. These environments are for one at a time: films, the checker, a first look.
"""

import contextlib
import dataclasses
import functools
import platform
import subprocess
import sys
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from simplevla.config import SuiteConfig
from simplevla.errors import UserError, brief
from simplevla.suites.base import Environment, EnvironmentGone, EpisodeBroken, Expert, Suite, SuiteSpec
from simplevla.suites.processes import STARTUP_TIMEOUT_S, Process, begin, cannot_start, surroundings_of_another
from simplevla.types import SPLITS, ChunkResult, Observation, Split, Task

OLDEST = (3, 10)
PROBE = "import sys; print('%d %d' % sys.version_info[:2]); sys.stdout.flush(); import numpy"
PROBE_TIMEOUT_S = 120.0
CLOSE_TIMEOUT_S = 5.0
BROKEN = {"broken": EpisodeBroken, "gone": EnvironmentGone}


@dataclass(frozen=True, kw_only=True)
class Description:
    """All that a suite says before an environment is built."""

    name: str
    spec: SuiteSpec
    tasks: tuple[Task, ...]
    all_tasks: tuple[Task, ...]
    protocol: dict[str, str | int | float]
    states: dict[tuple[str, Split], list[int]]
    """(task, split) -> initial states."""
    one_environment_per_process: bool
    task_change_is_slow: bool
    real_world: bool

    @classmethod
    def of(cls, suite: Suite) -> "Description":
        return cls(
            name=suite.name,
            spec=suite.spec,
            tasks=tuple(suite.tasks),
            all_tasks=tuple(suite.all_tasks),
            protocol=dict(suite.protocol),
            states={(t.name, split): list(suite.initial_states(t, split)) for t in suite.tasks for split in SPLITS},
            one_environment_per_process=suite.one_environment_per_process,
            task_change_is_slow=suite.task_change_is_slow,
            real_world=suite.real_world,
        )

    def check_same(self, suite: Suite) -> None:
        """Compares `suite`, as another process builds it, with this one.

        Raises:
            UserError: naming the first difference.
        """
        there = Description.of(suite)
        for name in (field.name for field in dataclasses.fields(self)):
            # As text, since the order of cameras counts as well: shared memory is laid out by it.
            told, found = repr(getattr(self, name)), repr(getattr(there, name))
            if told != found:
                at = next(i for i, (a, b) in enumerate(zip(told + "\0", found + "\1", strict=False)) if a != b)
                told, found = (text[max(0, at - 40) :] for text in (told, found))
                raise UserError(
                    f"the {name} of suite {self.name!r}: this process has ...{brief(found)}, and the one that asked was told "
                    f"...{brief(told)}; expected the same in every process. Take nothing in it from sets, random numbers or the "
                    "surroundings, and leave the suite's files as they are while a run goes on"
                )


class SuiteElsewhere(Suite):
    """The suite of `config.python`, as that interpreter describes it.

    Raises:
        UserError: the interpreter isn't there, is too old, or lacks NumPy or the simulator; or the suite's own error.
    """

    def __init__(self, config: SuiteConfig) -> None:
        self.told = describe(config)
        self._config = config
        self.name, self.spec = self.told.name, self.told.spec
        self.tasks, self.all_tasks = self.told.tasks, self.told.all_tasks
        self.one_environment_per_process = self.told.one_environment_per_process
        self.task_change_is_slow = self.told.task_change_is_slow
        self.real_world = self.told.real_world

    @property
    def protocol(self) -> dict[str, str | int | float]:
        return dict(self.told.protocol)

    def initial_states(self, task: Task, split: Split) -> list[int]:
        return list(self.told.states[task.name, split])

    def make_environment(self) -> Environment:
        """An environment in a process of its own."""
        host = _Host(self._config)
        try:
            return (_Unseen if host.ask("build", self.told) else _Environment)(host)
        except BaseException:
            host.close()
            raise

    def make_expert(self, environment: Environment) -> Expert | None:
        assert isinstance(environment, _Environment)
        return _Expert(environment.host) if environment.host.ask("make_expert") else None


@functools.cache
def describe(config: SuiteConfig) -> Description:
    """Asks what the suite in `config.python` says; once, and then it is known.

    Raises:
        UserError: as `SuiteElsewhere`.
    """
    assert config.python
    _probe(config.python)
    line = _Host(config)
    try:
        description: Description = line.ask("describe", timeout=STARTUP_TIMEOUT_S)
    except RuntimeError as error:
        raise UserError(f"suite {config.name!r} can't be made: {error}") from error
    finally:
        line.close()
    return description


def _probe(python: str) -> None:
    try:
        done = subprocess.run(
            [python, "-c", PROBE],
            env=surroundings_of_another(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise cannot_start(python, error) from None
    where = f"suite.python {python!r} on {platform.node()}"
    said = ([line for line in done.stderr.splitlines() if line.strip()] or ["nothing"])[-1]
    version = done.stdout.split()
    if len(version) != 2 or not all(part.isdigit() for part in version):
        raise UserError(
            f"{where} isn't a Python: it said {brief(said)}; expected the path of a Python of 3.10 or newer"
        )
    if tuple(map(int, version)) < OLDEST:
        raise UserError(f"{where} is Python {'.'.join(version)}; expected 3.10 or newer")
    if done.returncode:
        raise UserError(
            f"{where} can't import NumPy: {said}. Install NumPy and the simulator there: {python} -m pip install numpy"
        )


class _Host:
    """The process of a `_Guest`, as this one sees it."""

    def __init__(self, config: SuiteConfig) -> None:
        self._where = f"suite.python {config.python!r} on {platform.node()}"
        self._process = Process(
            "simplevla.suites.elsewhere:answer", dataclasses.replace(config, python=None), config.python
        )

    def ask(self, method: str, *arguments: Any, timeout: float | None = None) -> Any:
        """Calls the method of `_Guest` and returns what it returns.

        Raises:
            UserError: it raised one, or lacks a module.
            EpisodeBroken: it raised one, or an EnvironmentGone.
            RuntimeError: it raised anything else, or the process died or is silent.
        """
        connection = self._process.connection
        try:
            connection.send((method, *arguments))
            if not connection.poll(timeout):
                raise RuntimeError(f"{self._where} said nothing for {timeout:g} s")
            kind, value = connection.recv()
        except (EOFError, OSError):
            self._process.join(1.0)
            raise RuntimeError(f"the process of {self._where} died (exit code {self._process.exitcode})") from None
        if kind == "value":
            return value
        if kind == "user_error":
            raise UserError(f"{value} (in {self._where})")
        if kind in BROKEN:
            raise BROKEN[kind](value)
        error = RuntimeError(f"{value.splitlines()[-1]} (in {self._where})")
        error.add_note(value)
        raise error

    def close(self) -> None:
        self._process.kill()


class _Environment(Environment):
    def __init__(self, host: _Host) -> None:
        self.host = host

    def reset(self, task: Task, initial_state: int) -> Observation:
        observation: Observation = self.host.ask("reset", task, initial_state)
        return observation

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        result: ChunkResult = self.host.ask("step_chunk", actions)
        if isinstance(result, ChunkResult):
            look = functools.partial(self.host.ask, "observation")
            result = result.seen_by(look)
        return result

    def render(self) -> np.ndarray:
        picture: np.ndarray = self.host.ask("render")
        return picture

    def watch(self) -> None:
        self.host.ask("watch")

    def events(self) -> tuple[str, ...] | None:
        events: tuple[str, ...] | None = self.host.ask("events")
        return events

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.host.ask("close", timeout=CLOSE_TIMEOUT_S)
        self.host.close()


class _Unseen(_Environment):
    """One whose suite resets siblings in its own way."""

    def reset_unseen(self, task: Task, initial_state: int) -> Observation | None:
        observation: Observation | None = self.host.ask("reset_unseen", task, initial_state)
        return observation


class _Expert(Expert):
    def __init__(self, host: _Host) -> None:
        self._host = host

    def reset(self) -> None:
        self._host.ask("reset_expert")

    def action(self) -> np.ndarray:
        action: np.ndarray = self._host.ask("action")
        return action


class _Guest:
    """The suite and one environment, in the other interpreter; the line asks for its methods."""

    environment: Environment
    expert: Expert | None
    result: ChunkResult

    def __init__(self, config: SuiteConfig) -> None:
        self._config = config
        self.name = config.name
        self.module = config.name.partition(":")[0].partition(".")[0]

    @functools.cached_property
    def suite(self) -> Suite:
        from simplevla.suites.registry import make_suite

        return make_suite(self._config)

    def describe(self) -> Description:
        return Description.of(self.suite)

    def build(self, told: Description) -> bool:
        """True if the environment has a `reset_unseen` of its own."""
        told.check_same(self.suite)
        self.environment = self.suite.make_environment()
        return type(self.environment).reset_unseen is not Environment.reset_unseen

    def reset(self, task: Task, initial_state: int) -> Observation:
        return self.environment.reset(task, initial_state)

    def reset_unseen(self, task: Task, initial_state: int) -> Observation | None:
        return self.environment.reset_unseen(task, initial_state)

    def step_chunk(self, actions: np.ndarray) -> Any:
        """The result without its observation, which is rendered if somebody looks."""
        self.result = self.environment.step_chunk(actions)
        if not isinstance(self.result, ChunkResult):
            return self.result
        nothing: Any = None
        return self.result.seen_by(nothing)

    def observation(self) -> Observation:
        return self.result.observation

    def render(self) -> np.ndarray:
        return self.environment.render()

    def watch(self) -> None:
        self.environment.watch()

    def events(self) -> tuple[str, ...] | None:
        return self.environment.events()

    def close(self) -> None:
        """A robot is let go; the process ends by being killed."""
        self.environment.close()

    def make_expert(self) -> bool:
        self.expert = self.suite.make_expert(self.environment)
        return self.expert is not None

    def reset_expert(self) -> None:
        assert self.expert is not None
        self.expert.reset()

    def action(self) -> np.ndarray:
        assert self.expert is not None
        return self.expert.action()


def answer(connection: Connection, sentinel: int) -> None:
    """The body of such a process: (kind, value or what was raised) for each question, until the line closes."""
    begin(sentinel)
    # Late, since the registry imports this module.
    from simplevla.suites.registry import missing_module

    guest = _Guest(connection.recv())
    with contextlib.suppress(EOFError):
        while True:
            method, *arguments = connection.recv()
            try:
                connection.send(("value", getattr(guest, method)(*arguments)))
            except EnvironmentGone as error:
                connection.send(("gone", str(error)))
            except EpisodeBroken as error:
                connection.send(("broken", str(error)))
            except Exception as error:
                if (missing := missing_module(error)) and missing != guest.module:
                    wanted = f"suite {guest.name!r} needs the module {missing!r}. Install the package that has it: "
                    connection.send(("user_error", f"{wanted}{sys.executable} -m pip install NAME"))
                elif isinstance(error, UserError):
                    connection.send(("user_error", str(error)))
                else:
                    connection.send(("error", traceback.format_exc()))
