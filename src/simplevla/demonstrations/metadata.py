"""Reads the `meta/` folder of a LeRobotDataset v3.0 or v2.1; every fault is a UserError that says what to do."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from annotated_types import Ge, Le

from simplevla.checked import Above0, Count, from_dict, part
from simplevla.demonstrations import layout, metadata_v21
from simplevla.errors import UserError, brief
from simplevla.storage import read_json

DATA_FIELDS = r"\{(chunk_index|file_index)(:0?\d{1,2}d?)?\}"
VIDEO_KEY = r"|\{video_key\}"
"""Patterns of the fields that a path in info.json may contain."""
REMEDIES = {
    "v2.0": "convert it with LeRobot 0.3.3, once it is on the hub: python -m lerobot.datasets.v21.convert_dataset_v20_to_v21 "
    "--repo-id=NAME",
    "v1": "convert it with LeRobot 0.1: python lerobot/common/datasets/v2/convert_dataset_v1_to_v2.py --help",
}
"""Remedies for older versions, by how they begin."""


@part(frozen=True, kw_only=True)
class Feature:
    """A column of the data files, or a camera."""

    dtype: str
    shape: tuple[Annotated[int, Ge(0), Le(10**6)], ...]
    names: list[Any] | dict[str, Any] | None = None


@part(frozen=True, kw_only=True)
class Info:
    """The part of `meta/info.json` that is read."""

    features: dict[str, Feature]
    fps: Above0
    data_path: str
    video_path: str | None = None
    total_frames: Count
    simplevla: dict[str, Any] | None = None
    """Suite, protocol and settings of demonstrations that were generated here."""


def read_info(folder: Path) -> dict[str, Any]:
    """`meta/info.json`, with paths of v3.0.

    Raises:
        UserError: there is none, of another version than v3.0 and v2.1, or it holds something else than it should.
    """
    path = folder / layout.INFO
    if not path.is_file():
        partial = Path(f"{folder}.partial")
        hint = f"{partial} was interrupted: generate again to finish it" if partial.is_dir() else "check the path"
        raise UserError(f"{folder} is no dataset: {layout.INFO} is missing; {hint}")
    info = read_json(path)
    version = info.get("codebase_version")
    if version not in (layout.CODEBASE_VERSION, metadata_v21.VERSION):
        remedy = next((told for start, told in REMEDIES.items() if str(version).startswith(start)), "")
        raise UserError(
            f"{folder} has codebase_version {brief(version)}; expected {layout.CODEBASE_VERSION!r} or {metadata_v21.VERSION!r}: "
            f"{remedy or 'use a dataset of these versions'}"
        )
    checked = from_dict(Info, info, source=str(path))
    own = metadata_v21 if _is_v21(info) else layout
    fields = metadata_v21.DATA_FIELDS if _is_v21(info) else DATA_FIELDS
    for key, template, allowed, example in (
        ("data_path", checked.data_path, fields, own.DATA),
        ("video_path", checked.video_path, fields + VIDEO_KEY, own.VIDEO),
    ):
        if template is not None and not _is_template(template, allowed):
            raise UserError(f"{path}: {key} is {brief(template)}; expected a path such as {example!r}")
        if template is not None and _is_v21(info):
            info = {**info, key: metadata_v21.as_v30(template)}
    return info


def _is_v21(info: dict[str, Any]) -> bool:
    return info["codebase_version"] == metadata_v21.VERSION


def read_tasks(folder: Path, info: dict[str, Any]) -> list[str]:
    """Instructions by `task_index`, each with a number and words of its own."""
    file = folder / (metadata_v21.TASKS if _is_v21(info) else layout.TASKS)
    tasks = metadata_v21.read_tasks(folder) if _is_v21(info) else _read_tasks(folder)
    numbers = [number for number, _ in tasks]
    if set(numbers) != set(range(len(numbers))):
        raise UserError(f"{file} numbers its tasks {numbers}; expected 0, 1, 2, ..., each once")
    for number, instruction in tasks:
        if not isinstance(instruction, str) or not instruction.strip():
            raise UserError(
                f"{file}: the instruction of task_index {number} is {instruction!r}; expected words. Remove its episodes, or "
                "write what they show"
            )
    by_index = dict(tasks)
    return [by_index[index] for index in range(len(by_index))]


def _read_tasks(folder: Path) -> list[tuple[int, Any]]:
    table = read_table(folder / layout.TASKS)
    texts = [name for name in table.column_names if name != "task_index"]
    if "task_index" not in table.column_names or len(texts) != 1:
        raise UserError(
            f"{folder / layout.TASKS} has the columns {table.column_names}; expected task_index and the task"
        )
    try:
        numbers = layout.column_values(table["task_index"], 1, np.int64)[:, 0].tolist()
    except (ValueError, KeyError) as error:
        raise UserError(f"{folder / layout.TASKS}, column 'task_index': {error}; copy it again") from error
    return list(zip(numbers, table[texts[0]].to_pylist(), strict=True))


def read_episodes(folder: Path, info: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of `meta/episodes` in order, checked to be complete; where an episode's frames lie, the data files say."""
    rows = metadata_v21.read_episodes(folder, info) if _is_v21(info) else _read_episodes(folder)
    place = f"{folder}/{metadata_v21.EPISODES}" if _is_v21(info) else f"{folder}/meta/episodes"
    rows.sort(key=lambda row: row["episode_index"])
    for number, row in enumerate(rows):
        if row["episode_index"] != number:
            raise UserError(f"{place}: episode {number} is missing or doubled; copy it again")
    frames, said = sum(row["length"] for row in rows), info["total_frames"]
    if frames == 0 or frames != said:
        raise UserError(
            f"{place} lists {len(rows)} episodes with {frames} frames; {layout.INFO} says {said} frames: an episodes file is "
            f"missing or {layout.INFO} is of another version of the dataset; copy the meta/ folder again"
        )
    return rows


