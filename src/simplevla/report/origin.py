"""The origin of a run: recipe, policy, date, and the imitation that its first policy came from."""

import datetime
import math
from dataclasses import field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from simplevla import hub
from simplevla.checked import from_dict, part
from simplevla.errors import UserError, brief
from simplevla.evaluation.provenance import policy_fingerprint
from simplevla.storage import read_json
from simplevla.training.runlog import METRICS, read_rows


@part(frozen=True, kw_only=True)
class SuiteName:
    """The part of a suite's config that is read here."""

    name: str = ""


@part(frozen=True, kw_only=True)
class Start:
    """The part of a run's config that is read here."""

    title: str = ""
    policy: str = ""
    suite: SuiteName = field(default_factory=SuiteName)


@part(frozen=True, kw_only=True)
class Facts:
    """The part of a run's environment.json that is read here."""

    date: datetime.date | None = None
    start_policy_sha256: str | None = None


@part(frozen=True, kw_only=True)
class Origin:
    """Facts for the head of a report."""

    title: str
    """Title of the run's config, which a recipe sets to its name; else the suite, else the folder."""
    parts: tuple[str, ...]
    """Policy, date and folder, as far as they are known."""
    imitation: list[dict[str, Any]]
    """Rows of the run of `sft` that trained the first policy; empty if it isn't at hand."""
    no_imitation: str
    """The reason why it isn't."""


def origin_of(run: Path, config: dict[str, Any] | None, environment: dict[str, Any] | None) -> Origin:
    """The origin of `run`, from the contents of its config.json and environment.json, None where one is missing.

    Raises:
        UserError: one of these, the policy's files or the imitation's metrics.jsonl are damaged; it names the file.
    """
    start = from_dict(Start, config or {}, source=str(run / "config.json"))
    facts = from_dict(Facts, environment or {}, source=str(run / "environment.json"))
    try:
        first, unreachable = (hub.local_folder(start.policy, "model") if start.policy else None), ""
    except UserError as error:
        first, unreachable = None, str(error)
    policy = next(filter(None, map(describe_policy, filter(None, (run / "policy", first)))), "")
    date = f"{facts.date.day} {facts.date:%B %Y}" if facts.date else ""
    if first:
        imitation, no_imitation = _imitation(start.policy, first, facts.start_policy_sha256)
    else:
        imitation, no_imitation = [], unreachable or "the run's config names no policy that it started from"
    folder = run.resolve()
    return Origin(
        title=start.title or start.suite.name or folder.name,
        # All runs of `simplevla demo` are called `rl`.
        parts=tuple(filter(None, (policy, date, f"run {folder.parent.name}/{folder.name}"))),
        imitation=imitation,
        no_imitation=no_imitation,
    )


def describe_policy(folder: Path) -> str | None:
    """Architecture, head and size of the policy in `folder`, such as `tinyvla, head tokens, 0.55 M parameters`.

    None if there is none.

    Raises:
        UserError: its files are damaged.
    """
    weights = folder / "model.safetensors"
    if not (weights.is_file() and (folder / "config.json").is_file()):
        return None
    config = read_json(folder / "config.json")
    try:
        with safe_open(weights, framework="np") as file:
            parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{weights} is damaged ({error}); use another checkpoint") from error
    size = f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.3g} M"
    head = f"head {config['head']}, " if "head" in config else ""
    return f"{config.get('architecture', 'policy')}, {head}{size} parameters"


def _imitation(policy: str, first: Path, sha256: str | None) -> tuple[list[dict[str, Any]], str]:
    """(rows of the run of `sft` that made `policy`, whose folder is `first`; why there are none)."""
    if hub.is_reference(policy):
        # On the hub the curves lie among the policy's files.
        run, named, why = first, policy, "it was pushed without"
    else:
        run, why = first.parent, "the first policy isn't from a run of ours, or its folder has moved"
        named = str(run)
    if not (run / METRICS).is_file():
        return [], f"{named} has no {METRICS}: {why}"
    rows = read_rows(run)
    if not any("batch" in row for row in rows):
        return [], f"{named}, where the first policy is from, is no run of `simplevla sft`"
    if sha256 and (not (first / "model.safetensors").is_file() or policy_fingerprint(first) != sha256):
        return [], f"the policy in {policy} isn't the one that this run started from any more (its sha256 differs)"
    for number, row in enumerate(rows, start=1):
        if type(row.get("batch")) is not int:
            raise UserError(
                f"{run / METRICS}, line {number}: batch is {brief(row.get('batch'))}; expected a whole number"
            )
    return rows, ""
