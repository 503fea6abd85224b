"""Supervised fine-tuning: a policy learns to continue demonstrations, one chunk at a time."""

import itertools
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simplevla import hub
from simplevla.adapters.bank import AdapterBank
from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.load import load_policy
from simplevla.allocation import keep_freed_memory
from simplevla.config import EvalConfig, RolloutConfig, SFTConfig, to_dict
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.demonstrations.joined import require_one_size
from simplevla.demonstrations.outlook import outlook
from simplevla.effect import check_sft, warn_of_idle
from simplevla.errors import UserError
from simplevla.evaluation.evaluate import Show, evaluate_with
from simplevla.policies.base import Policy
from simplevla.policies.load import check_fits, check_fits_suite, move_to_device
from simplevla.policies.registry import with_preset
from simplevla.policies.trained_on import (
    TrainedOn,
    layout_differences,
    recorded_reading,
    warn_of_differences,
    with_stage,
)
from simplevla.progress import Progress
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.storage import FolderLock, atomic_folder
from simplevla.suites.registry import make_suite
from simplevla.terminal import Console
from simplevla.training.batches import Samples, chunk_batches
from simplevla.training.checkpoint import Checkpoint, save_checkpoint
from simplevla.training.chunks import ChunkBatch
from simplevla.training.determinism import deterministic
from simplevla.training.imitator import ImitationTrainer, Imitator, weighted_losses
from simplevla.training.learning_rate import with_learning_rate
from simplevla.training.run_folder import (
    load_config,
    newest_checkpoint,
    open_run,
    record_facts,
    require_same,
    write_config,
)
from simplevla.training.runlog import MetricsFile, environment_facts
from simplevla.training.tracking import Tracker

LOG_EVERY = 25
"""Batches per line of metrics.jsonl."""

KEEP_CHECKPOINTS = 2

ADAPTER = "sft"
"""Name of the adapter that `adapter_rank` asks for."""

console = Console()

MakeTrainer = Callable[[Policy, SFTConfig], ImitationTrainer]


def sft(config: SFTConfig, run: Path, resume: bool = False, make_trainer: MakeTrainer = Imitator) -> Path:
    """Trains a policy on a dataset of demonstrations; returns the folder of the trained policy, `run/policy`.

    Batch number n depends on (seed, n) alone, so that a resumed run goes on as if it had never stopped.

    Args:
        resume: go on from the newest checkpoint of `run`.
        make_trainer: what trains the policy.

    Raises:
        UserError: dataset, policy, suite or run folder don't fit each other, or the device isn't there.
    """
    if not config.dataset:
        raise UserError("no demonstrations given; name the folder of a dataset: --dataset runs/demos")
    keep_freed_memory()
    with open_run(run, resume, "sft") as folder:
        config = replace(
            config,
            policy=hub.pinned(config.policy, "model"),
            dataset=hub.pinned(config.dataset, "dataset"),
            replay=tuple(hub.pinned(source, "dataset") for source in config.replay),
        )
        checkpoint = None
        if resume:
            before = load_config(SFTConfig, run)
            config = require_same(run, config, _extending(config))
            checkpoint = newest_checkpoint(run, "batch", min(before.validate_every, before.batches))
        else:
            check_sft(config)
        return _sft(config, run, folder, checkpoint, make_trainer)


