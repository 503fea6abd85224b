"""Evidence for the report of a finished run: both policies on all held-out initial states, and films of some."""

import warnings
from pathlib import Path

from simplevla import hub
from simplevla.adapters.load import load_policy
from simplevla.config import EvalConfig, TrainConfig
from simplevla.errors import UserError
from simplevla.evaluation.evaluate import evaluate, evaluation_pairs
from simplevla.evaluation.provenance import START_SHA256, policy_fingerprint
from simplevla.evaluation.result import EvaluationResult, read_result, write_result
from simplevla.progress import tracked
from simplevla.report.choice import State, choose_states
from simplevla.report.videos import read_clips, record_videos
from simplevla.storage import FolderLock, read_json, remove_leftovers
from simplevla.suites.base import Suite
from simplevla.suites.registry import make_suite
from simplevla.training.run_folder import load_config


def gather_evidence(run: Path, episodes_per_task: int = 0) -> None:
    """Evaluates the policies before and after RL greedily and films both, unless `run` has that of them already.

    Args:
        episodes_per_task: the first so many held-out initial states of each task; 0: all. Evaluations of all that are
            there already stay.

    A run that isn't finished has no policy yet, and one whose first policy is gone or another one can't be compared:
    both are left as they are.
    """
    config = load_config(TrainConfig, run)
    try:
        folders = {"before": hub.local_folder(config.policy, "model"), "after": run / "policy"}
    except UserError as error:
        warnings.warn(f"before and after aren't compared: {error}", stacklevel=2)
        return
    if not all((folder / "model.safetensors").is_file() for folder in folders.values()):
        return
    facts = read_json(run / "environment.json") if (run / "environment.json").exists() else {}
    if facts.get(START_SHA256) not in (None, policy_fingerprint(folders["before"])):
        warnings.warn(
            f"the policy in {folders['before']} isn't the one that {run} started from any more (its sha256 differs): before and after aren't "
            "compared anew",
            stacklevel=2,
        )
        return
    with FolderLock(run):
        remove_leftovers(run)
        _evaluate_and_film(run, config, folders, EvalConfig(episodes_per_task=episodes_per_task))


def _evaluate_and_film(run: Path, config: TrainConfig, folders: dict[str, Path], wanted: EvalConfig) -> None:
    """The evidence of `folders`, `before` and `after`, in `run`, which this process holds."""
    suite = make_suite(config.suite)
    files = {name: run / "eval" / f"{name}.json" for name in folders}

    def there(name: str, what: EvalConfig) -> bool:
        return files[name].exists() and _complete(read_result(files[name]), folders[name], suite, what)

    if all(there(name, EvalConfig()) for name in folders):
        wanted = EvalConfig()
    results: dict[str, EvaluationResult] = {}
    for name, source in (("before", config.policy), ("after", str(run / "policy"))):
        file = files[name]
        if not there(name, wanted):
            result = evaluate(
                source,
                config.suite,
                config.rollout,
                wanted,
                config.device,
                config.precision,
                f"evaluation {name} RL",
            )
            write_result(file, result)
        results[name] = read_result(file)
    if suite.real_world:
        # A film would be one more episode that nobody judges.
        return
    states = choose_states(results["before"], results["after"]).states
    for name, folder in folders.items():
        if not _filmed(run / "videos", name, results[name], states):
            policy = load_policy(folder, config.device)
            policy.compute_in(config.precision)
            pairs = [(suite.task(task), state) for task, state in states]
            with tracked(pairs, f"films {name} RL") as filming:
                record_videos(suite, policy, filming, run / "videos", name, results[name].policy_sha256)


def _complete(result: EvaluationResult, folder: Path, suite: Suite, wanted: EvalConfig) -> bool:
    """True if it is the greedy one of this policy on the wanted states of the run's tasks, as the suite is now."""
    states = {(task.name, state) for task, state in evaluation_pairs(suite, wanted)}
    evaluated = {(e.task, e.initial_state) for e in result.episodes} | {
        (b.task, b.initial_state) for b in result.broken
    }
    return (
        result.policy_sha256 == policy_fingerprint(folder)
        and result.greedy
        and result.split == wanted.split
        and result.as_saved
        and dict(result.protocol) == dict(suite.protocol)
        and dict(result.horizons) == {task.name: task.horizon for task in suite.tasks}
        and evaluated == states
    )


def _filmed(folder: Path, name: str, result: EvaluationResult, states: list[State]) -> bool:
    """True if exactly these states have been filmed, of the policy that `result` is of."""
    if not (folder / f"{name}.json").exists():
        return False
    clips = read_clips(folder, name)
    return [(clip.task, clip.initial_state) for clip in clips] == states and all(
        clip.policy_sha256 == result.policy_sha256 for clip in clips
    )
