"""The embedded suite with faults of the simulator in it.

FAULTS is a list such as `exit 5; build_exit 2 3`: at the fifth reset or chunk the process exits, and the second and third time
that anybody builds an environment it exits too. `always` in the place of numbers is from the second time on, for `build_...`
from the first. FAULTS_FOLDER is where it is counted, over all processes.
"""

import ctypes
import os
import signal
import time
from pathlib import Path

import numpy as np

from simplevla.config import SuiteConfig
from simplevla.suites.base import Environment, Expert, Suite
from simplevla.suites.registry import make_suite
from simplevla.types import ChunkResult, Observation, Task

HANG_S = 600


def make(config: SuiteConfig) -> Suite:
    """The tabletop suite, each of whose environments is wrapped."""
    suite = make_suite(SuiteConfig(name="tabletop", tasks=config.tasks))
    make_environment, make_expert = suite.make_environment, suite.make_expert

    def faulty() -> Environment:
        break_down(fault("build"))
        return FaultyEnvironment(make_environment())

    def expert(environment: Environment) -> Expert | None:
        assert isinstance(environment, FaultyEnvironment)
        return make_expert(environment.inner)

    suite.make_environment, suite.make_expert = faulty, expert  # type: ignore[method-assign]
    return suite


def fault(place: str) -> str:
    """What is wrong this time: `exit` and the like, or nothing; it is counted as another time."""
    with (Path(os.environ["FAULTS_FOLDER"]) / place).open("ab") as file:
        file.write(b".")
        file.flush()
        number = file.tell()
    for entry in os.environ["FAULTS"].split(";"):
        how, *numbers = entry.split() or [""]
        if how.startswith("build_") != (place == "build"):
            continue
        always = numbers == ["always"] and (place == "build" or number > 1)
        if always or str(number) in numbers:
            return how.removeprefix("build_")
    return ""


def break_down(how: str) -> None:
    """End this process, hang or raise, if `how` says so."""
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        os._exit(7)
    if how == "segfault":
        ctypes.string_at(0)
    if how == "hang":
        time.sleep(HANG_S)
    if how == "hold":
        # C code that keeps Python's lock.
        ctypes.PyDLL(None).sleep(HANG_S)
    if how == "raise":
        raise RuntimeError("the simulator diverged")


class FaultyEnvironment(Environment):
    """Passes on what it is told, until a fault's turn has come."""

    def __init__(self, inner: Environment) -> None:
        self.inner = inner

    def reset(self, task: Task, initial_state: int) -> Observation:
        return spoilt(self.inner.reset(task, initial_state), fault("call"))

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        how, result = fault("call"), self.inner.step_chunk(actions)
        success: object = "yes" if how == "success" else result.success
        seen = spoilt(result.observation, how)
        return ChunkResult(observation=seen, executed=result.executed, success=success)  # type: ignore[arg-type]

    def render(self) -> np.ndarray:
        return self.inner.render()

    def close(self) -> None:
        self.inner.close()


def spoilt(observation: Observation, how: str) -> Observation:
    """The observation as it is, or what is wrong with it; or the end of this process."""
    break_down(how)
    if how == "nan":
        return Observation(images=observation.images, state=np.full_like(observation.state, np.nan))
    if how == "shape":
        return Observation(images=observation.images, state=observation.state[:-1])
    return observation
