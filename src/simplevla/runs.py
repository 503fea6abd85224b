"""Training as its config says, in this process and its workers or on a Ray cluster, and the page about it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simplevla.adapters.config import ContinualConfig
from simplevla.config import SFTConfig, TrainConfig
from simplevla.errors import UserError
from simplevla.report import page
from simplevla.report.evidence import gather_evidence
from simplevla.training import continual as tasks
from simplevla.training import imitation, loop
from simplevla.training.imitator import Imitator
from simplevla.training.learner import Learner
from simplevla.training.loop import RunOutcome


def train(config: TrainConfig, run: Path | str, resume: bool = False) -> RunOutcome:
    """Improves a saved policy by RL; all about it lies in the new folder `run`, the result in `run/policy`.

    Args:
        resume: goes on with `run` from its newest checkpoint, and ends bit for bit as if it had never stopped.

    Raises:
        UserError: policy, suite, config or run folder don't fit each other, or an update was refused.
    """
    return loop.train(config, Path(run), resume, make_engine=_engine(config), make_learner=_learner(config))


def sft(config: SFTConfig, run: Path | str, resume: bool = False) -> Path:
    """Trains a policy to imitate demonstrations in the new folder `run`; returns the policy's folder, `run/policy`.

    Args:
        resume: as in `train`.

    Raises:
        UserError: dataset, policy, suite or run folder don't fit each other, or the device isn't there.
    """
    return imitation.sft(config, Path(run), resume, make_trainer=_imitator(config))


def continual(config: ContinualConfig, run: Path | str, resume: bool = False) -> dict[str, Any]:
    """Trains tasks one after another in the new folder `run`; returns the content of `run/continual.json`.

    The matrix of successes is evaluated on this machine, wherever RL's rollouts are.

    Args:
        resume: goes on with `run` wherever it was stopped.

    Raises:
        UserError: unknown tasks, or a policy, dataset or run folder that doesn't fit.
    """
    makers = tasks.Makers(
        engine=_engine(config.train), learner=_learner(config.train), imitator=_imitator(config.warmup)
    )
    return tasks.continual(config, Path(run), resume, makers)


def write_report(run: Path | str, episodes_per_task: int = 0) -> Path:
    """Evaluates and films a finished run's policies before and after RL; returns its page, `run/report.html`.

    Args:
        episodes_per_task: the first so many held-out initial states of each task; 0: all. Evaluations of all that are
            there already stay.

    Raises:
        UserError: the folder isn't one of `train`, or is damaged.
    """
    gather_evidence(Path(run), episodes_per_task)
    return page.write_report(Path(run))


def _engine(config: TrainConfig) -> loop.MakeEngine:
    if not (config.ray.actors or config.ray.simulators):
        return loop.local_engine
    with _needing_ray():
        from simplevla.distributed.engine import RayEngine
        from simplevla.distributed.simulators import engine_with_remote_simulators
    return RayEngine if config.ray.actors else engine_with_remote_simulators


def _learner(config: TrainConfig) -> loop.MakeLearner:
    if not config.ray.learners:
        return Learner
    with _needing_ray():
        from simplevla.distributed.learner import RayLearner
    return RayLearner


def _imitator(config: SFTConfig) -> imitation.MakeTrainer:
    if not config.ray.learners:
        return Imitator
    with _needing_ray():
        from simplevla.distributed.learner import RayImitator
    return RayImitator


@contextlib.contextmanager
def _needing_ray() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UserError(
            "ray.actors, ray.simulators and ray.learners need Ray: pip install 'simplevla[ray]'; or leave them at 0"
        ) from None
