"""Rows of a result, and folders of runs, that belong to the settings that they were made with."""

import json
from collections.abc import Iterable
from dataclasses import replace
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
