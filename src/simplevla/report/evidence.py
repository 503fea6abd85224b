"""What the report shows of a finished run: both policies on all held-out initial states, and films of some of them."""

from pathlib import Path

from simplevla.config import EvalConfig, TrainConfig
from simplevla.evaluation.evaluate import evaluate_folder
from simplevla.evaluation.provenance import policy_fingerprint
from simplevla.evaluation.result import EvaluationResult, read_result, write_result
from simplevla.policies.load import load_policy
from simplevla.report.videos import record_videos
from simplevla.suites.registry import make_suite
from simplevla.training.runlog import load_config


def gather_evidence(run: Path) -> None:
    """Evaluate the policies before and after RL greedily and film both, where `run` lacks it or has it of other policies.

    A run that isn't finished has no policy yet, and one whose first policy is gone can't be compared: both are left
    as they are.
    """
    config = load_config(TrainConfig, run)
    folders = {"before": Path(config.policy), "after": run / "policy"}
    if not all((folder / "model.safetensors").is_file() for folder in folders.values()):
        return
    results: dict[str, EvaluationResult] = {}
    changed = False
    for name, folder in folders.items():
        file = run / "eval" / f"{name}.json"
        if not file.exists() or read_result(file).policy_sha256 != policy_fingerprint(folder):
            write_result(file, evaluate_folder(folder, config.suite, config.rollout, EvalConfig(), config.device))
            changed = True
        results[name] = read_result(file)
    if not changed and all((run / "videos" / f"{name}.json").exists() for name in folders):
        return
    suite = make_suite(config.suite)
    states = telling_states(results["before"], results["after"])
    pairs = [(suite.task(task), state) for task, state in states.items()]
    for name, folder in folders.items():
        record_videos(suite, load_policy(folder), pairs, run / "videos", name)


def telling_states(before: EvaluationResult, after: EvaluationResult) -> dict[str, int]:
    """Per task the first initial state that RL newly solved, else the first one of all."""
    failed = {(episode.task, episode.initial_state) for episode in before.episodes if not episode.success}
    chosen: dict[str, int] = {}
    for episode in sorted(after.episodes, key=lambda e: not (e.success and (e.task, e.initial_state) in failed)):
        chosen.setdefault(episode.task, episode.initial_state)
    return chosen
