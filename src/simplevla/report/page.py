"""One self-contained HTML page about a run: does RL help, how much, how sure, and what does it look like?"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simplevla.errors import UserError
from simplevla.evaluation.compare import Comparison, compare
from simplevla.report.choice import KIND_RULE, KINDS, NEUTRAL_RULE, Choice, State, choose_states
from simplevla.report.contents import Run, doubts, missing, read_run
from simplevla.report.novelty import caution, orders_of, paired_sentence, rows_of
from simplevla.report.plots import imitation_curves, learning_curves, number_of_updates, steps_plot
from simplevla.report.rendering import render
from simplevla.report.steps import steps_to_success
from simplevla.storage import write_atomically
from simplevla.training.health import Health

MEDIA_TYPES = {".mp4": "video/mp4", ".webp": "image/webp"}


def write_report(run: Path) -> Path:
    """Writes RUN/report.html from config.json, environment.json, metrics.jsonl, eval/before.json, eval/after.json and
    videos/, and returns its path. The page says which of them are missing.

    Raises:
        UserError: the folder isn't one of a run, or a file in it is damaged; the message names it.
    """
    found = read_run(run)
    page = run / "report.html"
    write_atomically(page, _render(found))
    return page


def _render(run: Run) -> bytes:
    comparison, incomparable = _paired(run)
    curves, not_logged = learning_curves(run.rows) if run.rows else ([], [])
    before = run.before.by_task if run.before else {}
    after = run.after.by_task if run.after else {}
    steps, steps_by_task = steps_to_success(run.before, run.after) if run.before and run.after else (None, {})
    return render(
        "page.html.jinja",
        origin=run.origin,
        subject="before and after RL",
        run=run,
        judged=run.after or run.before,
        comparison=comparison,
        incomparable=incomparable,
        steps=steps if comparison else None,
        steps_by_task=steps_by_task,
        steps_plot=steps_plot(steps.pairs, "before RL", "after RL") if steps else "",
        curves=curves,
        not_logged=not_logged,
        imitation_curves=imitation_curves(run.origin.imitation),
        updates=number_of_updates(run.rows),
        totals=_totals(run.rows),
        warnings=Health(run.rows).found,
        tasks=list(dict.fromkeys([*before, *after])),
        before=before,
        after=after,
        films=_films(run, comparison),
        novelty=run.novelty,
        changed=_changed(run),
        config=list(_flat(run.config or {})),
        environment=list(_flat(run.environment or {})),
        missing=missing(run),
        doubts=doubts(run),
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


def _changed(run: Run) -> dict[str, Any]:
    """Contents of the section about novel behaviour."""
    if run.novelty is None:
        return {}

    def video(path: Path) -> dict[str, Any]:
        return {"address": _data(path), "film": path.suffix == ".mp4"}

    films = [
        {
            "task": film.episode.task,
            "state": film.episode.initial_state,
            "distance": f"{film.episode.distance:.2f}",
            "after": video(film.after),
            "demonstration": video(film.demonstration),
        }
        for film in run.novel_films
    ]
    return {
        "rows": rows_of(run.novelty),
        "orders": orders_of(run.novelty),
        "sentence": f"{paired_sentence(run.novelty)} {caution(run.novelty)}".strip(),
        "films": films,
    }


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


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value as text) of a nested object."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value)