def _sft(
    config: SFTConfig, run: Path, folder: FolderLock, checkpoint: Checkpoint | None, make_trainer: MakeTrainer
) -> Path:
    dataset, *replayed = datasets = [LeRobotDataset(source, config) for source in (config.dataset, *config.replay)]
    for read in datasets:
        console.print(outlook(read), highlight=False, soft_wrap=True)
    policy = load_policy(checkpoint.policy) if checkpoint else start_policy(config, dataset)
    if config.adapter_rank and checkpoint is None:
        add_adapter(policy, config, dataset.instructions_met)
    move_to_device(policy, config.device)
    stage = sft_stage(dataset)
    if checkpoint is None:
        warn_of_layout(policy.trained_on, stage, f"the policy in {config.policy}")
    for earlier in replayed:
        require_fits(policy, earlier)
        other = sft_stage(earlier)
        warn_of_layout([other], stage, f"the replayed dataset {earlier.folder}")
        if other not in policy.trained_on:
            policy.trained_on = (*policy.trained_on, other)
    require_one_size(policy.cameras, {str(read.folder): read.cameras for read in datasets})
    policy.trained_on = with_stage(policy.trained_on, stage)
    config = replace(config, optimizer=with_learning_rate(config.optimizer, policy, "sft"))
    first = int(checkpoint.state["update"]) if checkpoint else 0
    if config.batches < first:
        raise UserError(f"batches is {config.batches}, and {run} has done {first}; expected as many or more")
    trainer = make_trainer(policy, config)
    if checkpoint:
        trainer.load_optimizer_state(checkpoint.optimizer(), first)
    samples = Samples(config, dataset, replayed)
    idle, frames = (sum(values) for values in zip(*((d.rows.idle.sum(), d.num_frames) for d in datasets), strict=True))
    said = f"{idle:,} of {frames:,} frames are idle; --idle-frames {config.idle_frames}"
    console.print(said, highlight=False, soft_wrap=True)
    write_config(run, config)
    record_facts(run, environment_facts(config.seed, dataset.origin or {}), first)
    with ExitStack() as stack:
        stack.enter_context(deterministic(config.device))
        tracker = stack.enter_context(Tracker(config.tracker, run, to_dict(config), "batch"))
        keep_bytes = checkpoint.state["metrics_bytes"] if checkpoint else 0
        batches = stack.enter_context(chunk_batches(config, run, datasets, policy, samples.requests(first)))
        log = stack.enter_context(MetricsFile(run, keep_bytes, first, "batch", folder.check, "sft", tracker))
        trial = None
        if config.eval_episodes_per_task > 0:
            trial = stack.enter_context(ClosedLoop(config, policy))
        progress = stack.enter_context(Progress("sft", config.batches, first))
        window, validated = Window(), ""
        for number in range(first, config.batches):
            stats = trainer.update(next(batches), number)
            window.add(stats["loss"], stats["grad_norm"])
            done = number + 1
            validate = config.validates(done)
            shown = f"loss {window.loss:.3f}"
            progress.update(done, shown + validated)
            if done % LOG_EVERY == 0 or validate:
                log.write({"batch": done, **window.metrics(), "lr": stats["lr"]})
                window = Window()
            if validate:
                trainer.sync()
                held_out = itertools.islice(batches, len(samples.validation))
                measured = validation_metrics(policy, config, held_out)
                log.write({"batch": done, **measured})
                if trial is not None:
                    success = trial.metrics(policy, partial(_show_trial, progress, done))
                    log.write({"batch": done, **success})
                    measured |= success
                validated = _said(measured)
                progress.update(done, shown + validated)
                state = {"metrics_bytes": log.length}
                save_checkpoint(run / "checkpoints", done, policy, trainer.optimizer_state(), state, KEEP_CHECKPOINTS)
    with atomic_folder(run / "policy") as temporary:
        policy.save(temporary)
    return run / "policy"


FREE = ("validate_every", "eval_episodes_per_task", "memory_gb", "tracker", "suite.python")


def _extending(config: SFTConfig) -> dict[str, str]:
    """Settings that may change when a run goes on, and why `batches` may not where the learning rate depends on it."""
    depends = "" if config.schedule == "constant" else " (the cosine schedule's learning rates depend on it)"
    return {"batches": depends, **dict.fromkeys(FREE, "")}


def start_policy(config: SFTConfig, dataset: LeRobotDataset) -> Policy:
    """A new policy with the dataset's statistics, or a saved one, which keeps the statistics it was trained with.

    Raises:
        UserError: the saved policy doesn't fit the dataset.
    """
    if not _is_saved(config.policy):
        new = with_preset(config.policy)
        if new.action_bounds is None and config.bounds == "quantile":
            raise UserError(
                f"--bounds is 'quantile', and {config.policy} has no bounds: it divides by the standard deviation, and would learn what "
                "lies beyond; expected 'min_max'. Remove the episodes with extremes from the dataset"
            )
        return new.create(
            config.policy,
            cameras=list(dataset.cameras),
            state_dim=dataset.state_dim,
            action_dim=dataset.action_dim,
            chunk_length=config.chunk_length,
            head=config.head,
            instructions=dataset.instructions,
            statistics=dataset.statistics_for_policy(config.bounds if new.action_bounds else None),
            seed=config.seed,
        )
    policy = load_policy(config.policy)
    require_fits(policy, dataset)
    own = {"head", "bounds"} | ({"chunk_length"} if config.chunk_length != policy.chunk_length else set())
    warn_of_idle(config, dict.fromkeys(sorted(own), f"the policy in {config.policy} keeps its own"))
    return policy


