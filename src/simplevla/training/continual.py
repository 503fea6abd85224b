"""Continual training: tasks one after another, each by RL, with every task evaluated after each.

A run folder holds `row_0.json` (the base policy on every task) and per task `1_NAME/`, `2_NAME/` ... with

    demos/, warmup/  demonstrations of the task by the suite's expert, and imitation of these or of given ones
    start/           the policy that RL starts from, its adapter ready
    rl/              an ordinary RL run, unless imitation alone is asked for
    row.json         every task's held-out success afterwards
    adapter/         the task's adapter alone, with its success
    stage.json       how RL ended, episodes, bytes of the adapter

`continual.json`, the result, and `metrics.jsonl` with the rows of the success matrix. What exists is not done again, so
a run goes on wherever it was stopped.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simplevla import hub
from simplevla.adapters.bank import bank_of
from simplevla.adapters.config import ContinualConfig
from simplevla.adapters.load import load_policy
from simplevla.adapters.metrics import Stage, SuccessMatrix
from simplevla.adapters.structures import adapter_name, as_deployed, check_base, check_tasks, prepare
from simplevla.checked import from_dict
from simplevla.config import EvalConfig, SuiteConfig, to_dict
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.demonstrations.generate import generate
from simplevla.demonstrations.joined import require_one_size
from simplevla.effect import idle_in_ray, refuse_idle, warn_of_idle
from simplevla.errors import UserError
from simplevla.evaluation.evaluate import evaluate_with, showing_episodes
from simplevla.evaluation.provenance import commit
from simplevla.evaluation.result import EvaluationResult, read_result, write_result
from simplevla.policies.base import Policy, Sampling
from simplevla.policies.load import check_fits
from simplevla.reading import ReadingConfig
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.storage import atomic_folder, read_json, write_json
from simplevla.suites.base import Suite
from simplevla.suites.registry import make_suite
from simplevla.terminal import Console
from simplevla.training.health import Health
from simplevla.training.imitation import MakeTrainer, sft
from simplevla.training.imitator import Imitator
from simplevla.training.learner import Learner
from simplevla.training.loop import MakeEngine, MakeLearner, RunOutcome, local_engine, train
from simplevla.training.run_folder import CONFIG, open_run, require_same, write_config
from simplevla.training.runlog import METRICS, MetricsFile, read_rows
from simplevla.training.tracking import Tracker

console = Console()


@dataclass(frozen=True, kw_only=True)
class Makers:
    """Makers of what rolls out and trains; by themselves in this process and its workers."""

    engine: MakeEngine = local_engine
    learner: MakeLearner = Learner
    imitator: MakeTrainer = Imitator


LOCAL = Makers()


def continual(config: ContinualConfig, run: Path, resume: bool = False, makers: Makers = LOCAL) -> dict[str, Any]:
    """Trains the tasks one after another in the folder `run`; returns the content of its continual.json.

    Raises:
        UserError: `run` exists (or has another config on resume) or is in use, unknown tasks, an unfit policy.
    """
    suite = make_suite(config.train.suite)
    check_tasks(config, suite)
    with open_run(run, resume, "continual"):
        config = replace(
            config,
            train=replace(config.train, policy=hub.pinned(config.train.policy, "model")),
            data=tuple(f"{task}={hub.pinned(folder, 'dataset')}" for task, folder in config.folders.items()),
        )
        if resume:
            require_same(run, config, {"train.suite.python": ""})
        else:
            _check_effect(config)
        write_config(run, config)
        if (run / "continual.json").exists():
            return read_json(run / "continual.json")
        return _train_tasks(config, suite, run, makers)


def _train_tasks(config: ContinualConfig, suite: Suite, run: Path, makers: Makers) -> dict[str, Any]:
    policy = hub.local_folder(config.train.policy, "model")
    base = load_policy(policy)
    check_base(config, base, suite)
    sizes = {
        demos: _checked_data(base, suite, task, demos, config.warmup).cameras for task, demos in config.folders.items()
    }
    if config.warmup_demos:
        sizes[f"the suite {suite.name}"] = suite.spec.cameras
    if config.replay_share:
        require_one_size(base.cameras, sizes)
    chunk_length = base.chunk_length
    del base

    def row(number: int, file: Path, folder: Path) -> EvaluationResult:
        if not file.exists():
            _release()
            result = _evaluated(config, suite, folder, chunk_length)
            _record(config, run, number, result)
            write_result(file, replace(result, policy=str(folder) if number else config.train.policy))
        return read_result(file)

    rows = [row(0, run / "row_0.json", policy)]
    stages = []
    for number, task in enumerate(config.tasks, start=1):
        folder = run / f"{number}_{task}"
        console.rule(f"{_place(config, task)} ({config.structure})")
        rate = rows[0].by_task[task].rate
        if rate == 0:
            console.print(f"warning: the base never solves {task}: RL may find no signal", style="yellow")
        stages.append(_stage(config, suite, task, number, policy, folder, makers))
        policy = _trained(config, folder)
        console.print(f"{_place(config, task)}: evaluating all tasks")
        rows.append(row(number, folder / "row.json", policy))
        _export(config, task, rows[-1], policy, folder / "adapter")
        done = ", ".join(f"{name} {rate.rate:.0%}" for name, rate in rows[-1].by_task.items())
        console.print(f"held-out success after {task}: {done}")
    result = _result(config, run, rows, stages)
    write_json(run / "continual.json", result)
    return result


def _evaluated(config: ContinualConfig, suite: Suite, folder: Path, chunk_length: int) -> EvaluationResult:
    """Held-out success of the policy in `folder` on all tasks; its simulators end before RL has others.

    Raises:
        UserError: the environment broke every episode of a task.
    """
    settings = EvalConfig(episodes_per_task=config.eval_episodes_per_task, seed=config.train.seed)
    with RolloutEngine(config.train.suite, config.train.rollout, chunk_length) as engine:
        deployed = as_deployed(config, load_policy(folder, config.train.device), suite)
        with showing_episodes("held-out evaluation", suite, settings) as show:
            result = evaluate_with(engine, deployed, suite, settings, show)
    if result.unmeasured:
        raise UserError(
            f"the environment broke every episode of {', '.join(result.unmeasured)}: {result.errors}. The success "
            "matrix needs all tasks: mend the environment, and go on with --resume"
        )
    return result


def _record(config: ContinualConfig, run: Path, number: int, result: EvaluationResult) -> None:
    """Appends the success after `number` tasks to metrics.jsonl, TensorBoard and the tracker."""
    # A row that was recorded before, and then lost its file, is recorded once.
    lines = (run / METRICS).read_bytes().splitlines(keepends=True) if (run / METRICS).exists() else []
    kept = sum(map(len, lines[:number]))
    success = {task: (rate.solved, rate.n) for task, rate in result.by_task.items()}
    with (
        Tracker(config.train.tracker, run, to_dict(config), "tasks_trained") as tracker,
        MetricsFile(run, kept, number, "tasks_trained", tracker=tracker) as log,
    ):
        log.write({"tasks_trained": number, "held_out_by_task": success})


def _stage(
    config: ContinualConfig, suite: Suite, task: str, number: int, previous: Path, folder: Path, makers: Makers
) -> dict[str, Any]:
    """Trains `task` in `folder`, from the policy that the task before left."""
    if (folder / "stage.json").exists():
        stage = read_json(folder / "stage.json")
        from_dict(Stage, stage, source=str(folder / "stage.json"))
        return stage
    only = replace(config.train.suite, tasks=(task,))
    start = folder / "start"
    if not start.exists():
        _write_start(config, suite, task, number, previous, start)
    _release()
    if task in config.folders or config.warmup_demos:
        start = _imitate(config, only, task, folder, start, makers.imitator)
        _release()
    rl = folder / "rl"
    outcome, rows = RunOutcome(reason="finished", update=0, message="learned by imitation alone"), []
    if config.stages != "sft":
        console.print(f"{_place(config, task)}: reinforcement learning")
        settings = replace(config.train, suite=only, policy=str(start))
        outcome = train(settings, rl, _goes_on(rl, start), makers.engine, makers.learner)
        rows = read_rows(rl)
    last: dict[str, Any] = next((row for row in reversed(rows) if "episodes_total" in row), {})
    _release()
    trained = load_policy(_trained(config, folder))
    stage = {
        "task": task,
        "outcome": outcome.reason,
        "message": outcome.message,
        "warnings": [str(warning) for warning, _ in Health(rows).found],
        "updates": outcome.update,
        "episodes": int(last.get("episodes_total", 0)),
        "minutes": last.get("elapsed_s", 0.0) / 60,
        "curve": [row["eval_success"] for row in rows if "eval_success" in row],
        "trained_parameters": sum(p.numel() for p in trained.parameters() if p.requires_grad),
        "adapter_bytes": bank_of(trained).bytes(adapter_name(config, task)) if config.structure != "full" else None,
    }
    if outcome.reason == "no_signal":
        console.print(f"warning: {task}: {outcome.message}", style="yellow")
    write_json(folder / "stage.json", stage)
    return stage


def _goes_on(stage: Path, start: Path) -> bool:
    """True if the RL or imitation in `stage` was begun; its config then names the policy and data where they are now.

    The folder of the whole run may have been moved since, or be spelled otherwise.
    """
    if not (stage / CONFIG).exists():
        return False
    settings = read_json(stage / CONFIG)
    before, now = Path(settings["policy"]).parents[1], start.parents[1]

    def found(value: Any) -> Any:
        if isinstance(value, list):
            return [found(one) for one in value]
        inside = isinstance(value, str) and Path(value).is_relative_to(before)
        return str(now / Path(value).relative_to(before)) if inside else value

    if before != now:
        moved = {key: found(settings[key]) for key in ("policy", "dataset", "replay") if key in settings}
        write_json(stage / CONFIG, settings | moved)
    return True


def _release() -> None:
    """Frees policies that nobody uses: one and its adapters refer to each other, so they wait to be looked for."""
    gc.collect()


def _write_start(config: ContinualConfig, suite: Suite, task: str, number: int, previous: Path, start: Path) -> None:
    """Writes the policy that learns `task`: the one before, with what is to be trained ready."""
    policy = load_policy(previous, config.train.device)
    if config.structure != "full":
        prepare(config, policy, suite, task, number)
    with atomic_folder(start) as temporary:
        policy.save(temporary)


def _check_effect(config: ContinualConfig) -> None:
    """Refuses settings of the parts that are overwritten by others, and warns of parts that nothing uses.

    Raises:
        UserError: naming the first one.
    """
    train = config.train
    overwritten: dict[str, str] = {}
    for part, names in (("warmup", ("suite", "seed", "device", "precision", "tracker")), ("demos", ("suite",))):
        for name in names:
            if getattr(getattr(config, part), name) != getattr(train, name):
                overwritten[f"{part}.{name}"] = f"train.{name} holds there too"
    overwritten |= dict.fromkeys(("warmup.dataset", "warmup.policy", "warmup.replay"), "each task has its own")
    if config.warmup.replay_share != config.replay_share:
        overwritten["warmup.replay_share"] = "continual.replay_share holds"
    refuse_idle(
        config, {**overwritten, **idle_in_ray(train.ray, "train.ray."), **idle_in_ray(config.warmup.ray, "warmup.ray.")}
    )
    warn_of_idle(config, {"demos.episodes": "continual.warmup_demos says how many"})
    if not config.warmup_demos:
        warn_of_idle(config, {"demos": "continual.warmup_demos is 0"})
    if not (config.warmup_demos or config.data):
        warn_of_idle(config, {"warmup": "no task has demonstrations"})
    if config.structure == "full":
        warn_of_idle(config, {"adapter": "the structure is 'full'"})


def _place(config: ContinualConfig, task: str) -> str:
    return f"task {config.tasks.index(task) + 1} of {len(config.tasks)}, {task}"


def _trained(config: ContinualConfig, folder: Path) -> Path:
    """The policy that a finished stage leaves."""
    return folder / ("warmup" if config.stages == "sft" else "rl") / "policy"


def _export(config: ContinualConfig, task: str, row: EvaluationResult, policy: Path, folder: Path) -> None:
    """The task's adapter as a folder of its own, with the success that was just measured."""
    if config.structure == "full" or folder.exists():
        return
    rate = row.by_task[task]
    bank_of(load_policy(policy)).export(
        adapter_name(config, task),
        folder,
        sampling=Sampling(greedy=True),
        seed=config.train.seed,
        success=(rate.solved, rate.n),
    )


