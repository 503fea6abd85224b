"""Reads LeRobotDataset v3.0 folders, our own and others', with images in the parquet files or in videos."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import Progress

from simplevla.demonstrations import layout, metadata
from simplevla.demonstrations.images import decode_image, decode_video
from simplevla.demonstrations.writer import DatasetWriter, DemonstrationEpisode

__all__ = ["DatasetWriter", "DemonstrationEpisode", "Frames", "LeRobotDataset"]

ROWS_PER_READ = 512
"""Frames decoded at a time: bounds the memory for compressed images."""
ROWS_PER_THREAD = 64
"""Images a thread decodes in one go: enough that handing them over costs nothing."""


@dataclass(frozen=True, kw_only=True)
class Frames:
    """All F frames of a dataset, decoded, in the order of the episodes."""

    images: dict[str, np.ndarray]
    """Camera -> uint8 [F, height, width, 3], RGB."""
    state: np.ndarray
    """float32 [F, S]."""
    actions: np.ndarray
    """float32 [F, A], the action taken at that frame."""
    task_index: np.ndarray
    """int64 [F], index into `LeRobotDataset.instructions`."""
    episode_index: np.ndarray
    """int64 [F]."""


class LeRobotDataset:
    """A dataset on the disk; opening it reads the `meta/` folder only.

    Raises:
        ValueError: the folder is no such dataset, has another version, or is incomplete or damaged; says what to do.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.info = metadata.read_info(self.folder)
        self.features: dict[str, dict[str, Any]] = self.info["features"]
        self.fps = float(self.info["fps"])
        self.state_dim = self._dimensions(layout.STATE)
        self.action_dim = self._dimensions(layout.ACTION)
        self._camera_keys = {
            _camera_name(key): key for key, feature in self.features.items() if feature["dtype"] in ("image", "video")
        }
        if not self._camera_keys:
            raise ValueError(f"{self.folder} has no camera; expected a feature such as {layout.IMAGE_PREFIX}front")
        self.cameras = {camera: _image_size(self.features[key]) for camera, key in self._camera_keys.items()}
        """Camera -> (height, width)."""
        self.instructions = metadata.read_tasks(self.folder)
        """Index is `task_index`."""
        self._episodes = metadata.read_episodes(self.folder, int(self.info["total_frames"]))
        self.episode_ranges = [(int(e["dataset_from_index"]), int(e["dataset_to_index"])) for e in self._episodes]
        """First frame and one past the last frame of each episode."""
        self.num_frames = self.episode_ranges[-1][1]
        self.statistics = metadata.read_statistics(self.folder, self.state_dim, self.action_dim)
        self.origin: dict[str, Any] | None = self.info.get("simplevla")
        """Suite, protocol and settings of demonstrations that were generated here; None for other datasets."""

    @property
    def num_episodes(self) -> int:
        return len(self.episode_ranges)

    @property
    def initial_states(self) -> list[int] | None:
        """The suite's initial state of each episode; None where the dataset doesn't say."""
        return [int(e["initial_state"]) for e in self._episodes] if "initial_state" in self._episodes[0] else None

    @property
    def task_names(self) -> list[str] | None:
        """The suite's task of each episode; None where the dataset doesn't say."""
        return [str(e["task_name"]) for e in self._episodes] if "task_name" in self._episodes[0] else None

    def load_all(self, progress: bool = False) -> Frames:
        """Decode the whole dataset into memory: F x height x width x 3 bytes per camera."""
        total = self.num_frames
        frames = Frames(
            images={camera: np.empty((total, *size, 3), np.uint8) for camera, size in self.cameras.items()},
            state=np.empty((total, self.state_dim), np.float32),
            actions=np.empty((total, self.action_dim), np.float32),
            task_index=np.empty(total, np.int64),
            episode_index=np.empty(total, np.int64),
        )
        timestamps = np.empty(total, np.float64)
        with Progress(disable=not progress) as bar, ThreadPoolExecutor() as threads:
            reading = bar.add_task("reading frames", total=total)
            start = 0
            for path in self._data_files():
                for batch in self._batches(path):
                    stop = start + len(batch)
                    if stop > total:
                        raise ValueError(f"{self.folder} holds more frames than meta/episodes lists ({total})")
                    self._fill(frames, timestamps, batch, start, path, threads)
                    start = stop
                    bar.update(reading, completed=start)
            if start < total:
                raise ValueError(
                    f"{self.folder} holds {start} frames; meta/episodes lists {total}: a data file is incomplete, "
                    "copy the dataset again"
                )
            self._check(frames)
            for camera, key in self._camera_keys.items():
                if self.features[key]["dtype"] == "video":
                    self._fill_from_videos(key, frames.images[camera], timestamps, bar)
        return frames

    def _dimensions(self, key: str) -> int:
        if key not in self.features:
            raise ValueError(f"{self.folder} has no feature {key!r}; it has: {', '.join(self.features)}")
        shape = self.features[key]["shape"]
        if len(shape) != 1:
            raise ValueError(f"{self.folder}: feature {key!r} has shape {shape}; expected one dimension")
        return int(shape[0])

    def _data_files(self) -> list[Path]:
        places = dict.fromkeys((int(e["data/chunk_index"]), int(e["data/file_index"])) for e in self._episodes)
        return [self.folder / self.info["data_path"].format(chunk_index=c, file_index=f) for c, f in places]

    def _batches(self, path: Path) -> Iterable[pa.RecordBatch]:
        keys = [layout.STATE, layout.ACTION, "timestamp", "episode_index", "index", "task_index"]
        keys += [key for key in self._camera_keys.values() if self.features[key]["dtype"] == "image"]
        if not path.is_file():
            raise ValueError(f"{path} is missing; copy the dataset's data/ folder completely")
        try:
            with pq.ParquetFile(path) as file:
                absent = [key for key in keys if key not in file.schema_arrow.names]
                if absent:
                    raise ValueError(
                        f"{path} lacks the columns {', '.join(absent)}; its columns: {file.schema_arrow.names}"
                    )
                yield from file.iter_batches(ROWS_PER_READ, columns=keys)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{path} is damaged or cut short ({error}); copy it again") from error

    def _fill(
        self,
        frames: Frames,
        timestamps: np.ndarray,
        batch: pa.RecordBatch,
        start: int,
        path: Path,
        threads: ThreadPoolExecutor,
    ) -> None:
        rows = slice(start, start + len(batch))
        for key, target in ((layout.STATE, frames.state), (layout.ACTION, frames.actions)):
            values = layout.vector_values(batch[key], target.shape[1])
            if values is None:
                raise ValueError(
                    f"{path}: rows of {key!r} don't have the {target.shape[1]} numbers that info.json says"
                )
            target[rows] = values
        frames.task_index[rows] = batch["task_index"].to_numpy()
        frames.episode_index[rows] = batch["episode_index"].to_numpy()
        timestamps[rows] = batch["timestamp"].to_numpy()
        if not np.array_equal(batch["index"].to_numpy(), np.arange(rows.start, rows.stop)):
            raise ValueError(
                f"{path}: frame {start} and those after it are out of order; a data file is missing or doubled"
            )
        for camera, key in self._camera_keys.items():
            if self.features[key]["dtype"] == "image":
                files = batch[key].field("bytes").to_pylist()
                parts = range(0, len(files), ROWS_PER_THREAD)
                jobs = [
                    threads.submit(
                        _decode_embedded,
                        files[i : i + ROWS_PER_THREAD],
                        frames.images[camera][start + i : start + i + ROWS_PER_THREAD],
                        f"{path}, {key}",
                        start + i,
                    )
                    for i in parts
                ]
                for job in jobs:
                    job.result()

    def _fill_from_videos(self, key: str, target: np.ndarray, timestamps: np.ndarray, bar: Progress) -> None:
        by_file: dict[Path, tuple[list[float], list[int]]] = {}
        for episode, (start, stop) in zip(self._episodes, self.episode_ranges, strict=True):
            path = self.folder / str(self.info["video_path"]).format(
                video_key=key,
                chunk_index=int(episode[f"videos/{key}/chunk_index"]),
                file_index=int(episode[f"videos/{key}/file_index"]),
            )
            times, rows = by_file.setdefault(path, ([], []))
            times += (episode[f"videos/{key}/from_timestamp"] + timestamps[start:stop]).tolist()
            rows += range(start, stop)
        for path in bar.track(by_file, description=f"decoding {key}"):
            times, rows = by_file[path]
            decode_video(path, np.array(times), self.fps, rows, target)

    def _check(self, frames: Frames) -> None:
        for name, values in (("state", frames.state), ("action", frames.actions)):
            bad = np.argwhere(~np.isfinite(values))
            if len(bad):
                frame, dimension = (int(x) for x in bad[0])
                raise ValueError(
                    f"{self.folder}: {name} dimension {dimension} is {values[frame, dimension]} at frame {frame} "
                    f"of episode {frames.episode_index[frame]} ({len(bad)} such values); expected finite numbers, "
                    "remove the episode"
                )
        for number, (start, stop) in enumerate(self.episode_ranges):
            if not (frames.episode_index[start:stop] == number).all():
                raise ValueError(
                    f"{self.folder}: frames {start} to {stop} don't belong to episode {number}, as meta says"
                )
        if frames.task_index.min() < 0 or frames.task_index.max() >= len(self.instructions):
            raise ValueError(
                f"{self.folder}: task_index runs from {frames.task_index.min()} to {frames.task_index.max()}; "
                f"{layout.TASKS} has {len(self.instructions)} tasks"
            )


def _decode_embedded(files: list[bytes | None], target: np.ndarray, where: str, first: int) -> None:
    for row, data in enumerate(files):
        at = f"{where}, frame {first + row}"
        if data is None:
            raise ValueError(
                f"{at}: the image isn't in the parquet file, only its path; write it with the images embedded"
            )
        decode_image(data, target[row], at)


def _camera_name(key: str) -> str:
    return key.removeprefix(layout.IMAGE_PREFIX).removeprefix("observation.")


def _image_size(feature: dict[str, Any]) -> tuple[int, int]:
    """(height, width), whether the feature puts its channels first or last."""
    names, shape = feature.get("names") or [], feature["shape"]
    first = str(names[0]).startswith("channel") if names else shape[0] == 3 and shape[-1] != 3
    height, width = shape[1:] if first else shape[:2]
    return int(height), int(width)