def _is_saved(policy: str) -> bool:
    return hub.is_reference(policy) or Path(policy).is_dir()


def require_fits(policy: Policy, dataset: LeRobotDataset) -> None:
    """Refuses a dataset that `policy` can't learn from.

    Raises:
        UserError: cameras, dimensions, or the range of the actions don't fit.
    """
    cameras, where = list(dataset.cameras), f"the dataset {dataset.folder}"
    check_fits(policy, cameras, dataset.state_dim, dataset.action_dim, where, remedy(policy, dataset))
    if policy.action_bounds is not None:
        low, high = (np.array(policy.statistics.action[name]) for name in policy.action_bounds)
        check_actions_in_range(low, high, dataset.rows.actions)


def remedy(policy: Policy, dataset: LeRobotDataset) -> str:
    """Remedy for a dataset that doesn't fit: give its cameras the policy's names, as in its training if it says."""
    if all(camera in dataset.cameras for camera in policy.cameras):
        return "Train one on its demonstrations."
    recorded = [stage.reading.cameras for stage in policy.trained_on if stage.reading and stage.reading.cameras]
    named = recorded[-1] if recorded else [f"{camera}=FEATURE" for camera in policy.cameras]
    return f"Name its cameras: --cameras {' '.join(named)}"


def add_adapter(policy: Policy, config: SFTConfig, instructions: Sequence[str]) -> None:
    """Gives the policy the LoRA that `config.adapter_rank` asks for, and lets that alone be trained.

    Raises:
        UserError: the policy is a new one, has adapters already, or can't have any.
    """
    if not _is_saved(config.policy):
        raise UserError(
            f"adapter_rank is {config.adapter_rank} and the policy {config.policy!r} a new one, whose base would stay random; "
            "expected the folder of a saved policy, or adapter_rank 0"
        )
    if policy.adapter_bank is not None:
        raise UserError(
            f"adapter_rank is {config.adapter_rank}, and {config.policy} has adapters already; leave it at 0 to train the one "
            "that is ready, or make a new one: simplevla adapters new"
        )
    bank = AdapterBank(policy)
    adapter = AdapterConfig(rank=config.adapter_rank, alpha=float(config.adapter_rank))
    bank.add(ADAPTER, adapter, instructions=instructions, seed=config.seed)
    bank.activate(ADAPTER, training=True)


def warn_of_layout(stages: Sequence[TrainedOn], now: TrainedOn, what: str) -> None:
    """Warns where the numbers of the dataset mean something else than those of `what`."""
    if found := layout_differences(stages, now.state_names, now.action_names, now.control_hz):
        warnings.warn(
            f"{what} and this dataset differ: {'; '.join(found)}. If that isn't meant, use data of one layout and rate",
            stacklevel=2,
        )


def sft_stage(dataset: LeRobotDataset) -> TrainedOn:
    """The record of what imitation of this dataset meets."""
    origin = dataset.origin or {}
    tasks, states = dataset.task_names, dataset.initial_states
    met: dict[str, list[int]] | None = None
    if "suite" in origin and tasks is not None and states is not None:
        met = {task: [] for task in tasks}
        for task, state in zip(tasks, states, strict=True):
            met[task].append(state)
    return TrainedOn(
        stage="sft",
        suite=origin.get("suite"),
        protocol=origin.get("protocol", {}),
        cameras=dict(dataset.cameras),
        state_names=_dimension_names(dataset.features[dataset.reading.state]),
        action_names=_dimension_names(dataset.features[dataset.reading.actions]),
        control_hz=dataset.fps,
        instructions=tuple(dataset.instructions_met),
        reading=recorded_reading(dataset.reading),
        initial_states=None if met is None else {task: tuple(numbers) for task, numbers in met.items()},
    )