def _read_episodes(folder: Path) -> list[dict[str, Any]]:
    needed = ("episode_index", "length", "data/chunk_index", "data/file_index")
    rows: list[dict[str, Any]] = []
    for path in sorted((folder / "meta/episodes").glob("*/*.parquet")):
        table = read_table(path)
        for name in needed:
            if name not in table.column_names:
                raise UserError(f"{path} lacks {name!r}; copy it again")
            try:
                numbers = layout.column_values(table[name], 1, np.int64)
            except (ValueError, KeyError) as error:
                raise UserError(f"{path}, column {name!r}: {error}; copy it again") from error
            if len(numbers) and numbers.min() < 0:
                raise UserError(f"{path}, column {name!r}: {numbers.min()} is negative; copy it again")
            table = table.set_column(table.column_names.index(name), name, pa.array(numbers[:, 0]))
        rows += table.select([name for name in table.column_names if not name.startswith("stats/")]).to_pylist()
    return rows


def read_stats(
    folder: Path, info: dict[str, Any], keys: Sequence[str], episodes: Sequence[int], everything: bool
) -> tuple[Path, dict[str, Any]]:
    """The file with statistics, and those of the features `keys` over `episodes`.

    Empty where there are none, or only others', since everything that is needed is measured over the frames.

    Args:
        everything: the dataset has no other episodes.
    """
    path = folder / layout.STATS
    if _is_v21(info) and not (path.is_file() and everything):
        return folder / metadata_v21.STATS, metadata_v21.read_stats(folder, keys, episodes)
    return path, read_json(path) if path.is_file() and everything else {}


def _is_template(template: str, fields: str) -> bool:
    """True for a path within the dataset in which nothing but `fields` is filled in, with at most 99 digits."""
    filled = Path(re.sub(fields, "0", template))
    plain = re.search(r"[{}*?\[\]\0]", str(filled)) is None and len(template) < 500
    return plain and filled.name != "" and not filled.is_absolute() and ".." not in filled.parts


def read_table(path: Path) -> pa.Table:
    """The table in a parquet file of the dataset.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; copy the dataset completely")
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); copy it again") from error
