"""One attempt of a suite's scripted expert, inside a worker process. Imports no torch, so that workers start fast."""

import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass

import numpy as np

from simplevla.config import DemosConfig
from simplevla.demonstrations.images import encode_png
from simplevla.demonstrations.writer import DemonstrationEpisode
from simplevla.suites.base import Environment, Expert, SuiteSpec
from simplevla.suites.registry import make_suite
from simplevla.types import Observation, Task


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Attempt number `number` (from 0) at demonstration `episode` of the dataset."""

    episode: int
    number: int
    task: Task
    initial_state: int


class DemonstrationWorker:
    """One environment with its expert."""

    def __init__(self, config: DemosConfig) -> None:
        self.config = config
        suite = make_suite(config.suite)
        self.spec: SuiteSpec = suite.spec
        self.environment: Environment = suite.make_environment()
        expert = suite.make_expert(self.environment)
        if expert is None:
            raise ValueError(
                f"suite {suite.name!r} has no scripted expert; give sft the folder of a dataset from elsewhere"
            )
        self.expert: Expert = expert

    def run(self, attempt: Attempt) -> DemonstrationEpisode | None:
        """The demonstration, or None if the task wasn't solved within its horizon. Depends on nothing but `attempt`."""
        rng = np.random.default_rng((self.config.seed, attempt.episode, attempt.number))
        observation = self.environment.reset(attempt.task, attempt.initial_state)
        self.expert.reset()
        observations: list[Observation] = []
        labels: list[np.ndarray] = []
        success = False
        while not success and len(labels) < attempt.task.horizon:
            label = human(self._label(attempt), self.spec, self.config, rng)
            observations.append(observation)
            labels.append(label)
            action = disturb(label, self.spec, self.config, rng)
            result = self.environment.step_chunk(action[None])
            observation, success = result.observation, result.success
        if not success:
            return None
        return DemonstrationEpisode(
            task=attempt.task.name,
            instruction=attempt.task.instruction,
            initial_state=attempt.initial_state,
            attempts=attempt.number + 1,
            images={camera: [encode_png(seen.images[camera]) for seen in observations] for camera in self.spec.cameras},
            state=np.stack([seen.state for seen in observations]).astype(np.float32),
            actions=np.stack(labels),
        )

    def _label(self, attempt: Attempt) -> np.ndarray:
        action = np.asarray(self.expert.action(), dtype=np.float32)
        if action.shape != (len(self.spec.action_names),) or not np.isfinite(action).all():
            raise ValueError(
                f"the expert of task {attempt.task.name!r} gave the action {action} in initial state "
                f"{attempt.initial_state}; expected {len(self.spec.action_names)} finite numbers"
            )
        return action


def human(label: np.ndarray, spec: SuiteSpec, config: DemosConfig, rng: np.random.Generator) -> np.ndarray:
    """The expert's action as a person would give it: in few levels, and sometimes at half speed.

    Few distinct commands make an imitator that is sure where it can be. A gripper in the last dimension is a switch and
    stays as it is.
    """
    moving = len(label) - 1 if "gripper" in spec.action_names[-1] else len(label)
    given = label.copy()
    if config.levels:
        given[:moving] = np.round(given[:moving] * config.levels) / config.levels
    if config.hesitation and rng.random() < config.hesitation:
        given[:moving] /= 2
    return given


def disturb(label: np.ndarray, spec: SuiteSpec, config: DemosConfig, rng: np.random.Generator) -> np.ndarray:
    """The action [A] to execute where the expert wants `label`: sometimes with Gaussian noise, kept in bounds.

    Executing disturbed actions while storing clean ones shows states off the expert's path and the way back (DART,
    arXiv 1703.09327). The std per dimension is `noise` times half the action range; a gripper in the last dimension is
    left alone, since a dropped object ends most tasks.
    """
    if rng.random() >= config.noise_probability:
        return label
    low, high = np.array(spec.action_low), np.array(spec.action_high)
    scale = config.noise * (high - low) / 2
    if "gripper" in spec.action_names[-1]:
        scale[-1] = 0.0
    noise = scale * rng.standard_normal(len(label))
    return np.where(scale > 0, np.clip(label + noise, low, high), label).astype(np.float32)


_worker: DemonstrationWorker | None = None


def start_process() -> None:
    """Prepare a worker process: one thread, and gone at Ctrl-C or when its parent is gone."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa's software renderer
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_follow_parent, daemon=True).start()


def run_attempt(config: DemosConfig, attempt: Attempt) -> DemonstrationEpisode | None:
    """`DemonstrationWorker.run` on the process's own worker, which is built at the first call."""
    global _worker
    if _worker is None or _worker.config != config:
        _worker = DemonstrationWorker(config)
    return _worker.run(attempt)


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