def _imitate(
    config: ContinualConfig, only: SuiteConfig, task: str, folder: Path, start: Path, make_trainer: MakeTrainer
) -> Path:
    """Imitates the task's demonstrations, given ones or those of the suite's expert; returns the policy's folder."""
    run = folder / "warmup"
    *earlier, demos = _demonstrations(config, task, folder.parent)
    if not (run / "policy").exists():
        if task not in config.folders and not Path(demos).exists():
            console.print(f"{_place(config, task)}: demonstrations")
            generate(replace(config.demos, suite=only, episodes=config.warmup_demos), Path(demos))
        replay = tuple(earlier) if config.replay_share else ()
        settings = replace(config.warmup, dataset=demos)
        if replay:
            settings = replace(settings, replay=replay, replay_share=config.replay_share)
        settings = replace(settings, policy=str(start))
        if settings.eval_episodes_per_task:
            settings = replace(settings, suite=only)
        settings = replace(settings, seed=config.train.seed, device=config.train.device)
        settings = replace(settings, precision=config.train.precision, tracker=config.train.tracker)
        console.print(f"{_place(config, task)}: imitation")
        sft(settings, run, _goes_on(run, start), make_trainer)
    return run / "policy"


def _demonstrations(config: ContinualConfig, task: str, run: Path) -> list[str]:
    """Folders of the demonstrations of all tasks up to `task`, in their order, but of those that have none."""
    folders = []
    for number, other in enumerate(config.tasks, start=1):
        if other in config.folders or config.warmup_demos:
            folders.append(config.folders.get(other, str(run / f"{number}_{other}" / "demos")))
        if other == task:
            break
    return folders


