"""All that a dataset's data files hold but images: read once, checked, and put in the order of the episodes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from simplevla.demonstrations import layout
from simplevla.errors import UserError

INDICES = ("episode_index", "index", "task_index")
STILL = 1e-4
"""Largest change of a dimension, as a share of its range, of a robot that rests."""


class Vectors(NamedTuple):
    """The features that are state and action, and their dimensions."""

    state: str
    state_dim: int
    action: str
    action_dim: int


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The F rows that are wanted of a dataset, episode after episode, each in the order of its frames."""

    state: np.ndarray
    """float32 [F, S]."""
    actions: np.ndarray
    """float32 [F, A]."""
    episode_index: np.ndarray
    """int64 [F], the dataset's own numbers."""
    task_index: np.ndarray
    """int64 [F]."""
    places: dict[Path, np.ndarray]
    """Data file -> int64, which of the F rows each row of the file is; -1 for rows that aren't wanted."""

    @cached_property
    def idle(self) -> np.ndarray:
        """bool [F]: true where state and action, gripper included, are those of the frame before in the episode.

        No dimension differs by more than `STILL` of its range over all frames, since a robot's sensors are never quite
        still. What one command means, a delta or a place, isn't known, and this holds for both.
        """
        idle = np.zeros(len(self.state), bool)
        idle[1:] = self.episode_index[1:] == self.episode_index[:-1]
        for values in (self.state, self.actions):
            wide = values.astype(np.float64)
            idle[1:] &= (np.abs(np.diff(wide, axis=0)) <= STILL * np.ptp(wide, axis=0)).all(1)
        return idle


def read_rows(
    folder: Path,
    info: dict[str, Any],
    episodes: Sequence[dict[str, Any]],
    listed: int,
    vectors: Vectors,
    instructions: Sequence[str],
    fps: float | None,
) -> Rows:
    """Finds every episode's rows by what the data files hold, whatever `meta/episodes` says about where they lie.

    Args:
        episodes: the rows of `meta/episodes` that are wanted.
        listed: number of all rows of `meta/episodes`.
        instructions: by `task_index`, in the dataset's words.
        fps: check the timestamps against this; None where no picture depends on them.

    Raises:
        UserError: rows are missing, doubled, out of order or no finite numbers of these dimensions, a timestamp isn't
            its frame's, an instruction isn't its episode's, or a file is damaged; says where.
    """
    numbers, lengths = (np.array([episode[key] for episode in episodes]) for key in ("episode_index", "length"))
    named = [
        folder / info["data_path"].format(chunk_index=c, file_index=f)
        for c, f in dict.fromkeys((e["data/chunk_index"], e["data/file_index"]) for e in episodes)
    ]
    pattern = re.sub(r"\{[^}]*\}", "*", info["data_path"])
    files = {path: _read_file(path, vectors, fps) for path in named if path.is_file()}
    for path, columns in files.items():
        _require_listed(folder, path, columns["episode_index"], listed)
        columns["wanted"] &= np.isin(columns["episode_index"], numbers)
    short = numbers[_counts(files, numbers) < lengths]
    for path in sorted(set(folder.glob(pattern)) - set(files)) if len(short) else ():
        columns = _read_file(path, vectors, fps)
        columns["wanted"] &= np.isin(columns["episode_index"], short)
        files[path] = columns
    counts = _counts(files, numbers)
    if (counts != lengths).any():
        episode = int(np.argmax(counts != lengths))
        absent = [f"{path} is missing" for path in named if not path.is_file()]
        cause = absent[0] if absent else "a data file is incomplete or doubled"
        raise UserError(
            f"{folder} holds {counts.sum()} frames; meta/episodes lists {lengths.sum()}; episode {numbers[episode]} has "
            f"{counts[episode]} of {lengths[episode]}: {cause}; copy the dataset's data/ folder completely"
        )
    rows = _in_order(folder, files, lengths, len(instructions), fps)
    _check_tasks(folder, rows, episodes, instructions)
    return rows


def _read_file(path: Path, vectors: Vectors, fps: float | None) -> dict[str, np.ndarray]:
    """`state`, `action` and the indices of one data file, and `wanted` bool, true so far."""
    wanted: dict[str, tuple[str, int, Any]] = {key: (key, 1, np.int64) for key in INDICES}
    wanted["state"] = (vectors.state, vectors.state_dim, np.float32)
    wanted["action"] = (vectors.action, vectors.action_dim, np.float32)
    if fps is not None:
        wanted["timestamp"] = ("timestamp", 1, np.float64)
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            absent = [key for key, _, _ in wanted.values() if key not in names]
            if absent:
                raise UserError(f"{path} lacks the columns {', '.join(absent)}; its columns: {names}")
            if "frame_index" in names:
                wanted["frame_index"] = ("frame_index", 1, np.int64)
            table = file.read(columns=list(dict.fromkeys(key for key, _, _ in wanted.values())))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); copy it again") from error
    columns: dict[str, np.ndarray] = {"wanted": np.ones(len(table), bool)}
    for name, (key, size, dtype) in wanted.items():
        try:
            values = layout.column_values(table[key], size, dtype)
        except (ValueError, KeyError) as error:
            raise UserError(f"{path}, column {key!r}: {error}; remove the episode or write the file again") from error
        columns[name] = values if name in ("state", "action") else values[:, 0]
    return columns


