"""Training as its config says, in this process and its workers or on a Ray cluster, and the page about it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simplevla import hub
from simplevla.adapters.config import ContinualConfig
from simplevla.adapters.files import BANK
from simplevla.adapters.routing import ROUTED
from simplevla.config import EvalConfig, Precision, RolloutConfig, SFTConfig, SuiteConfig, TrainConfig
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.errors import UserError
from simplevla.evaluation.evaluate import loaded_for
from simplevla.evaluation.provenance import START_SHA256, policy_fingerprint
from simplevla.novelty.behaviour import Behaviour, Novelty, Reference, behaviour_of, solved_episodes
from simplevla.novelty.replay import Replay
from simplevla.policies.trained_on import FILE as TRAINED_ON
from simplevla.policies.trained_on import read_stages, recorded_reading
from simplevla.report import page
from simplevla.report.evidence import gather_evidence
from simplevla.report.novelty import FOLDER, write_novelty
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.storage import FolderLock, read_json
from simplevla.suites.registry import make_suite
from simplevla.training import continual as tasks
from simplevla.training import imitation, loop
from simplevla.training.imitator import Imitator
from simplevla.training.learner import Learner
from simplevla.training.loop import RunOutcome
from simplevla.training.run_folder import CONFIG, load_config


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


def novelty_of_run(run: Path | str, demos: Path | str | None = None) -> Novelty:
    """Compares solved held-out episodes before and after RL with demonstrations; writes the folder `run/novelty`.

    The next report of `run` shows it.

    Args:
        run: folder of a finished run of `train`.
        demos: the demonstrations; None: those that the run's first policy was trained on.

    Raises:
        UserError: the run isn't finished, its first policy is another one now, the demonstrations aren't known; or as
            in `novelty_of`.
    """
    run = Path(run)
    config = load_config(TrainConfig, run)
    before, after = hub.local_folder(config.policy, "model"), run / "policy"
    if not (after / "model.safetensors").is_file():
        raise UserError(f"{run} has no policy yet; let the run finish: simplevla train --resume {run}")
    if read_json(run / "environment.json").get(START_SHA256) not in (None, policy_fingerprint(before)):
        raise UserError(f"{before} isn't the policy that {run} started from any more (its sha256 differs)")
    dataset = LeRobotDataset(demos) if demos else _imitated(run, config)
    with FolderLock(run):
        return novelty_of(
            before, after, dataset, config.suite, run / FOLDER, config.rollout, config.device, config.precision
        )


def novelty_of(
    before: Path | str,
    after: Path | str,
    demos: Path | str | LeRobotDataset,
    suite_config: SuiteConfig,
    out: Path | str,
    rollout: RolloutConfig | None = None,
    device: str = "cpu",
    precision: Precision = "float32",
    adapter: str = "",
) -> Novelty:
    """Compares solved held-out episodes of two policies with demonstrations; writes `novelty.json` and films to `out`.

    Args:
        before: folder of a policy, or `hf://OWNER/NAME` on the hub; so is `after`.
        demos: a LeRobotDataset of the suite's tasks, its folder, or `hf://OWNER/NAME`.
        adapter: that acts in each policy that has adapters, as in `evaluate`.

    Raises:
        UserError: the policies were trained on different suites or solve nothing, the demonstrations are of another
            suite or fewer than two of a task, or an environment keeps breaking.
    """
    suite, rollout = make_suite(suite_config), rollout or RolloutConfig()
    dataset = demos if isinstance(demos, LeRobotDataset) else LeRobotDataset(demos)
    reference = Reference.of(dataset, suite)
    folders = {name: hub.local_folder(folder, "model") for name, folder in (("before", before), ("after", after))}
    adapted = {name for name, folder in folders.items() if (folder / BANK).is_file()}
    if adapter and not adapted:
        raise UserError(f"adapter is {adapter!r}, and neither policy has adapters; leave it out")
    for name in sorted(adapted) if adapter not in ("", ROUTED) else ():
        if not ((folders[name] / BANK).parent / adapter).is_dir():
            raise UserError(f"{folders[name]} has no adapter {adapter!r}; name one that it has, or {ROUTED}")
    stages = [read_stages(folder / TRAINED_ON) for folder in folders.values()]
    if len(known := {found[-1].suite for found in stages if found and found[-1].suite}) > 1:
        raise UserError(
            f"the policies were trained on different suites, {' and '.join(sorted(map(str, known)))}; novelty compares two of one suite"
        )
    sides: dict[str, Behaviour] = {}
    jobs: list[Replay] = []
    for name, folder in folders.items():
        # One at a time, as on a GPU there may be no room for two.
        acting = adapter if name in adapted else ""
        policy = loaded_for(suite, folder, rollout, EvalConfig(), device, precision, acting)
        with RolloutEngine(suite_config, rollout, policy.chunk_length) as engine:
            jobs, episodes = solved_episodes(engine, policy, suite, EvalConfig(), name)
        sides[name] = behaviour_of(jobs, episodes, reference, suite, suite_config, rollout)
    if not any(side.solved for side in sides.values()):
        raise UserError(f"neither policy solved one of {episodes} episodes, so there is no behaviour to compare")
    found = Novelty(
        suite=suite.name,
        split=EvalConfig().split,
        protocol=suite.protocol,
        thresholds={task: demonstrations.threshold for task, demonstrations in reference.tasks.items()},
        demonstrations=reference.behaviour,
        after_sha256=policy_fingerprint(folders["after"]),
        adapter=adapter,
        **sides,
    )
    write_novelty(Path(out), found, jobs, dataset, suite, suite_config, rollout)
    return found


def _imitated(run: Path, config: TrainConfig) -> LeRobotDataset:
    """The demonstrations that the first policy of `run` was trained on, by the config of its run of `sft`."""
    file = Path(config.policy).parent / CONFIG
    if not (file.is_file() and read_json(file).get("dataset")):
        raise UserError(
            f"{run} doesn't say what its first policy, {config.policy}, was trained on: name the dataset with --demos FOLDER"
        )
    imitation = load_config(SFTConfig, file.parent)
    return LeRobotDataset(imitation.dataset, recorded_reading(imitation))


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
