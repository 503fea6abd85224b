"""Closed-loop evaluation: each (task, initial state) of a split once."""

import contextlib
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from simplevla import hub
from simplevla.adapters.load import load_policy
from simplevla.adapters.routing import acting_with, warn_of_idle_adapters
from simplevla.config import EvalConfig, Precision, RolloutConfig, SuiteConfig
from simplevla.effect import check_eval, warn_of_idle
from simplevla.errors import UserError, brief
from simplevla.evaluation.provenance import commit, policy_fingerprint, versions
from simplevla.evaluation.result import Broken, EvaluationResult, Outcome
from simplevla.policies.base import Policy, Sampling
from simplevla.policies.load import check_fits_suite
from simplevla.policies.trained_on import differences, held_out, warn_of_differences
from simplevla.progress import Progress
from simplevla.rollout.crew import last_lines
from simplevla.rollout.scheduler import Engine, RolloutEngine
from simplevla.suites.base import Suite
from simplevla.suites.registry import make_suite
from simplevla.types import SPLITS, Episode, EpisodeRequest, EpisodeStatus, Split, Task

BLANK = " "
"""The sentence that `EvalConfig.instruction` off tells; small policies have no token for an empty one."""
Show = Callable[[int, int], None]
"""Called after every finished episode with (finished, solved)."""


def evaluate_with(
    engine: Engine,
    policy: Policy,
    suite: Suite,
    config: EvalConfig,
    show: Show | None = None,
    policy_folder: Path | None = None,
) -> EvaluationResult:
    """Rolls `policy` out once from every initial state of the split, greedily unless the config says otherwise.

    Episodes that the environment broke (ENV_ERROR after all attempts) are not in n; they are listed apart.

    Args:
        engine: runs episodes of the same suite.
        policy_folder: where `policy` was loaded from, for the fingerprint in the result.

    Raises:
        UserError: the split has fewer initial states than `config.episodes_per_task`, or none; the suite has no task
            `config.instruction_of`; the policy can't be told a blank; or the environment broke every episode, so that
            there is no result.
    """
    pairs = evaluation_pairs(suite, config)
    sampling = Sampling(greedy=True) if config.greedy else Sampling(temperature=config.temperature)
    finished: dict[tuple[str, int], Episode] = {}
    solved = 0
    requests = (evaluation_request(task, state, config.seed) for task, state in pairs)

    def sink(episode: Episode) -> None:
        nonlocal solved
        finished[episode.request.task.name, episode.request.initial_state] = episode
        solved += episode.status is EpisodeStatus.SUCCESS
        if show is not None:
            show(len(finished), solved)

    # Before the episodes: another run may write other weights there meanwhile.
    fingerprint = policy_fingerprint(policy_folder) if policy_folder else None
    engine.reset_stats()
    start = time.monotonic()
    engine.run(policy, sampling, lambda: next(requests, None), sink, record=False)
    wall_s = time.monotonic() - start

    outcomes: list[Outcome] = []
    broken: list[Broken] = []
    for task, initial_state in pairs:
        episode = finished.get((task.name, initial_state))
        assert episode is not None, f"the engine never returned {task.name} / initial state {initial_state}"
        if episode.status is EpisodeStatus.ENV_ERROR:
            broken.append(Broken(task.name, initial_state, last_lines(episode.error, 1)))
        else:
            outcomes.append(
                Outcome(
                    task=task.name,
                    initial_state=initial_state,
                    success=episode.status is EpisodeStatus.SUCCESS,
                    env_steps=int(episode.env_steps),
                )
            )
    errors = engine.stats.errors.shortened()
    if not outcomes:
        raise UserError(
            f"the environment broke each of the {len(broken)} episodes, so that nothing is known about the policy: {errors}. "
            f"Mend it (simplevla check-suite {suite.name} may say more) and evaluate again. The last error was: "
            f"{errors.last_error or broken[-1].reason}"
        )
    return EvaluationResult(
        suite=suite.name,
        split=config.split,
        episodes_per_task=config.episodes_per_task,
        protocol=suite.protocol,
        horizons={task.name: task.horizon for task in suite.tasks},
        greedy=config.greedy,
        temperature=None if config.greedy else config.temperature,
        seed=config.seed,
        episodes=tuple(outcomes),
        broken=tuple(broken),
        errors=errors,
        wall_s=wall_s,
        versions=versions(),
        commit=commit(),
        policy=str(policy_folder) if policy_folder else None,
        policy_sha256=fingerprint,
        held_out=held_out(policy.trained_on, suite.name, [(task.name, state) for task, state in pairs]),
        told=told(suite, config),
        differences=(*differences(policy.trained_on, policy.cameras, suite), *_told_otherwise(suite, config)),
    )


