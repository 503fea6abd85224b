"""The parts of a run folder that the report shows, which of them are missing, and what makes its rates doubtful."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simplevla.errors import UserError, brief
from simplevla.evaluation.provenance import START_SHA256, policy_fingerprint
from simplevla.evaluation.result import EvaluationResult, read_result
from simplevla.novelty.behaviour import Novelty
from simplevla.report.novelty import NovelFilm, read_novelty
from simplevla.report.origin import Origin, origin_of
from simplevla.report.videos import Clip, read_clips
from simplevla.storage import read_json
from simplevla.training.runlog import read_rows


@dataclass(kw_only=True)
class Run:
    """Contents of a run folder; None or empty where a part is missing."""

    folder: Path
    origin: Origin
    config: dict[str, Any] | None
    environment: dict[str, Any] | None
    stopped: dict[str, Any] | None
    rows: list[dict[str, Any]]
    before: EvaluationResult | None
    after: EvaluationResult | None
    clips_before: list[Clip]
    clips_after: list[Clip]
    novelty: Novelty | None
    novel_films: list[NovelFilm]


def read_run(run: Path) -> Run:
    """The parts of a run folder; UserError if one is damaged or none is there."""
    novelty, novel_films = read_novelty(run)
    config, environment = _optional_json(run / "config.json"), _optional_json(run / "environment.json")
    found = Run(
        folder=run,
        origin=origin_of(run, config, environment),
        config=config,
        environment=environment,
        stopped=_optional_json(run / "stopped.json"),
        rows=_metrics(run / "metrics.jsonl"),
        before=_optional_result(run / "eval" / "before.json"),
        after=_optional_result(run / "eval" / "after.json"),
        clips_before=read_clips(run / "videos", "before"),
        clips_after=read_clips(run / "videos", "after"),
        novelty=novelty,
        novel_films=novel_films,
    )
    if not (found.config or found.rows or found.before or found.after):
        raise UserError(
            f"{run} has no config.json, metrics.jsonl, eval/before.json or eval/after.json; "
            "expected the folder of a run"
        )
    return found


def _optional_json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None


def _optional_result(path: Path) -> EvaluationResult | None:
    return read_result(path) if path.exists() else None


def _metrics(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows = read_rows(path.parent)
    for number, row in enumerate(rows, start=1):
        if type(row.get("update")) is not int or row["update"] < 0:
            raise UserError(
                f"{path}, line {number}: update is {brief(row.get('update'))}; expected a whole number from 0 up"
            )
    return rows


def doubts(run: Run) -> list[str]:
    """Reasons to doubt an evaluation, one sentence each."""
    found = []
    started = (run.environment or {}).get(START_SHA256)
    if run.before and started and run.before.policy_sha256 != started:
        found.append("eval/before.json is not of the policy that this run started from (weights sha256 differ).")
    policy = run.folder / "policy"
    trained = (policy / "model.safetensors").is_file()
    if run.novelty and trained and run.novelty.after_sha256 != policy_fingerprint(policy):
        found.append(
            "novelty/novelty.json is not of the policy in this run's folder (weights sha256 differ): run simplevla novelty again."
        )
    if run.after and trained and run.after.policy_sha256 != policy_fingerprint(policy):
        found.append("eval/after.json is not of the policy in this run's folder (weights sha256 differ).")
    if run.before and run.after and run.before.how != run.after.how:
        found.append(f"The policy before RL acted {run.before.how}, the one after {run.after.how}.")
    for label, result in (("before", run.before), ("after", run.after)):
        if result:
            found += [f"Evaluation {label} RL, {doubt}." for doubt in result.doubts]
            if result.errors.counts:
                found.append(f"Evaluation {label} RL, what the environment broke: {result.errors}.")
            if result.unmeasured:
                found.append(
                    f"Evaluation {label} RL has no valid episode of {', '.join(result.unmeasured)}: the overall rate is without."
                )
    return found


def missing(run: Run) -> list[str]:
    parts = {
        "eval/before.json (success before RL)": run.before,
        "eval/after.json (success after RL)": run.after,
        "metrics.jsonl (learning curves)": run.rows,
        "videos/before.json and its videos": run.clips_before,
        "videos/after.json and its videos": run.clips_after,
        "config.json (configuration)": run.config,
        "environment.json (commit, versions, machine)": run.environment,
    }
    logged = {row["update"] for row in run.rows if row["update"] > 0}
    gaps = max(logged, default=0) - len(logged)
    some = itertools.islice((str(update) for update in itertools.count(1) if update not in logged), min(gaps, 5))
    rows = [f"rows of {gaps} updates in metrics.jsonl, of {', '.join(some)} for example"] if gaps else []
    return [name for name, part in parts.items() if not part] + rows
