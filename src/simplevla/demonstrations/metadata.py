"""Reads the `meta/` folder of a LeRobotDataset v3.0; every fault is a UserError that says what to do."""

import re
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from annotated_types import Ge, Le

from simplevla.checked import Above0, Count, from_dict, part
from simplevla.demonstrations import layout
from simplevla.errors import UserError, brief
from simplevla.storage import read_json

DATA_FIELDS = r"\{(chunk_index|file_index)(:0?\d{1,2}d?)?\}"
VIDEO_FIELDS = DATA_FIELDS + r"|\{video_key\}"
"""Patterns of the fields that a path in info.json may contain."""


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
    """`meta/info.json` of a dataset of the version that is read here."""
    path = folder / layout.INFO
    if not path.is_file():
        partial = folder.with_name(folder.name + ".partial")
        hint = f"{partial} was interrupted: generate again to finish it" if partial.is_dir() else "check the path"
        raise UserError(f"{folder} is no dataset: {layout.INFO} is missing; {hint}")
    info = read_json(path)
    version = info.get("codebase_version")
    if version != layout.CODEBASE_VERSION:
        remedy = (
            "convert it with LeRobot: python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=NAME "
            "--root=FOLDER --push-to-hub=false"
            if str(version).startswith("v2")
            else "use a dataset of that version"
        )
        raise UserError(f"{folder} has codebase_version {version!r}; expected {layout.CODEBASE_VERSION!r}: {remedy}")
    checked = from_dict(Info, info, source=str(path))
    for key, template, fields, example in (
        ("data_path", checked.data_path, DATA_FIELDS, layout.DATA),
        ("video_path", checked.video_path, VIDEO_FIELDS, layout.VIDEO),
    ):
        if template is not None and not _is_template(template, fields):
            raise UserError(f"{path}: {key} is {brief(template)}; expected a path such as {example!r}")
    return info


def read_tasks(folder: Path) -> list[str]:
    """Instructions by `task_index`."""
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
    instructions = table[texts[0]].to_pylist()
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
    return read_json(path) if path.is_file() else {}


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