def evaluate(
    policy_folder: Path | str,
    suite_config: SuiteConfig,
    rollout: RolloutConfig | None = None,
    config: EvalConfig | None = None,
    device: str = "cpu",
    precision: Precision = "float32",
    title: str = "evaluation",
    adapter: str = "",
) -> EvaluationResult:
    """Closed-loop success of a saved policy, each (task, initial state) of a split once, with a progress bar.

    Args:
        policy_folder: on this machine, or `hf://OWNER/NAME[@REVISION][/FOLDER]` on the hub.
        config: split, number of initial states, greedy or sampled; None: greedily on all held-out ones.
        device: where the policy computes.
        precision: of its products, as in `TrainConfig.precision`.
        title: of the progress bar.
        adapter: the policy's adapter that acts, or `routed`, as in `acting_with`.

    Raises:
        UserError: the policy has no such adapter, doesn't fit the suite, or as in `evaluate_with`.
    """
    suite, rollout = make_suite(suite_config), rollout or RolloutConfig()
    source = hub.pinned(str(policy_folder), "model")
    folder = hub.local_folder(source, "model")
    config = config or EvalConfig()
    policy = loaded_for(suite, folder, rollout, config, device, precision, adapter)
    if "sampling.temperature" in policy.unused_settings:
        warn_of_idle(config, {"temperature": policy.unused_settings["sampling.temperature"]})
    with (
        RolloutEngine(suite_config, rollout, policy.chunk_length) as engine,
        showing_episodes(title, suite, config) as show,
    ):
        result = evaluate_with(engine, policy, suite, config, show, folder)
    return replace(result, policy=source, computed=f"{device}, {precision}", adapter=adapter)


def loaded_for(
    suite: Suite,
    folder: Path | str,
    rollout: RolloutConfig,
    config: EvalConfig,
    device: str,
    precision: Precision,
    adapter: str,
) -> Policy:
    """The saved policy, ready to be rolled out on `suite` as in `evaluate`.

    Warns where it was trained otherwise, and where an adapter of one of the tasks doesn't act.
    """
    policy = load_policy(folder, device)
    policy.compute_in(precision)
    check_fits_suite(policy, suite.spec)
    warn_of_differences(policy.trained_on, policy.cameras, suite)
    if rollout.compile:
        policy.compile_towers()
    policy = acting_with(policy, adapter)
    sentence = told(suite, config)
    warn_of_idle_adapters(policy, [task.instruction if sentence is None else sentence for task in suite.tasks])
    return policy


@contextlib.contextmanager
def showing_episodes(title: str, suite: Suite, config: EvalConfig) -> Iterator[Show]:
    """Progress of an evaluation, to be given to `evaluate_with`."""
    with Progress(title, len(evaluation_pairs(suite, config))) as progress:
        yield lambda done, solved: progress.update(done, f"{solved} of {done} solved")


def evaluation_pairs(suite: Suite, config: EvalConfig) -> list[tuple[Task, int]]:
    """The (task, initial state) pairs that `config` asks for, by task, each once."""
    check_eval(config)
    wanted = config.episodes_per_task
    if wanted < 0:
        raise UserError(f"eval.episodes_per_task is {wanted}; expected 0 (all) or more")
    if not config.greedy and config.temperature <= 0:
        raise UserError(f"eval.temperature is {config.temperature}; expected above 0, or greedy")
    pairs: list[tuple[Task, int]] = []
    sentence = told(suite, config)
    for task in suite.tasks if sentence is None else [replace(task, instruction=sentence) for task in suite.tasks]:
        splits: tuple[Split, ...] = SPLITS if config.split == "all" else (config.split,)
        states = [state for split in splits for state in suite.initial_states(task, split)]
        if not states or len(states) < wanted:
            raise UserError(
                f"task {task.name!r} of {suite.name!r} has {len(states)} {config.split} initial states; "
                f"expected at least {max(wanted, 1)}. Lower eval.episodes_per_task, or 0 for all of them."
            )
        pairs += [(task, state) for state in (states[:wanted] if wanted else states)]
    return pairs


def told(suite: Suite, config: EvalConfig) -> str | None:
    """The one sentence that the policy is told in every task; None: each task's own.

    Raises:
        UserError: the suite has no task `config.instruction_of`.
    """
    if not config.instruction:
        return BLANK
    if not config.instruction_of:
        return None
    tasks = {task.name: task for task in suite.all_tasks or suite.tasks}
    if config.instruction_of not in tasks:
        raise UserError(
            f"instruction_of is {brief(config.instruction_of)}; suite {suite.name!r} has the tasks {', '.join(tasks)}"
        )
    return tasks[config.instruction_of].instruction


def _told_otherwise(suite: Suite, config: EvalConfig) -> Iterator[str]:
    if not config.instruction:
        yield "it is told no instruction, but a blank"
    elif config.instruction_of:
        yield f"in every task it is told {told(suite, config)!r}, the instruction of {config.instruction_of!r}"


def evaluation_request(task: Task, initial_state: int, seed: int) -> EpisodeRequest:
    """The one episode of `initial_state`; by the task's name, so that it is the same whichever others are evaluated."""
    noise = (seed, zlib.crc32(task.name.encode()), initial_state)
    return EpisodeRequest(task=task, initial_state=initial_state, seed=noise)
