"""Reads the `meta/` folder of a LeRobotDataset v3.0; every fault is a ValueError that says what to do."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from simplevla.demonstrations import layout


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
            "convert it with LeRobot: python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=NAME "
            "--root=FOLDER --push-to-hub=false"
            if str(version).startswith("v2")
            else "use a dataset of that version"
        )
        raise ValueError(f"{folder} has codebase_version {version!r}; expected {layout.CODEBASE_VERSION!r}: {remedy}")
    missing = [key for key in ("features", "fps", "data_path", "total_frames") if key not in info]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; the file is damaged, copy it again")
    incomplete = [key for key, feature in info["features"].items() if not {"dtype", "shape"} <= set(feature)]
    if incomplete:
        raise ValueError(f"{path}: the feature {incomplete[0]!r} lacks its dtype or shape; copy the file again")
    fps = info["fps"]
    if not isinstance(fps, int | float) or not 0 < fps < math.inf:
        raise ValueError(f"{path}: fps is {fps!r}; expected the number of frames per second")
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
    """Rows of `meta/episodes` in order, checked to be complete; where an episode's frames lie, the data files say."""
    needed = ("episode_index", "length", "data/chunk_index", "data/file_index")
    rows: list[dict[str, Any]] = []
    for path in sorted((folder / "meta/episodes").glob("*/*.parquet")):
        table = _read_table(path)
        for name in needed:
            if name not in table.column_names or table[name].null_count:
                raise ValueError(f"{path} lacks {name!r} or has a null there; copy it again")
        rows += table.select([name for name in table.column_names if not name.startswith("stats/")]).to_pylist()
    rows.sort(key=lambda row: row["episode_index"])
    for number, row in enumerate(rows):
        if row["episode_index"] != number:
            raise ValueError(f"{folder}/meta/episodes: episode {number} is missing or doubled; copy it again")
    frames = sum(row["length"] for row in rows)
    if frames == 0 or frames != total_frames:
        raise ValueError(
            f"{folder}/meta/episodes lists {len(rows)} episodes with {frames} frames; "
            f"{layout.INFO} says {total_frames} frames: an episodes file is missing, copy it again"
        )
    return rows


def read_stats(folder: Path) -> dict[str, Any]:
    """`meta/stats.json`; empty where there is none, since everything that is needed is measured over the frames."""
    path = folder / layout.STATS
    return _read_json(path) if path.is_file() else {}


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