def _dimension_names(feature: dict[str, Any]) -> tuple[str, ...]:
    """Names of a vector's dimensions, which LeRobot has as a list or as one under one key; empty if there are none."""
    names = feature.get("names")
    if isinstance(names, dict):
        names = next(iter(names.values()), None)
    if not isinstance(names, list) or len(names) != feature["shape"][0]:
        return ()
    return tuple(map(str, names))


def check_actions_in_range(low: np.ndarray, high: np.ndarray, actions: np.ndarray) -> None:
    """Refuses demonstrations of which over 1 % of the frames lie outside what the policy can express, by over a tenth.

    Less is harmless: such actions become the outermost ones. A dimension that the policy knows at one value only has a
    slack of a hundredth of the value, and each at least a thousandth of the widest dimension's range.

    Args:
        low, high: [A], the policy's smallest and largest actions, frozen with it.
        actions: [F, A], the frames' own.

    Raises:
        UserError: naming the first dimension, and how many frames.
    """
    width, size = high - low, np.abs([low, high]).max(0)
    slack = 0.1 * width + np.where(width <= 1e-3 * size, 0.01 * size, 0.0)
    slack = slack.clip(min=max(1e-3 * width.max(), 1e-6))
    outside = np.maximum((actions < low - slack).mean(0), (actions > high + slack).mean(0))
    for dimension in np.flatnonzero(outside > 0.01):
        got = actions[:, dimension]
        raise UserError(
            f"action dimension {dimension} of the dataset runs from {got.min():.4g} to {got.max():.4g}; the policy's "
            f"frozen statistics allow {low[dimension]:.4g} to {high[dimension]:.4g}, and {outside[dimension]:.1%} of the "
            "frames lie beyond one of them. Are the units the same? Else train a new policy."
        )


def validation_metrics(policy: Policy, config: SFTConfig, batches: Iterable[ChunkBatch]) -> dict[str, float]:
    """The imitation loss on held-out demonstrations without augmentation."""
    total = valid = samples = 0.0
    for batch in batches:
        with torch.inference_mode(), torch.random.fork_rng():
            torch.manual_seed(int(samples))
            loss = sum(share * float(part) for part, share in weighted_losses(policy, config, batch))
        total += loss * int(batch.mask.sum())
        valid += int(batch.mask.sum())
        samples += len(batch.actions)
    return {"validation_loss": total / valid} if valid else {}


class Window:
    """Means since the last line of the log."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.sums = np.zeros(2)
        self.count = 0

    def add(self, loss: float, grad_norm: float) -> None:
        self.sums += (loss, grad_norm)
        self.count += 1

    @property
    def loss(self) -> float:
        return float(self.sums[0]) / self.count

    @property
    def rate(self) -> float:
        return self.count / (time.perf_counter() - self.started)

    def metrics(self) -> dict[str, float]:
        loss, grad_norm = (self.sums / self.count).tolist()
        return {"loss": loss, "grad_norm": grad_norm, "batches_per_s": self.rate}


class ClosedLoop:
    """Greedy success on train initial states."""

    def __init__(self, config: SFTConfig, policy: Policy) -> None:
        self.suite = make_suite(config.suite)
        check_fits_suite(policy, self.suite.spec)
        warn_of_differences(policy.trained_on, policy.cameras, self.suite)
        self.settings = EvalConfig(split="train", episodes_per_task=config.eval_episodes_per_task, seed=config.seed)
        self.engine = RolloutEngine(config.suite, RolloutConfig(), policy.chunk_length)

    def __enter__(self) -> "ClosedLoop":
        self.engine.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.engine.__exit__(*exception)

    def metrics(self, policy: Policy, show: Show) -> dict[str, float]:
        result = evaluate_with(self.engine, policy, self.suite, self.settings, show)
        return {
            "success": result.overall.rate,
            **{f"success/{name}": r.rate for name, r in result.by_task.items() if r.n},
        }


def _show_trial(progress: Progress, batches: int, done: int, solved: int) -> None:
    progress.update(batches, f"evaluating, {solved} of {done} solved")


def _said(measured: Mapping[str, float]) -> str:
    """The end of a progress line, of a validation."""
    loss, success = measured.get("validation_loss"), measured.get("success")
    said = "" if loss is None else f", validation loss {loss:.3f}"
    return said if success is None else f"{said}, success {success:.1%}"
