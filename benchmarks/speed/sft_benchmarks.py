"""Imitation: ours against a bare loop over the same batches, and with pictures decoded while it trains against in memory."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from benchmarks.support.half_trained import FOLDER, TABLETOP, half_trained
from simplevla import recipes
from simplevla.allocation import keep_freed_memory
from simplevla.config import SFTConfig
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.training.batches import Samples
from simplevla.training.chunks import ChunkBatches
from simplevla.training.determinism import deterministic
from simplevla.training.imitation import LOG_EVERY, sft, start_policy
from simplevla.training.learning_rate import with_learning_rate
from simplevla.training.runlog import read_rows

BATCHES = 5 * LOG_EVERY
Sides = Iterator[tuple[Callable[[], float], Callable[[], float]]]


def config() -> SFTConfig:
    """The recipe's SFT, short and without validation."""
    half_trained(TABLETOP)
    made = replace(recipes.SFT[TABLETOP](), dataset=str(FOLDER / TABLETOP / "demos"), batches=BATCHES)
    return replace(made, validate_every=BATCHES, validation_fraction=0.0, eval_episodes_per_task=0)


def ours_per_second(settings: SFTConfig) -> float:
    """Batches per second of `sft`, without its beginning: the median over the lines of its log but the first."""
    with tempfile.TemporaryDirectory() as folder:
        sft(settings, Path(folder) / "run")
        rates = [row["batches_per_s"] for row in read_rows(Path(folder) / "run") if "batches_per_s" in row]
    return median(rates[1:])


@contextmanager
def vs_bare() -> Sides:
    """Batches per second; theirs is forward, backward, clipping and step over batches that are ready."""
    settings = config()
    dataset = LeRobotDataset(settings.dataset)
    policy = start_policy(settings, dataset)
    source = ChunkBatches(dataset.load_all(), list(dataset.instructions), policy.cameras, policy.chunk_length)
    ready = [
        source.make(*request) for request in itertools.islice(Samples(settings, dataset, []).requests(0), 2 * LOG_EVERY)
    ]
    optimizer_settings = with_learning_rate(settings.optimizer, policy, "sft")

    def bare() -> float:
        keep_freed_memory()
        copy = start_policy(settings, dataset)
        optimizer = torch.optim.AdamW(copy.parameters(), lr=optimizer_settings.lr or 0.0, fused=True)
        with deterministic():
            for number, batch in enumerate(ready):
                if number == LOG_EVERY:
                    started = time.perf_counter()
                loss = copy.imitation_loss(batch.observations, batch.actions, batch.mask)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(copy.parameters(), optimizer_settings.max_grad_norm)
                optimizer.step()
        return LOG_EVERY / (time.perf_counter() - started)

    yield lambda: ours_per_second(settings), bare


@contextmanager
def streaming_vs_memory() -> Sides:
    """Batches per second with a budget of two batches of pictures, and with all of them in memory."""
    settings = config()
    dataset = LeRobotDataset(settings.dataset)
    batch_gb = 1e-9 * dataset.decoded_bytes / dataset.num_frames * settings.batch_size
    yield lambda: ours_per_second(replace(settings, memory_gb=3 * batch_gb)), lambda: ours_per_second(settings)
