"""Statistics over a written dataset, read back from its files so that a resumed run counts every frame."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from simplevla.demonstrations import layout
from simplevla.demonstrations.images import decode_image
from simplevla.policies.normalization import Statistics, measure

SAMPLED_EPISODES, SAMPLED_FRAMES, SAMPLED_SIDE = 64, 8, 64
"""Image statistics come from evenly spaced episodes, frames and pixel rows, about this many; LeRobot samples too."""


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
                values = layout.vector_values(table[key], features[key]["shape"][0])
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
            height, width, _ = features[key]["shape"]
            stride = max(1, max(height, width) // SAMPLED_SIDE)
            for frame in _evenly(episode["length"], SAMPLED_FRAMES):
                pixels = np.empty((height, width, 3), np.uint8)
                decode_image(table[key][frame]["bytes"].as_py(), pixels, f"episode {number}, frame {frame}, {key}")
                samples[key].append(pixels[::stride, ::stride].reshape(-1, 3))
    return samples


def _first_episodes(episodes: list[dict[str, Any]]) -> dict[tuple[int, int], int]:
    """(chunk, file) -> index of the file's first episode, in the order of the episodes."""
    first: dict[tuple[int, int], int] = {}
    for episode in episodes:
        first.setdefault((episode["data/chunk_index"], episode["data/file_index"]), episode["episode_index"])
    return first


def _evenly(length: int, wanted: int) -> list[int]:
    return sorted({int(x) for x in np.linspace(0, length - 1, wanted)})
