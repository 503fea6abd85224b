"""Statistics over a written dataset, read back from its files so that a resumed run counts every frame."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from simplevla.demonstrations import layout
from simplevla.demonstrations.images import read_image
from simplevla.policies.normalization import Statistics, measure

SAMPLED_EPISODES, SAMPLED_FRAMES, SAMPLED_SIDE = 64, 8, 64
"""Image statistics come from evenly spaced episodes, frames and pixel rows, about this many; LeRobot samples too."""
EPISODE_FRAMES, EPISODE_SIDE = 2, 32
"""Sampled frames, and pixels of the longer side, for one episode's own image statistics."""
EPISODE_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
"""Quantiles that LeRobot 0.6 writes."""


def dataset_stats(
    folder: Path, features: dict[str, dict[str, Any]], episodes: list[dict[str, Any]]
) -> tuple[dict[str, Any], Statistics]:
    """The content of `meta/stats.json` and the statistics that a policy normalises with.

    State, action and index features are measured over all frames, images over a sample. `count` is the number of
    frames. `episodes` are the rows of `meta/episodes`.
    """
    vectors = _vectors(folder, features, episodes)
    stats: dict[str, Any] = {key: measure(values) | {"count": [len(values)]} for key, values in vectors.items()}
    for key, images in _sampled_images(folder, features, episodes).items():
        measures = measure(np.concatenate(images))
        # LeRobot's images are in [0, 1] with the channel first, and their statistics broadcast over them.
        stats[key] = {name: [[[value / 255]] for value in values] for name, values in measures.items()}
        stats[key]["count"] = [len(images)]
    return stats, Statistics(state=measure(vectors[layout.STATE]), action=measure(vectors[layout.ACTION]))


def episode_stats(vectors: dict[str, np.ndarray], images: dict[str, list[bytes]]) -> dict[str, Any]:
    """The columns `stats/FEATURE/MEASURE` of one episode's row in `meta/episodes`.

    LeRobot's tools aggregate them into a new `stats.json` (`aggregate_stats` in its `compute_stats.py`), so measures
    and shapes are LeRobot's: one number per dimension, [3][1][1] for images, whose `count` is that of the sampled
    frames.

    Args:
        vectors: feature -> [F, D].
        images: camera feature -> F PNG files.
    """
    columns: dict[str, Any] = {}
    # All in one go, since for so few numbers the time goes into the calls.
    measures = _measure_rows(np.concatenate([values.T for values in vectors.values()]).astype(np.float64))
    start = 0
    for key, values in vectors.items():
        stop = start + values.shape[1]
        columns |= {f"stats/{key}/{name}": row[start:stop].tolist() for name, row in measures.items()}
        columns[f"stats/{key}/count"] = [len(values)]
        start = stop
    for key, files in images.items():
        # From within: first and last frames look more alike than the others.
        frames = sorted({len(files) * (2 * i + 1) // (2 * EPISODE_FRAMES) for i in range(EPISODE_FRAMES)})
        pixels = np.concatenate([_pixels(read_image(files[i], f"{key}, frame {i}"), EPISODE_SIDE) for i in frames])
        measures = _measure_rows(np.ascontiguousarray(pixels.T) / 255)
        columns |= {f"stats/{key}/{name}": row[:, None, None].tolist() for name, row in measures.items()}
        columns[f"stats/{key}/count"] = [len(frames)]
    return columns


def _measure_rows(values: np.ndarray) -> dict[str, np.ndarray]:
    """Measure -> float64 [D] of `values` float64 [D, F]; quantiles interpolate linearly."""
    ordered = np.sort(values, axis=1)
    last = values.shape[1] - 1
    measures = {"min": ordered[:, 0], "max": ordered[:, -1], "mean": values.mean(1), "std": values.std(1)}
    for name, share in EPISODE_QUANTILES.items():
        below = int(share * last)
        low, high = ordered[:, below], ordered[:, min(below + 1, last)]
        measures[name] = low + (share * last - below) * (high - low)
    return measures


def _vectors(
    folder: Path, features: dict[str, dict[str, Any]], episodes: list[dict[str, Any]]
) -> dict[str, np.ndarray]:
    keys = [layout.STATE, layout.ACTION, *layout.INDEX_FEATURES]
    parts: dict[str, list[np.ndarray]] = {key: [] for key in keys}
    for chunk, file in _first_episodes(episodes):
        table = pq.read_table(folder / layout.DATA.format(chunk_index=chunk, file_index=file), columns=keys)
        for key in keys:
            if key in layout.INDEX_FEATURES:
                values = table[key].to_numpy()[:, None]
            else:
                values = layout.column_values(table[key], features[key]["shape"][0])
            parts[key].append(values)
    return {key: np.concatenate(arrays) for key, arrays in parts.items()}


def _sampled_images(
    folder: Path, features: dict[str, dict[str, Any]], episodes: list[dict[str, Any]]
) -> dict[str, list[np.ndarray]]:
    """Camera feature -> pixels uint8 [P, 3] of each sampled frame."""
    keys = [key for key, feature in features.items() if feature["dtype"] == "image"]
    samples: dict[str, list[np.ndarray]] = {key: [] for key in keys}
    first = _first_episodes(episodes)
    for number in _evenly(len(episodes), SAMPLED_EPISODES):
        episode = episodes[number]
        chunk, file = episode["data/chunk_index"], episode["data/file_index"]
        with pq.ParquetFile(folder / layout.DATA.format(chunk_index=chunk, file_index=file)) as parquet:
            table = parquet.read_row_group(number - first[chunk, file], columns=keys)
        for key in keys:
            for frame in _evenly(episode["length"], SAMPLED_FRAMES):
                data = (table[key][frame].as_py() or {}).get("bytes") or b""
                image = read_image(data, f"episode {number}, frame {frame}, {key}")
                samples[key].append(_pixels(image, SAMPLED_SIDE))
    return samples


def _pixels(image: np.ndarray, side: int) -> np.ndarray:
    """uint8 [P, 3] of an image: rows and columns are left out until about `side` of the longer edge are left."""
    stride = max(1, max(image.shape) // side)
    return image[::stride, ::stride].reshape(-1, 3)


def _first_episodes(episodes: list[dict[str, Any]]) -> dict[tuple[int, int], int]:
    """(chunk, file) -> index of the file's first episode, in the order of the episodes."""
    first: dict[tuple[int, int], int] = {}
    for episode in episodes:
        first.setdefault((episode["data/chunk_index"], episode["data/file_index"]), episode["episode_index"])
    return first


def _evenly(length: int, wanted: int) -> list[int]:
    return sorted({int(x) for x in np.linspace(0, length - 1, wanted)})