def _checked_data(base: Policy, suite: Suite, task: str, folder: str, reading: ReadingConfig) -> LeRobotDataset:
    """The demonstrations of `task`; refused if they don't fit the policy or say something else."""
    dataset = LeRobotDataset(folder, reading)
    check_fits(base, list(dataset.cameras), dataset.state_dim, dataset.action_dim, f"the demonstrations of {task}")
    told = suite.task(task).instruction
    if told not in dataset.instructions:
        raise UserError(
            f"{folder}, the demonstrations of {task}, say {', '.join(map(repr, dataset.instructions))}; the suite says {told!r} for this task"
        )
    return dataset


def _doubts(row: EvaluationResult) -> list[str]:
    """Reasons to doubt a row, episodes that broke in it included."""
    broken = f"{row.env_errors} episodes that the environment broke are in no rate: {row.errors}"
    return [*row.doubts, *([broken] if row.env_errors else [])]


def _result(
    config: ContinualConfig, run: Path, rows: list[EvaluationResult], stages: list[dict[str, Any]]
) -> dict[str, Any]:
    tasks = tuple(rows[0].by_task)

    def cells(value: Callable[[Any], int]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(value(row.by_task[task]) for task in tasks) for row in rows)

    matrix = SuccessMatrix(
        tasks=tasks, order=config.tasks, solved=cells(lambda rate: rate.solved), n=cells(lambda rate: rate.n)
    )
    curves = {stage["task"]: stage["curve"] for stage in stages}
    complete = all(curves.values())
    return {
        **matrix.to_dict(config.structure, config.train.seed, curves if complete else None),
        "libero": matrix.libero(curves) if complete else None,
        "start_from": config.start_from,
        "episodes": sum(stage["episodes"] for stage in stages),
        "stages": stages,
        "doubts": list(dict.fromkeys(doubt for row in rows for doubt in _doubts(row))),
        "protocol": rows[0].protocol,
        "commit": commit(),
    }
