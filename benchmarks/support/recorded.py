"""Rows of a result, and folders of runs, that belong to the settings that they were made with."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from simplevla.errors import UserError
from simplevla.storage import read_json, write_json

Arguments = TypeVar("Arguments")
KEYS = ("suite", "perturbation", "head", "variant", "task", "demos", "seed")
"""Keys that say which row it is."""


def quick_apart(arguments: Arguments, name: str) -> Arguments:
    """Returns the arguments, whose `runs` and `out` are under runs/quick/NAME if `quick` is on and they weren't given."""
    given: Any = arguments
    if not given.quick:
        return arguments
    folders = [key for key in ("runs", "out") if getattr(given, key) == getattr(type(given), key)]
    return replace(given, **{key: Path("runs/quick") / name / key for key in folders})


def recipe_digest(*configs: Any) -> str:
    """Twelve hex digits of what a recipe sets; a setting that is new, and at its default, changes nothing."""
    chosen = [list(_chosen(config)) for config in configs]
    return hashlib.sha256(json.dumps(chosen, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _chosen(config: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    """(name, value) of the settings that differ from their defaults."""
    plain = type(config)() if all(_has_default(one) for one in fields(config)) else None
    for one in fields(config):
        value = getattr(config, one.name)
        if is_dataclass(value):
            yield from _chosen(value, f"{prefix}{one.name}.")
        elif plain is None or value != getattr(plain, one.name):
            yield prefix + one.name, value


def _has_default(one: Any) -> bool:
    return one.default is not MISSING or one.default_factory is not MISSING


def read_recorded(file: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a result, none if it isn't there yet.

    Raises:
        UserError: a row was measured with other settings.
    """
    rows = json.loads(file.read_text()) if file.exists() else []
    require_settings(file, rows, settings)
    return rows


def claim_runs(runs: Path, settings: dict[str, Any]) -> None:
    """Leaves the settings in a folder of runs that has none yet.

    Raises:
        UserError: its runs were made with other settings.
    """
    file = runs / "settings.json"
    if file.exists():
        require_settings(file, [read_json(file)], settings)
    else:
        write_json(file, {"settings": settings})


def require_settings(file: Path, rows: Iterable[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Refuses rows that weren't made with `settings`, as far as those go.

    Raises:
        UserError: naming the first such row, and what differs.
    """
    for row in rows:
        had = row.get("settings", {})
        if differing := [key for key in settings if had.get(key, "unknown") != settings[key]]:
            which = ", ".join(f"{key} {row[key]}" for key in KEYS if key in row)
            pairs = ", ".join(f"{key} {had.get(key, 'unknown')}, expected {settings[key]}" for key in differing)
            raise UserError(
                f"{file}{f', the row with {which},' if which else ''} was made with {pairs}. "
                "Delete the row and its runs, or give other folders with --out and --runs"
            )
