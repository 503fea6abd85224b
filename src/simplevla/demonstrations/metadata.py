"""Reads the `meta/` folder of a LeRobotDataset v3.0; every fault is a ValueError that says what to do."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from simplevla.demonstrations import layout
from simplevla.policies.normalization import MEASURES, Statistics


def read_info(folder: Path) -> dict[str, Any]:
    """`meta/info.json` of a dataset of the version that is read here."""
    path = folder / layout.INFO
    if not path.is_file():
        partial = folder.with_name(folder.name + ".partial")
        hint = f"{partial} was interrupted: generate again to finish it" if partial.is_dir() else "check the path"
        raise ValueError(f"{folder} is no dataset: {layout.INFO} is missing; {hint}")
    info = _read_json(path)
    version = info.get("codebase_version")
    if version != layout.CODEBASE_VERSION:
        remedy = (
            "convert it with LeRobot: python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 --repo-id=NAME "
            "--root=FOLDER --push-to-hub=false"
            if str(version).startswith("v2")
            else "use a dataset of that version"
        )
        raise ValueError(f"{folder} has codebase_version {version!r}; expected {layout.CODEBASE_VERSION!r}: {remedy}")
    missing = [key for key in ("features", "fps", "data_path", "total_frames") if key not in info]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; the file is damaged, copy it again")
    return info


def read_tasks(folder: Path) -> list[str]:
    """Instructions by `task_index`."""
    table = _read_table(folder / layout.TASKS)
    texts = [name for name in table.column_names if name != "task_index"]
    if "task_index" not in table.column_names or len(texts) != 1:
        raise ValueError(
            f"{folder / layout.TASKS} has the columns {table.column_names}; expected task_index and the task"
        )
    by_index = dict(zip(table["task_index"].to_pylist(), table[texts[0]].to_pylist(), strict=True))
    if sorted(by_index) != list(range(len(by_index))):
        raise ValueError(f"{folder / layout.TASKS} numbers its tasks {sorted(by_index)}; expected 0, 1, 2, ...")
    return [by_index[index] for index in range(len(by_index))]


def read_episodes(folder: Path, total_frames: int) -> list[dict[str, Any]]:
    """Rows of `meta/episodes` in order, checked to cover all frames."""
    paths = sorted((folder / "meta/episodes").glob("*/*.parquet"))
    rows: list[dict[str, Any]] = []
    for path in paths:
        table = _read_table(path)
        rows += table.select([name for name in table.column_names if not name.startswith("stats/")]).to_pylist()
    rows.sort(key=lambda row: row["episode_index"])
    end = 0
    for number, row in enumerate(rows):
        if row["episode_index"] != number or row["dataset_from_index"] != end:
            raise ValueError(f"{folder}/meta/episodes: episode {number} is missing or out of place; copy it again")
        end = row["dataset_to_index"]
    if not rows or end != total_frames:
        raise ValueError(
            f"{folder}/meta/episodes lists {len(rows)} episodes with {end} frames; "
            f"{layout.INFO} says {total_frames} frames: an episodes file is missing, copy it again"
        )
    return rows


def read_statistics(folder: Path, state_dim: int, action_dim: int) -> Statistics:
    """State and action statistics of `meta/stats.json`, checked against the features' dimensions."""
    path = folder / layout.STATS
    remedy = "compute them with LeRobot: python -m lerobot.datasets.v30.augment_dataset_quantile_stats"
    if not path.is_file():
        raise ValueError(f"{path} is missing; {remedy}")
    stats = _read_json(path)
    parts: dict[str, dict[str, list[float]]] = {}
    for name, key, expected in (
        ("state", layout.STATE, state_dim),
        ("action", layout.ACTION, action_dim),
    ):
        missing = [m for m in MEASURES if m not in stats.get(key, {})]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)} of {key!r}; {remedy}")
        measures = {m: stats[key][m] for m in MEASURES}
        sizes = {m: len(v) if isinstance(v, list) else 1 for m, v in measures.items()}
        if set(sizes.values()) != {expected}:
            raise ValueError(f"{path}: {key!r} has {sizes} numbers; the feature has {expected} dimensions; {remedy}")
        parts[name] = {m: v if isinstance(v, list) else [v] for m, v in measures.items()}
    return Statistics(state=parts["state"], action=parts["action"])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}; expected an object")
    return value


def _read_table(path: Path) -> pa.Table:
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy the dataset's meta/ folder completely")
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged or cut short ({error}); copy it again") from error
