"""Reads the `meta/` folder of a LeRobotDataset v3.0; every fault is a UserError that says what to do."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from simplevla.demonstrations import layout
from simplevla.errors import UserError


def read_info(folder: Path) -> dict[str, Any]:
    """`meta/info.json` of a dataset of the version that is read here."""
    path = folder / layout.INFO
    if not path.is_file():
        partial = folder.with_name(folder.name + ".partial")
        hint = f"{partial} was interrupted: generate again to finish it" if partial.is_dir() else "check the path"
        raise UserError(f"{folder} is no dataset: {layout.INFO} is missing; {hint}")
    info = _read_json(path)
    version = info.get("codebase_version")
    if version != layout.CODEBASE_VERSION:
        remedy = (
            "convert it with LeRobot: python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=NAME "
            "--root=FOLDER --push-to-hub=false"
            if str(version).startswith("v2")
            else "use a dataset of that version"
        )
        raise UserError(f"{folder} has codebase_version {version!r}; expected {layout.CODEBASE_VERSION!r}: {remedy}")
    missing = [key for key in ("features", "fps", "data_path", "total_frames") if key not in info]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; the file is damaged, copy it again")
    features, fps, total = info["features"], info["fps"], info["total_frames"]
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < math.inf:
        raise UserError(f"{path}: fps is {fps!r}; expected the number of frames per second")
    if not _is_count(total):
        raise UserError(f"{path}: total_frames is {total!r}; expected a whole number")
    if not isinstance(features, dict):
        raise UserError(
            f"{path}: features is a {type(features).__name__}; expected an object, one key for each feature"
        )
    for key, feature in features.items():
        shape = feature.get("shape") if isinstance(feature, dict) else None
        if not isinstance(shape, list) or not all(map(_is_count, shape)) or "dtype" not in feature:
            raise UserError(
                f"{path}: the feature {key!r} is {feature!r}; expected an object with its dtype and its shape, such as "
                "'float32' and [7]; copy the file again"
            )
    for key, example in (("data_path", layout.DATA), ("video_path", layout.VIDEO)):
        pattern = info.get(key)
        if pattern is None and key == "video_path":
            continue
        try:
            str(pattern).format(chunk_index=0, file_index=0, video_key="")
        except (KeyError, IndexError, ValueError):
            pattern = None
        if not isinstance(info[key], str) or pattern is None:
            raise UserError(f"{path}: {key} is {info[key]!r}; expected a path such as {example!r}")
    if not isinstance(info.get("simplevla", {}), dict):
        raise UserError(f"{path}: simplevla is {info['simplevla']!r}; expected what was written there, or nothing")
    return info


def read_tasks(folder: Path) -> list[str]:
    """Instructions by `task_index`."""
    table = _read_table(folder / layout.TASKS)
    texts = [name for name in table.column_names if name != "task_index"]
    if "task_index" not in table.column_names or len(texts) != 1:
        raise UserError(
            f"{folder / layout.TASKS} has the columns {table.column_names}; expected task_index and the task"
        )
    numbers, instructions = table["task_index"].to_pylist(), table[texts[0]].to_pylist()
    if set(numbers) != set(range(len(numbers))):
        raise UserError(f"{folder / layout.TASKS} numbers its tasks {numbers}; expected 0, 1, 2, ..., each once")
    for number, instruction in zip(numbers, instructions, strict=True):
        if not isinstance(instruction, str) or not instruction.strip():
            raise UserError(
                f"{folder / layout.TASKS}: the instruction of task_index {number} is {instruction!r}; expected words. Remove "
                "its episodes, or write what they show"
            )
    by_index = dict(zip(numbers, instructions, strict=True))
    return [by_index[index] for index in range(len(by_index))]


def read_episodes(folder: Path, total_frames: int) -> list[dict[str, Any]]:
    """Rows of `meta/episodes` in order, checked to be complete; where an episode's frames lie, the data files say."""
    needed = ("episode_index", "length", "data/chunk_index", "data/file_index")
    rows: list[dict[str, Any]] = []
    for path in sorted((folder / "meta/episodes").glob("*/*.parquet")):
        table = _read_table(path)
        for name in needed:
            if name not in table.column_names:
                raise UserError(f"{path} lacks {name!r}; copy it again")
            try:
                numbers = layout.column_values(table[name], 1, np.int64)
            except ValueError as error:
                raise UserError(f"{path}, column {name!r}: {error}; copy it again") from error
            if len(numbers) and numbers.min() < 0:
                raise UserError(f"{path}, column {name!r}: {numbers.min()} is negative; copy it again")
            table = table.set_column(table.column_names.index(name), name, pa.array(numbers[:, 0]))
        rows += table.select([name for name in table.column_names if not name.startswith("stats/")]).to_pylist()
    rows.sort(key=lambda row: row["episode_index"])
    for number, row in enumerate(rows):
        if row["episode_index"] != number:
            raise UserError(f"{folder}/meta/episodes: episode {number} is missing or doubled; copy it again")
    frames = sum(row["length"] for row in rows)
    if frames == 0 or frames != total_frames:
        raise UserError(
            f"{folder}/meta/episodes lists {len(rows)} episodes with {frames} frames; "
            f"{layout.INFO} says {total_frames} frames: an episodes file is missing or {layout.INFO} is of another version "
            "of the dataset; copy the meta/ folder again"
        )
    return rows


def read_stats(folder: Path) -> dict[str, Any]:
    """`meta/stats.json`; empty where there is none, since everything that is needed is measured over the frames."""
    path = folder / layout.STATS
    return _read_json(path) if path.is_file() else {}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); copy it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}; expected an object")
    return value


def _read_table(path: Path) -> pa.Table:
    if not path.is_file():
        raise UserError(f"{path} is missing; copy the dataset's meta/ folder completely")
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); copy it again") from error
