"""Reads LeRobotDataset v3.0 and v2.1 folders, our own and others', with images in the parquet files or in videos."""

import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from simplevla import hub
from simplevla.demonstrations import metadata
from simplevla.demonstrations.bounds import bounded_statistics, statistics_of, warn_of_other_statistics
from simplevla.demonstrations.cameras import Camera, named_cameras
from simplevla.demonstrations.choice import chosen_episodes, known, told
from simplevla.demonstrations.episode import DemonstrationEpisode
from simplevla.demonstrations.images import decode_image
from simplevla.demonstrations.rows import Rows, Vectors, read_rows
from simplevla.demonstrations.streaming import (
    EmbeddedPictures,
    Pictures,
    VideoPictures,
    encoded_bytes,
    make_spill,
    require_images,
)
from simplevla.demonstrations.videos import decode_video, video_places
from simplevla.demonstrations.writer import DatasetWriter
from simplevla.errors import UserError
from simplevla.policies.normalization import Statistics
from simplevla.progress import tracked
from simplevla.reading import ReadingConfig, camera_features
from simplevla.terminal import Console

__all__ = ["DatasetWriter", "DemonstrationEpisode", "Frames", "LeRobotDataset"]

ROWS_PER_READ = 512
"""Frames decoded at a time: bounds the memory for compressed images."""
ROWS_PER_THREAD = 64
"""Images a thread decodes in one go: enough that handing them over costs nothing."""


@dataclass(frozen=True, kw_only=True)
class Frames:
    """All F frames of a dataset, in the order of the episodes."""

    images: Mapping[str, Pictures]
    """Camera -> uint8 [F, height, width, 3], RGB."""
    state: np.ndarray
    """float32 [F, S]."""
    actions: np.ndarray
    """float32 [F, A], the action taken at that frame."""
    task_index: np.ndarray
    """int64 [F], index into `LeRobotDataset.instructions`."""
    episode_index: np.ndarray
    """int64 [F], the dataset's own numbers."""


