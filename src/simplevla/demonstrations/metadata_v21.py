"""Reads the `meta/` folder of a LeRobotDataset v2.1, whose tables are JSON lines, and gives what one of v3.0 holds.

LeRobot 0.3's `lerobot/datasets/utils.py` names the files: one data file, and one video of each camera, per episode.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simplevla.checked import Count, Positive, from_dict, part
from simplevla.errors import UserError
from simplevla.storage import LONGEST_JSON, parse_json

VERSION = "v2.1"
TASKS, EPISODES, STATS = "meta/tasks.jsonl", "meta/episodes.jsonl", "meta/episodes_stats.jsonl"
DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
DATA_FIELDS = r"\{(episode_chunk|episode_index)(:0?\d{1,2}d?)?\}"


@part(frozen=True, kw_only=True)
class Chunks:
    """The part of `meta/info.json` that v3.0 doesn't need."""

    chunks_size: Positive
    """Episodes in a chunk."""


@part(frozen=True, kw_only=True)
class TaskLine:
    """A line of `TASKS`."""

    task_index: Count
    task: str


@part(frozen=True, kw_only=True)
class EpisodeLine:
    """A line of `EPISODES`."""

    episode_index: Count
    length: Count
    tasks: list[str] | None = None


@part(frozen=True, kw_only=True)
class Measures:
    """Statistics of an episode's vectors."""

    min: list[float]
    max: list[float]
    mean: list[float]
    std: list[float]
    count: tuple[Positive]


@part(frozen=True, kw_only=True)
class StatsLine:
    """A line of `STATS`."""

    episode_index: Count
    stats: dict[str, Any]


def as_v30(template: str) -> str:
    """A path of `info.json` with the fields of v3.0: a file of an episode has the episode's number."""
    return re.sub(r"\{episode_chunk", "{chunk_index", re.sub(r"\{episode_index", "{file_index", template))


def read_tasks(folder: Path) -> list[tuple[int, str]]:
    """(task_index, instruction) of each line."""
    lines = (from_dict(TaskLine, line, source) for source, line in _lines(folder / TASKS))
    return [(line.task_index, line.task) for line in lines]


def read_episodes(folder: Path, info: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that `meta/episodes` of v3.0 would hold."""
    size = from_dict(Chunks, info, source=f"{folder}/meta/info.json").chunks_size
    videos = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    rows = []
    for source, values in _lines(folder / EPISODES):
        line = from_dict(EpisodeLine, values, source)
        chunk, file = line.episode_index // size, line.episode_index
        row: dict[str, Any] = {"episode_index": line.episode_index, "length": line.length, "tasks": line.tasks}
        row |= {"data/chunk_index": chunk, "data/file_index": file}
        for key in videos:
            row |= {f"videos/{key}/chunk_index": chunk, f"videos/{key}/file_index": file}
            row |= {f"videos/{key}/from_timestamp": 0.0}
        rows.append(row)
    return rows


def read_stats(folder: Path, keys: Sequence[str], episodes: Sequence[int]) -> dict[str, Any]:
    """Statistics of the features `keys` over `episodes`, from those of each; empty unless there are all.

    Raises:
        UserError: a line holds something else than statistics of these vectors.
    """
    if not (folder / STATS).is_file():
        return {}
    found: dict[str, dict[int, Measures]] = {key: {} for key in keys}
    for source, values in _lines(folder / STATS):
        line = from_dict(StatsLine, values, source)
        for key in keys:
            if key in line.stats:
                one = from_dict(Measures, _object(line.stats[key], source), f"{source}, {key}")
                if len({len(one.min), len(one.max), len(one.mean), len(one.std)}) != 1:
                    raise UserError(f"{source}, {key}: its measures have different lengths; delete the file")
                found[key][line.episode_index] = one
    return {
        key: _over_all([measures[number] for number in episodes])
        for key, measures in found.items()
        if set(episodes) <= set(measures) and len({len(measures[number].min) for number in episodes}) == 1
    }


def _over_all(parts: Sequence[Measures]) -> dict[str, list[float]]:
    """Measures over all frames, from those of the episodes: the variance is their mean one plus that of their means."""
    share = np.array([part.count[0] for part in parts], np.float64)[:, None]
    share /= share.sum()
    means, stds = (np.array([getattr(part, name) for part in parts]) for name in ("mean", "std"))
    mean = (share * means).sum(0)
    with np.errstate(over="ignore"):
        variance = (share * (stds**2 + (means - mean) ** 2)).sum(0)
    return {
        "min": np.min([part.min for part in parts], axis=0).tolist(),
        "max": np.max([part.max for part in parts], axis=0).tolist(),
        "mean": mean.tolist(),
        "std": np.sqrt(variance).tolist(),
    }


def _object(value: Any, source: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{source} holds a JSON {type(value).__name__}; expected an object of measures")
    return value


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line, for messages; the line's object) of JSON lines, each of at most `LONGEST_JSON` bytes."""
    if not path.is_file():
        raise UserError(f"{path} is missing; copy the meta/ folder completely")
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(LONGEST_JSON + 1)
            if not line:
                return
            source = f"{path}, line {number}"
            if len(line) > LONGEST_JSON:
                raise UserError(f"{source} has more than {LONGEST_JSON} bytes; expected a JSON object: copy it again")
            if line.strip():
                yield source, parse_json(line, source)
