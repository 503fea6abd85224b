"""The main loop of reinforcement learning: rollout, reward, selection, advantage, update, evaluation, checkpoint."""

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from simplevla import hub
from simplevla.adapters.load import load_policy
from simplevla.algorithm.advantage import group_relative_advantages
from simplevla.config import EvalConfig, TrainConfig, to_dict
from simplevla.effect import check_train
from simplevla.errors import UserError
from simplevla.evaluation.evaluate import evaluate_with
from simplevla.evaluation.provenance import START_SHA256, policy_fingerprint
from simplevla.evaluation.result import Rate, read_result, write_result
from simplevla.policies.base import Policy
from simplevla.policies.load import check_fits_suite
from simplevla.policies.trained_on import rl_stage, warn_of_differences, with_stage
from simplevla.record import record
from simplevla.rollout.collect import Collection, NoSignal, rewards
from simplevla.rollout.scheduler import Engine, RolloutEngine
from simplevla.rollout.states import StateSampler, make_sampler
from simplevla.storage import FolderLock, atomic_folder, read_as, write_json
from simplevla.suites.base import Suite
from simplevla.suites.registry import make_suite
from simplevla.training.checkpoint import Checkpoint, save_checkpoint
from simplevla.training.determinism import deterministic
from simplevla.training.health import Health, Row, sampled_success
from simplevla.training.learner import Learner, Trainer
from simplevla.training.learning_rate import with_learning_rate
from simplevla.training.rollouts import Rollouts, RolloutsAhead
from simplevla.training.run_folder import (
    Progress,
    load_config,
    newest_checkpoint,
    open_run,
    record_facts,
    require_same,
    write_config,
)
from simplevla.training.runlog import Environment, RunLog, environment_facts, read_rows
from simplevla.training.tracking import Tracker


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """Outcome of a run."""

    reason: Literal["finished", "reached", "all_solved", "no_signal"]
    """Reason: all updates done; `stop_at` reached; every episode succeeds; or no group with both outcomes."""
    update: int
    """Updates done."""
    message: str
    """Message to the user: what happened and what to do."""


EXTENDING = dict.fromkeys(
    (
        *("title", "updates", "stop_at", "eval_every", "eval_episodes_per_task"),
        *("checkpoint_every", "keep_checkpoints", "tracker", "suite.python"),
    ),
    "",
)
"""Settings that may change when a run is resumed: how long it lasts, what is seen of it, where its interpreter lies."""

MakeEngine = Callable[[TrainConfig, Policy], Engine]
MakeLearner = Callable[[Policy, TrainConfig], Trainer]


def local_engine(config: TrainConfig, policy: Policy) -> Engine:
    """Worker processes of this machine."""
    return RolloutEngine(config.suite, config.rollout, policy.chunk_length)


def train(
    config: TrainConfig,
    run: Path,
    resume: bool = False,
    make_engine: MakeEngine = local_engine,
    make_learner: MakeLearner = Learner,
) -> RunOutcome:
    """Improves `config.policy` by RL and leaves everything about it in the folder `run` (`run/policy` is the result).

    All that is random derives from (seed, update), so that a run that was killed and resumed ends bit for bit as the
    uninterrupted one does, with the same number of workers on CPU.

    Args:
        make_engine: what rolls episodes out; it is given the policy as it starts.
        make_learner: what trains the policy.

    Raises:
        UserError: `run` exists already, or is in use; on resume its config differs in more than how long it lasts, or a
            part of it is missing; the policy doesn't fit the suite; an update was refused.
        OSError: the run folder can't be written.
    """
    with open_run(run, resume, "train") as folder:
        config = replace(config, policy=hub.pinned(config.policy, "model"))
        checkpoint = None
        if resume:
            every = load_config(TrainConfig, run).checkpoint_every
            config = require_same(run, config, EXTENDING)
            checkpoint = newest_checkpoint(run, "update", every)
        outcome = _train(config, run, folder, checkpoint, make_engine, make_learner)
        record(outcome.message)
        return outcome