class LeRobotDataset:
    """A dataset on the disk; opening it reads the `meta/` folder only, `rows` and `load_all` read the data files.

    Args:
        folder: on this machine, or `hf://OWNER/NAME[@REVISION][/FOLDER]` on the hub.
        reading: what of it is read, and the names that it has here; None: all. All below is about that part.

    Raises:
        UserError: the folder is no such dataset, has another version, lacks what `reading` names, or is incomplete or
            damaged; says what to do.
    """

    def __init__(self, folder: Path | str, reading: ReadingConfig | None = None) -> None:
        self.folder = hub.local_folder(folder, "dataset")
        self.reading = reading = reading or ReadingConfig()
        self.info = metadata.read_info(self.folder)
        self.features: dict[str, dict[str, Any]] = self.info["features"]
        self.fps = float(self.info["fps"])
        self.state_dim = self._dimensions(reading.state, "state")
        self.action_dim = self._dimensions(reading.actions, "actions")
        self._cameras = named_cameras(self.folder, self.features, camera_features(reading.cameras))
        self.cameras = {name: camera.size for name, camera in self._cameras.items()}
        """Camera -> (height, width)."""
        self._instructions = metadata.read_tasks(self.folder, self.info)
        self.instructions = told(self.folder, self._instructions, reading)
        """Index is `task_index`."""
        episodes = metadata.read_episodes(self.folder, self.info)
        chosen = chosen_episodes(self.folder, reading.episodes, len(episodes))
        self.numbers = list(chosen)
        """The dataset's own number of each episode."""
        self._listed = len(episodes)
        self._episodes = [episodes[number] for number in chosen]
        ends = np.cumsum([episode["length"] for episode in self._episodes]).tolist()
        self.episode_ranges = list(zip([0, *ends[:-1]], ends, strict=True))
        """First frame and one past the last frame of each episode."""
        self.num_frames: int = ends[-1]
        if self.num_frames == 0:
            raise UserError(f"{self.folder}: the episodes {reading.episodes!r} have no frames; choose others")
        keys = (reading.state, reading.actions)
        self._stats = metadata.read_stats(self.folder, self.info, keys, chosen, len(chosen) == len(episodes))
        self.origin: dict[str, Any] | None = self.info.get("simplevla")
        """Suite, protocol and settings of demonstrations that were generated here; None for other datasets."""

    @cached_property
    def rows(self) -> Rows:
        """All that the data files hold but images, checked."""
        vectors = Vectors(self.reading.state, self.state_dim, self.reading.actions, self.action_dim)
        timed = any(camera.video for camera in self._cameras.values())
        fps = self.fps if timed else None
        return read_rows(self.folder, self.info, self._episodes, self._listed, vectors, self._instructions, fps)

    @cached_property
    def statistics(self) -> Statistics:
        """Measured over the frames; a warning says where `stats.json` differs."""
        measured = statistics_of(self.rows)
        warn_of_other_statistics(*self._stats, measured, self.reading.state, self.reading.actions)
        return measured

    def statistics_for_policy(self, bounds: Literal["min_max", "quantile"] | None) -> Statistics:
        """Statistics by which a new policy normalises; `quantile` takes the 1 % and 99 % quantiles for the extremes.
        None is for a policy that has no bounds.

        Raises:
            UserError: a few extremes would leave the other values hardly any bins.
        """
        bounded = bounded_statistics(self.folder, self.rows, bounds)
        return bounded if bounds == "quantile" else self.statistics

    @property
    def num_episodes(self) -> int:
        return len(self.episode_ranges)

    @property
    def initial_states(self) -> list[int] | None:
        """The suite's initial state of each episode; None where the dataset doesn't say it of every one."""
        values = [episode.get("initial_state") for episode in self._episodes]
        known = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
        return known if len(known) == len(values) else None

    @property
    def task_names(self) -> list[str] | None:
        """The suite's task of each episode; None where the dataset doesn't say it of every one."""
        known = [name for episode in self._episodes if isinstance(name := episode.get("task_name"), str)]
        return known if len(known) == len(self._episodes) else None

    @property
    def events(self) -> list[str] | None:
        """The order of events that solved each episode; None where the dataset doesn't say it of every one."""
        told = [order for episode in self._episodes if isinstance(order := episode.get("events"), str)]
        return told if len(told) == len(self._episodes) else None

    def load_all(self, progress: bool = False) -> Frames:
        """Decodes the whole dataset into memory: F x height x width x 3 bytes per camera."""
        rows = self.rows
        try:
            images = {name: np.empty((self.num_frames, *size, 3), np.uint8) for name, size in self.cameras.items()}
        except (MemoryError, ValueError):
            raise UserError(
                f"{self.folder} says {self.num_frames} frames of {self.cameras} pixels, more than fits into the memory; are the shapes "
                "in meta/info.json right?"
            ) from None
        embedded = {name: camera for name, camera in self._cameras.items() if not camera.video}
        console = Console(quiet=not progress)
        if embedded:
            with tracked(rows.places.items(), "reading files", console) as files, ThreadPoolExecutor() as threads:
                for path, places in files:
                    self._fill_from_parquet(embedded, images, path, places, threads)
        for name, camera in self._cameras.items():
            if camera.video:
                self._fill_from_videos(camera.key, images[name], console)
        return self._frames(images)

    def seen_by(self, cameras: Sequence[str]) -> "LeRobotDataset":
        """The same dataset with these cameras alone; no others are decoded."""
        seen = copy.copy(self)
        seen._cameras = {name: camera for name, camera in self._cameras.items() if name in cameras}
        seen.cameras = {name: camera.size for name, camera in seen._cameras.items()}
        return seen

    @property
    def instructions_met(self) -> list[str]:
        """Instructions that the frames have, in order, each once."""
        met = np.unique(self.rows.task_index).tolist()
        return list(dict.fromkeys(self.instructions[task] for task in met))

    @property
    def decoded_bytes(self) -> int:
        """Bytes of all pictures in memory."""
        return 3 * self.num_frames * sum(height * width for height, width in self.cameras.values())

    @property
    def video_bytes(self) -> int:
        """Bytes of the pictures in videos, decoded."""
        sizes = [camera.size for camera in self._cameras.values() if camera.video]
        return 3 * self.num_frames * sum(height * width for height, width in sizes)

    def streamed(self, spill: Path) -> Frames:
        """The dataset's frames, whose pictures are decoded when they are asked for; for datasets of any size.

        Args:
            spill: a folder for encoded pictures, see `EmbeddedPictures`; what it holds is removed.
        """
        images: dict[str, Pictures] = {}
        for name, camera in self._cameras.items():
            if camera.video:
                images[name] = VideoPictures(camera.size, self._video_times(camera.key), self.fps)
            else:
                images[name] = EmbeddedPictures(camera.key, camera.size, self.rows.places, spill)
        make_spill(spill, encoded_bytes(images))
        return self._frames(images)

    def _frames(self, images: Mapping[str, Pictures]) -> Frames:
        rows = self.rows
        return Frames(
            images=images,
            state=rows.state,
            actions=rows.actions,
            task_index=rows.task_index,
            episode_index=rows.episode_index,
        )

    def _dimensions(self, key: str, setting: str) -> int:
        if key not in self.features:
            raise UserError(
                f"{self.folder} has no feature {key!r}; it has: {known(key, list(self.features))}; name one by --{setting} FEATURE"
            )
        shape = self.features[key]["shape"]
        if len(shape) != 1:
            raise UserError(f"{self.folder}: feature {key!r} has shape {shape}; expected one dimension")
        return int(shape[0])

    def _fill_from_parquet(
        self,
        cameras: dict[str, Camera],
        images: dict[str, np.ndarray],
        path: Path,
        places: np.ndarray,
        threads: ThreadPoolExecutor,
    ) -> None:
        """Decodes the images of one data file to the frames `places`."""
        try:
            with pq.ParquetFile(path) as file:
                for camera in cameras.values():
                    require_images(path, file, camera.key)
                start = 0
                for batch in file.iter_batches(ROWS_PER_READ, columns=[camera.key for camera in cameras.values()]):
                    at = places[start : start + len(batch)]
                    start += len(batch)
                    jobs = []
                    for name, camera in cameras.items():
                        files = batch[camera.key].field("bytes").to_pylist()
                        for i in range(0, len(files), ROWS_PER_THREAD):
                            part = slice(i, i + ROWS_PER_THREAD)
                            where = f"{path}, {camera.key}"
                            jobs.append(threads.submit(_decode_embedded, files[part], images[name], at[part], where))
                    for job in jobs:
                        job.result()
        except (pa.ArrowException, KeyError, OSError) as error:
            raise UserError(f"{path} is damaged or cut short ({error}); copy it again") from error

    def _fill_from_videos(self, key: str, target: np.ndarray, console: Console) -> None:
        with tracked(self._video_times(key).items(), f"decoding files of {key}", console) as files:
            for path, (frames, times) in files:
                decode_video(path, times, self.fps, frames, target)

    def _video_times(self, key: str) -> dict[Path, tuple[np.ndarray, np.ndarray]]:
        """Video file -> (frames int64 [n], their seconds in the file)."""
        files = {}
        for path, parts in video_places(self.folder, self.info, self._episodes, key, self.fps).items():
            ranges = [(begin, *self.episode_ranges[episode]) for episode, begin in parts]
            files[path] = (
                np.concatenate([np.arange(start, stop) for _, start, stop in ranges]),
                np.concatenate([begin + np.arange(stop - start) / self.fps for begin, start, stop in ranges]),
            )
        return files


def _decode_embedded(files: list[bytes | None], target: np.ndarray, places: np.ndarray, where: str) -> None:
    for data, place in zip(files, places.tolist(), strict=True):
        at = f"{where}, frame {place}"
        if place < 0:
            continue
        if data is None:
            raise UserError(
                f"{at}: the image isn't in the parquet file, only its path; write it with the images embedded"
            )
        decode_image(data, target[place], at)
