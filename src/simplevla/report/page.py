"""One self-contained HTML page about a run: does RL help, how much, how sure, and what does it look like?"""

import base64
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from simplevla.errors import UserError, brief
from simplevla.evaluation.compare import Comparison, compare
from simplevla.evaluation.provenance import START_SHA256, policy_fingerprint
from simplevla.evaluation.result import EvaluationResult, read_result
from simplevla.report.choice import KIND_RULE, KINDS, NEUTRAL_RULE, Choice, State, choose_states
from simplevla.report.plots import learning_curves, number_of_updates, success_bars
from simplevla.report.videos import Clip, read_clips
from simplevla.storage import read_json, write_atomically
from simplevla.training.health import Health
from simplevla.training.runlog import read_rows

MEDIA_TYPES = {".mp4": "video/mp4", ".webp": "image/webp"}


@dataclass(kw_only=True)
class Run:
    """Contents of a run folder; None or empty where a part is missing."""

    folder: Path
    config: dict[str, Any] | None
    environment: dict[str, Any] | None
    stopped: dict[str, Any] | None
    rows: list[dict[str, Any]]
    before: EvaluationResult | None
    after: EvaluationResult | None
    clips_before: list[Clip]
    clips_after: list[Clip]


def write_report(run: Path) -> Path:
    """Writes RUN/report.html from config.json, environment.json, metrics.jsonl, eval/before.json, eval/after.json and
    videos/, and returns its path. The page says which of them are missing.

    Raises:
        UserError: the folder isn't one of a run, or a file in it is damaged; the message names it.
    """
    found = read_run(run)
    page = run / "report.html"
    write_atomically(page, _render(found).encode())
    return page


def read_run(run: Path) -> Run:
    """The parts of a run folder; UserError if one is damaged or none is there."""
    found = Run(
        folder=run,
        config=_optional_json(run / "config.json"),
        environment=_optional_json(run / "environment.json"),
        stopped=_optional_json(run / "stopped.json"),
        rows=_metrics(run / "metrics.jsonl"),
        before=_optional_result(run / "eval" / "before.json"),
        after=_optional_result(run / "eval" / "after.json"),
        clips_before=read_clips(run / "videos", "before"),
        clips_after=read_clips(run / "videos", "after"),
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


def _render(run: Run) -> str:
    comparison, incomparable = _paired(run)
    curves, not_logged = learning_curves(run.rows) if run.rows else ([], [])
    before = run.before.by_task if run.before else None
    after = run.after.by_task if run.after else None
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    template = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html.jinja")
    return template.render(
        name=run.folder.resolve().name,
        run=run,
        judged=run.after or run.before,
        comparison=comparison,
        incomparable=incomparable,
        bars=_image(success_bars(before, after)) if before or after else None,
        curves=[(panel, _image(svg)) for panel, svg in curves],
        not_logged=not_logged,
        updates=number_of_updates(run.rows),
        totals=_totals(run.rows),
        warnings=Health(run.rows).found,
        tasks=list(dict.fromkeys([*(before or {}), *(after or {})])),
        before=before or {},
        after=after or {},
        films=_films(run, comparison),
        config=list(_flat(run.config or {})),
        environment=list(_flat(run.environment or {})),
        missing=_missing(run),
        doubts=_doubts(run),
    )


def _paired(run: Run) -> tuple[Comparison | None, str]:
    """(comparison, why there is none although both evaluations are there)."""
    if run.before is None or run.after is None:
        return None, ""
    try:
        return compare(run.before, run.after, "before", "after"), ""
    except ValueError as error:
        return None, str(error)


def _totals(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The run's counters after its last update, as far as they were logged."""
    keys = ("episodes_total", "env_steps_total", "elapsed_s")
    return {key: row[key] for row in rows for key in keys if row.get(key) is not None}


def _films(run: Run, comparison: Comparison | None) -> list[dict[str, Any]]:
    """Sections of films, each with its title, the rule by which its states were chosen, and its pairs of films."""
    pairs = _clip_pairs(run)

    def film(state: State | None, kind: str = "", above: bool = False) -> dict[str, Any]:
        return {"state": state, "kind": kind, "above": above, "pair": pairs.get(state) if state else None}

    sections: list[dict[str, Any]] = []
    choice = Choice(neutral=[], of_kind={}, counts={})
    if pairs and run.before and run.after and comparison:
        choice = choose_states(run.before, run.after)
        neutral = [film(state) for state in choice.neutral]
        sections.append({"title": "Films chosen without knowing the outcome", "rule": NEUTRAL_RULE, "films": neutral})
        counts = {kind: f"{kind} {choice.counts[kind]}" for kind in KINDS}
        of_kind = [film(state, counts[kind], state in choice.neutral) for kind, state in choice.of_kind.items()]
        rule = f"Evaluated initial states: {', '.join(counts.values())}. {KIND_RULE}"
        sections.append({"title": "One film of each kind of outcome", "rule": rule, "films": of_kind})
    if others := [film(state) for state in pairs if state not in choice.states]:
        sections.append(
            {"title": "Films of other states", "rule": "How they were chosen isn't known.", "films": others}
        )
    return sections


def _clip_pairs(run: Run) -> dict[State, dict[str, Any]]:
    """Clips of the same (task, initial state), before and after, with the videos as data addresses and with what the
    evaluation's episode of that state was, where it was another one."""
    pairs: dict[State, dict[str, Any]] = {}
    sides = (("before", run.clips_before, run.before), ("after", run.clips_after, run.after))
    for side, clips, result in sides:
        evaluated = {(e.task, e.initial_state): (e.success, e.env_steps) for e in result.episodes} if result else {}
        for clip in clips:
            state = (clip.task, clip.initial_state)
            pair = pairs.setdefault(state, {"clip": clip, "before": None, "after": None})
            path = run.folder / "videos" / clip.file
            filmed = (clip.success, clip.env_steps)
            pair[side] = {
                "clip": clip,
                "address": _data(path),
                "film": path.suffix == ".mp4",
                "evaluated": evaluated[state] if evaluated.get(state, filmed) != filmed else None,
            }
    return pairs


def _data(path: Path) -> str:
    if path.suffix not in MEDIA_TYPES:
        raise UserError(f"video {path} ends in {path.suffix!r}; expected one of {', '.join(MEDIA_TYPES)}")
    return f"data:{MEDIA_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _image(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value as text) of a nested object."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value)


def _doubts(run: Run) -> list[str]:
    """Reasons to doubt an evaluation, one sentence each."""
    found = []
    started = (run.environment or {}).get(START_SHA256)
    if run.before and started and run.before.policy_sha256 != started:
        found.append("eval/before.json is not of the policy that this run started from (weights sha256 differ).")
    policy = run.folder / "policy"
    if run.after and (policy / "model.safetensors").is_file() and run.after.policy_sha256 != policy_fingerprint(policy):
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


def _missing(run: Run) -> list[str]:
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