def _train(
    config: TrainConfig,
    run: Path,
    folder: FolderLock,
    checkpoint: Checkpoint | None,
    make_engine: MakeEngine,
    make_learner: MakeLearner,
) -> RunOutcome:
    suite = make_suite(config.suite)
    policy = load_policy(checkpoint.policy if checkpoint else _policy_folder(config), config.device)
    check_fits_suite(policy, suite.spec)
    warn_of_differences(policy.trained_on, policy.cameras, suite)
    policy.trained_on = with_stage(policy.trained_on, rl_stage(suite))
    config = replace(config, optimizer=with_learning_rate(config.optimizer, policy, "rl"))
    if checkpoint is None:
        check_train(config, policy.unused_settings)
    learner = make_learner(policy, config)
    sampler = make_sampler(suite, config.sampling, config.seed)
    progress, keep_bytes = Progress(), 0
    if checkpoint:
        learner.load_optimizer_state(checkpoint.optimizer(), checkpoint.state["optimizer_steps"])
        sampler.load_state_dict(checkpoint.state["sampler"])
        progress, keep_bytes = Progress(**checkpoint.state["progress"]), checkpoint.state["metrics_bytes"]
        if config.updates < progress.update:
            raise UserError(
                f"updates is {config.updates}, and {run} has done {progress.update}; expected as many or more"
            )
    _write_facts(config, run, suite, progress.update)

    before = progress.elapsed_s
    started = time.monotonic()
    with (
        deterministic(config.device),
        Tracker(config.tracker, run, to_dict(config), "update") as tracker,
        make_engine(config, policy) as engine,
        _rollouts(engine, policy, sampler, config, progress.update, checkpoint) as rollouts,
        RunLog(run, keep_bytes, progress.update + 1, config.updates, check=folder.check, tracker=tracker) as log,
    ):
        health = Health(read_rows(run))
        log.warn(warning for warning, _ in health.found)
        if progress.update == 0 and config.eval_every:
            rollouts.settle()
            start = {"update": 0, **_evaluate(engine, policy, suite, config, run, 0, log)}
            health.judge(start)
            log.write(start)
        while progress.update < config.updates and not _reached(config, run, progress.update):
            update = progress.update + 1
            log.stage(f"update {update} of {config.updates}: rolling out", rollouts)
            waited = time.monotonic()
            try:
                collection = rollouts.collect(update)
            except NoSignal as stop:
                return _stop(stop, policy, run, progress, health.kept)
            waited = time.monotonic() - waited
            row = {"update": update, **_rollout_metrics(collection), "rollout_wait_s": waited}
            log.stage(f"update {update} of {config.updates}: learning")
            advantages = group_relative_advantages(rewards(collection.groups))
            row |= learner.update(collection.groups, advantages, update)
            progress.update = update
            progress.episodes += collection.stats.episodes
            progress.env_steps += collection.stats.env_steps
            # Their pictures fill as much memory as those of the rollouts to come.
            del collection, advantages
            if config.eval_every and (update % config.eval_every == 0 or update == config.updates):
                rollouts.settle()
                row |= _evaluate(engine, policy, suite, config, run, update, log)
            progress.elapsed_s = before + time.monotonic() - started
            row |= {
                "episodes_total": progress.episodes,
                "env_steps_total": progress.env_steps,
                "elapsed_s": progress.elapsed_s,
            }
            found = health.judge(row)
            log.warn(found)
            log.write({**row, "warnings": [warning.metric for warning in found]})
            ends = update == config.updates or _reached(config, run, update)
            if update % config.checkpoint_every == 0 or ends:
                log.stage(f"update {update} of {config.updates}: writing the checkpoint")
                state = {
                    "progress": asdict(progress),
                    "sampler": rollouts.sampler_state(),
                    "optimizer_steps": learner.optimizer_steps,
                    "metrics_bytes": log.length,
                    "seed": config.seed,
                    "randomness": "every generator is derived from (seed, update); there is no other state",
                }
                optimizer, behaviour = learner.optimizer_state(), rollouts.behaviour()
                save_checkpoint(
                    run / "checkpoints", update, policy, optimizer, state, config.keep_checkpoints, behaviour
                )
    _save_policy(policy, run)
    reached = _reached(config, run, progress.update)
    goal = (
        f", greedy success {read_result(_evaluation_file(run, progress.update)).overall} on train states"
        if reached
        else ""
    )
    return RunOutcome(
        reason="reached" if reached else "finished",
        update=progress.update,
        message=f"{progress.update} updates done, {progress.episodes} episodes{goal}; the policy is in {run / 'policy'}",
    )


def _rollouts(
    engine: Engine,
    policy: Policy,
    sampler: StateSampler,
    config: TrainConfig,
    done: int,
    checkpoint: Checkpoint | None,
) -> Rollouts:
    if not config.rollouts_ahead:
        return Rollouts(engine, policy, sampler, config)
    behaviour = checkpoint.behaviour() if checkpoint else {}
    return RolloutsAhead(engine, policy, sampler, config, done + 1, behaviour)


def _policy_folder(config: TrainConfig) -> Path:
    if not config.policy:
        raise UserError("no policy given; name the folder of a supervised one: --policy runs/sft/policy")
    return hub.local_folder(config.policy, "model")


