"""Batches of an imitation run: the samples of each, and where their pictures come from."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from simplevla.allocation import machine_memory
from simplevla.config import SFTConfig
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.demonstrations.joined import joined
from simplevla.demonstrations.streaming import encoded_bytes, require_space
from simplevla.policies.base import Policy
from simplevla.training.chunks import ChunkBatch, ChunkBatches, Request, augment, split_episodes
from simplevla.training.prefetch import lost_workers, made_ahead

VALIDATION_CHUNKS = 2048
"""Most chunks of the validation loss, evenly spread over the held-out demonstrations."""


class Samples:
    """Frames that the batches of a run begin with.

    Args:
        learned: the dataset that is learned; part of it is held out for validation.
        replayed: those that are replayed beside it; their frames have the numbers after its own.
    """

    def __init__(self, config: SFTConfig, learned: LeRobotDataset, replayed: Sequence[LeRobotDataset]) -> None:
        self.config = config
        index = learned.rows.episode_index
        self.train, held_out = split_episodes(index, config.validation_fraction, config.seed)
        self.replay = learned.num_frames + np.arange(sum(dataset.num_frames for dataset in replayed))
        if config.idle_frames == "drop":
            idle = np.concatenate([dataset.rows.idle for dataset in (learned, *replayed)])
            self.train, held_out, self.replay = (s[~idle[s]] for s in (self.train, held_out, self.replay))
        self.validation = validation_parts(held_out, config.batch_size)
        """The frames of the validation's batches."""

    def requests(self, first: int) -> Iterator[Request]:
        """All batches from number `first` on, in their order: each follows from (seed, number) alone.

        A validation's batches follow on the training batch after which it is due.
        """
        config, replayed = self.config, self.config.replay_samples
        for number in range(first, config.batches):
            rng = np.random.default_rng((config.seed, number))
            starts = self.train[rng.integers(len(self.train), size=config.batch_size - replayed)]
            if replayed:
                starts = np.concatenate([starts, self.replay[rng.integers(len(self.replay), size=replayed)]])
            yield Request(starts, augment(rng, config.batch_size, config.shift_pixels, config.colour_jitter))
            if config.validates(number + 1):
                yield from map(Request, self.validation)


def validation_parts(starts: np.ndarray, size: int) -> list[np.ndarray]:
    """Frames for batches of at most `size`: at most `VALIDATION_CHUNKS`, evenly spread."""
    even = np.linspace(0, len(starts) - 1, min(VALIDATION_CHUNKS, len(starts)))
    chosen = starts[np.unique(even.astype(int))]
    return [chosen[first : first + size] for first in range(0, len(chosen), size)]


@contextmanager
def chunk_batches(
    config: SFTConfig, run: Path, datasets: Sequence[LeRobotDataset], policy: Policy, asked: Iterable[Request]
) -> Iterator[Iterator[ChunkBatch]]:
    """The batches asked for, in their order, out of decoded demonstrations, or decoded ahead where memory is short.

    Args:
        datasets: their frames are numbered one after another.

    Raises:
        UserError: a dataset is damaged, or `config.memory_gb` is less than a batch.
    """
    budget = machine_memory() // 4 if config.memory_gb is None else int(1e9 * config.memory_gb)
    spill = run / "encoded"
    datasets = [dataset.seen_by(policy.cameras) for dataset in datasets]
    streamed = sum(dataset.decoded_bytes for dataset in datasets) > budget
    if streamed:
        parts = [dataset.streamed(spill / str(number)) for number, dataset in enumerate(datasets)]
        require_space(spill, sum(encoded_bytes(part.images) for part in parts))
    else:
        parts = [dataset.load_all(progress=True) for dataset in datasets]
    instructions = [text for dataset in datasets for text in dataset.instructions]
    frames = joined(parts, [len(dataset.instructions) for dataset in datasets])
    source = ChunkBatches(frames, instructions, policy.cameras, policy.imitated_length)
    try:
        if streamed:
            pixels = sum(height * width for height, width in datasets[0].cameras.values())
            ahead = made_ahead(source, asked, 3 * pixels * config.batch_size, budget)
            with lost_workers(), closing(ahead):
                yield ahead
        else:
            yield (source.make(*request) for request in asked)
    finally:
        shutil.rmtree(spill, ignore_errors=True)