def _require_listed(folder: Path, path: Path, episode: np.ndarray, listed: int) -> None:
    if len(episode) and not 0 <= episode.min() <= episode.max() < listed:
        raise UserError(
            f"{folder} holds more frames than meta/episodes lists: {path} has rows of the episodes {episode.min()} to "
            f"{episode.max()}; expected 0 to {listed - 1}; copy the dataset's meta/ folder completely"
        )


def _counts(files: dict[Path, dict[str, np.ndarray]], numbers: np.ndarray) -> np.ndarray:
    """Number of wanted rows of each of the episodes `numbers`."""
    wanted = [columns["episode_index"][columns["wanted"]] for columns in files.values()]
    rows = np.concatenate([np.empty(0, np.int64), *wanted])
    return np.bincount(np.searchsorted(numbers, rows), minlength=len(numbers))


def _in_order(
    folder: Path,
    files: dict[Path, dict[str, np.ndarray]],
    lengths: np.ndarray,
    num_tasks: int,
    fps: float | None,
) -> Rows:
    def joined(key: str) -> np.ndarray:
        return np.concatenate([columns[key][columns["wanted"]] for columns in files.values()])

    episode, index = joined("episode_index"), joined("index")
    order = np.lexsort((index, episode))
    place_of_row = np.empty(len(order), np.int64)
    place_of_row[order] = np.arange(len(order))
    places, start = {}, 0
    for path, columns in files.items():
        places[path] = np.full(len(columns["wanted"]), -1)
        places[path][columns["wanted"]] = place_of_row[start : start + columns["wanted"].sum()]
        start += columns["wanted"].sum()
    rows = Rows(
        state=joined("state")[order],
        actions=joined("action")[order],
        episode_index=episode[order],
        task_index=joined("task_index")[order],
        places=places,
    )
    # Counted from each episode's first.
    number = np.arange(len(order)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    index = index[order]
    numbers = {"index": index - np.repeat(index[number == 0], lengths[lengths > 0])}
    if all("frame_index" in columns for columns in files.values()):
        numbers["frame_index"] = joined("frame_index")[order]
    for key, got in numbers.items():
        if not np.array_equal(got, number):
            at = int(np.argmax(got != number))
            raise UserError(
                f"{folder}: {key} doesn't count the frames of episode {rows.episode_index[at]} one by one, from frame {at} "
                "on: frames are out of order, missing or doubled; copy the dataset's data/ folder completely"
            )
    _check_finite(folder, rows)
    if rows.task_index.min() < 0 or rows.task_index.max() >= num_tasks:
        raise UserError(
            f"{folder}: task_index runs from {rows.task_index.min()} to {rows.task_index.max()}; "
            f"meta/ lists {num_tasks} tasks"
        )
    if fps is not None:
        _check_times(folder, rows, joined("timestamp")[order], number, fps)
    return rows


def _check_finite(folder: Path, rows: Rows) -> None:
    for name, values in (("state", rows.state), ("action", rows.actions)):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            frame, dimension = (int(x) for x in bad[0])
            raise UserError(
                f"{folder}: {name} dimension {dimension} is {values[frame, dimension]} at frame {frame} "
                f"of episode {rows.episode_index[frame]} ({len(bad)} such values); expected finite numbers, "
                "remove the episode"
            )


def _check_tasks(folder: Path, rows: Rows, episodes: Sequence[dict[str, Any]], instructions: Sequence[str]) -> None:
    """Compares the frames' instructions with those that `meta/episodes` lists for the episode, if it does."""
    listed_tasks = {episode["episode_index"]: episode.get("tasks") for episode in episodes}
    for number, task in np.unique(np.stack([rows.episode_index, rows.task_index]), axis=1).T.tolist():
        listed = listed_tasks[number]
        if listed and instructions[task] not in (listed if isinstance(listed, list) else [listed]):
            raise UserError(
                f"{folder}: the frames of episode {number} have task_index {task}, which is {instructions[task]!r} in "
                f"meta/tasks, and meta/episodes says {listed}: one of them belongs to another dataset; copy it completely"
            )


def _check_times(folder: Path, rows: Rows, times: np.ndarray, number: np.ndarray, fps: float) -> None:
    """Half a frame off, and the picture would be another frame's; NaN is off as well."""
    bad = np.flatnonzero(~(np.abs(times * fps - number) < 0.5))
    if len(bad):
        frame = int(bad[0])
        raise UserError(
            f"{folder}: timestamp is {times[frame]} s at frame {frame} of episode {rows.episode_index[frame]} ({len(bad)} such "
            f"frames); expected {number[frame] / fps:.4g} s, since it is number {number[frame]} of its episode and "
            f"info.json says {fps:g} frames a second; remove the episode or correct its timestamps"
        )