def _write_facts(config: TrainConfig, run: Path, suite: Suite, update: int) -> None:
    """Leaves config.json and environment.json in `run`; what has changed since it began is refused, or warned of."""
    facts = environment_facts(config.seed, suite.protocol)
    environment = run / "environment.json"
    if update == 0:
        facts[START_SHA256] = policy_fingerprint(_policy_folder(config))
        started = read_as(environment, Environment).start_policy_sha256 if environment.exists() else None
        if started not in (None, facts[START_SHA256]):
            raise UserError(
                f"the policy in {config.policy} isn't the one that {run} was started with (sha256 {started[:12]}, now "
                f"{facts[START_SHA256][:12]}), and the run has no checkpoint yet. Start a new run with --run"
            )
    write_config(run, config)
    (run / "stopped.json").unlink(missing_ok=True)
    if environment.exists():
        first = read_as(environment, Environment).suite_protocol
        changed = [
            f"{key} was {first.get(key)!r}, now {suite.protocol.get(key)!r}"
            for key in sorted({*first, *suite.protocol})
            if first.get(key) != suite.protocol.get(key)
        ]
        if changed:
            warnings.warn(
                f"{run} began under another protocol of suite {suite.name!r}: {'; '.join(changed)}. Its success rates before and after "
                "this resume can't be compared; to be sure, start a new run from its newest checkpoint",
                stacklevel=2,
            )
    record_facts(run, facts, update)


def _rollout_metrics(collection: Collection) -> dict[str, Any]:
    stats, seconds = collection.stats, collection.seconds
    solved = sum(solved for solved, _ in collection.success_by_task.values())
    episodes = sum(n for _, n in collection.success_by_task.values())
    return {
        "train_success": solved / episodes,
        "groups_sampled": collection.sampled,
        "groups_mixed": collection.mixed,
        "groups_all_failed": collection.all_failed,
        "groups_all_solved": collection.all_solved,
        "groups_broken": collection.broken,
        "groups_kept": len(collection.groups),
        "sampled_per_kept": collection.sampled / len(collection.groups),
        "success_by_task": collection.success_by_task,
        "episodes": stats.episodes,
        "env_steps": stats.env_steps,
        "env_steps_per_s": stats.env_steps / seconds,
        "decisions_per_s": stats.decisions / seconds,
        "env_errors": stats.env_errors,
        "unlike_starts": stats.unlike_starts,
        "retries": stats.retries,
        "worker_restarts": stats.worker_restarts,
        "policy_s": stats.policy_s,
        "wait_s": stats.wait_s,
        "collect_s": seconds,
        "staleness": collection.staleness,
        **stats.errors.metrics(),
    }


def _evaluate(
    engine: Engine, policy: Policy, suite: Suite, config: TrainConfig, run: Path, update: int, log: RunLog
) -> dict[str, Any]:
    """Greedy success on train states; the test states are never looked at during training."""
    log.stage(f"after update {update}: evaluating")
    started = time.monotonic()
    settings = EvalConfig(split="train", episodes_per_task=config.eval_episodes_per_task, seed=config.seed)
    result = evaluate_with(engine, policy, suite, settings)
    log.check()
    write_result(_evaluation_file(run, update), result)
    return {
        "eval_success": result.overall.rate,
        "eval_low": result.overall.low,
        "eval_high": result.overall.high,
        "eval_n": result.overall.n,
        "eval_by_task": {name: (task.solved, task.n) for name, task in result.by_task.items()},
        "eval_s": time.monotonic() - started,
        **{f"eval_{key}": value for key, value in result.errors.metrics().items()},
    }


def _reached(config: TrainConfig, run: Path, update: int) -> bool:
    """True if the evaluation after `update` exists and is as good as `stop_at` asks for.

    It is read from its file, so that a resumed run stops where an uninterrupted one does."""
    file = _evaluation_file(run, update)
    if config.stop_at is None or not file.exists():
        return False
    result = read_result(file)
    return not result.unmeasured and result.overall.rate >= config.stop_at


def _evaluation_file(run: Path, update: int) -> Path:
    return run / "eval" / f"train_update_{update:06d}.json"


def _stop(stop: NoSignal, policy: Policy, run: Path, progress: Progress, rows: list[Row]) -> RunOutcome:
    """Ends a run that has nothing to learn from: success everywhere is the goal, anything else needs the user."""
    solved = stop.collection.all_solved == stop.collection.sampled
    message = str(stop)
    evaluated = [row for row in rows if row.get("eval_n")][-1:]
    if evaluated and not solved:
        update, counts = evaluated[0]["update"], evaluated[0]["eval_by_task"].values()
        greedy = Rate(solved=sum(count for count, _ in counts), n=sum(n for _, n in counts))
        message += f"\nGreedy success after update {update}: {greedy}."
        failed = {"update": progress.update + 1, "success_by_task": stop.collection.success_by_task}
        if warning := sampled_success([*evaluated, failed]):
            message += f" {warning.advice}"
    outcome = RunOutcome(reason="all_solved" if solved else "no_signal", update=progress.update, message=message)
    _save_policy(policy, run)
    write_json(run / "stopped.json", {**asdict(outcome), "success_by_task": stop.collection.success_by_task})
    return outcome


def _save_policy(policy: Policy, run: Path) -> None:
    with atomic_folder(run / "policy") as temporary:
        policy.save(temporary)
