"""Batches of demonstrated action chunks, cut out of demonstrations, with augmented images."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from simplevla.demonstrations.dataset import Frames
from simplevla.policies.base import ObservationBatch


def split_episodes(episode_index: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Frame numbers (train, validation); whole episodes are held out, at least one where `fraction` is above 0."""
    episodes = np.unique(episode_index)
    held_out = 0
    if fraction > 0 and len(episodes) > 1:
        held_out = min(max(round(fraction * len(episodes)), 1), len(episodes) - 1)
    chosen = np.random.default_rng((seed, 2**32)).permutation(episodes)[:held_out]
    is_validation = np.isin(episode_index, chosen)
    return np.flatnonzero(~is_validation), np.flatnonzero(is_validation)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Changes to the images of each of B samples, alike for all its cameras."""

    shift: np.ndarray
    """int64 [B, 2]: pixels by which the picture moves up and to the left, -p .. p."""
    largest_shift: int
    """Largest shift p, pixels."""
    colours: np.ndarray
    """uint8 [B, 256]: the new value of each pixel value."""


def augment(rng: np.random.Generator, size: int, shift_pixels: int, jitter: float) -> Augmentation:
    """Draws a shift, a contrast (about mid-grey) and a brightness for each of `size` samples, all uniform."""
    shift = rng.integers(-shift_pixels, shift_pixels + 1, size=(size, 2))
    contrast = 1 + jitter * rng.uniform(-1, 1, size=(size, 1))
    brightness = 255 * jitter * rng.uniform(-1, 1, size=(size, 1))
    values = np.rint((np.arange(256) - 127.5) * contrast + 127.5 + brightness)
    return Augmentation(shift=shift, largest_shift=shift_pixels, colours=np.clip(values, 0, 255).astype(np.uint8))


def augment_images(images: np.ndarray, how: Augmentation) -> np.ndarray:
    """uint8 [B, height, width, 3], moved with the border repeated, then recoloured."""
    p = how.largest_shift
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (p, p), (p, p), (0, 0)), mode="edge") if p else images
    result = np.empty_like(images)
    for i, (top, left) in enumerate(how.shift + p):
        np.take(how.colours[i], padded[i, top : top + height, left : left + width], out=result[i])
    return result


class Request(NamedTuple):
    """A batch to be made: its first frames int64 [B], and how its images are changed."""

    starts: np.ndarray
    augmentation: Augmentation | None = None


@dataclass(frozen=True, kw_only=True)
class ChunkBatch:
    """B demonstrated decisions."""

    observations: ObservationBatch
    actions: Tensor
    """float32 [B, H, A], the environment's units; the last action is repeated after the end of the demonstration."""
    mask: Tensor
    """bool [B, H], false after the end of the demonstration."""

    def part(self, rows: slice) -> "ChunkBatch":
        """The batch of these decisions alone; nothing is copied."""
        seen = self.observations
        return ChunkBatch(
            observations=ObservationBatch(
                images={camera: image[rows] for camera, image in seen.images.items()},
                state=seen.state[rows],
                instructions=seen.instructions[rows],
            ),
            actions=self.actions[rows],
            mask=self.mask[rows],
        )


class ChunkBatches:
    """Cuts chunks of H actions out of demonstrations."""

    def __init__(self, frames: Frames, instructions: list[str], cameras: tuple[str, ...], chunk_length: int) -> None:
        assert (np.diff(frames.episode_index) >= 0).all(), "frames must be ordered by episode"
        self.frames = frames
        self.instructions = instructions
        self.cameras = cameras
        self.offsets = np.arange(chunk_length)
        _, lengths = np.unique(frames.episode_index, return_counts=True)
        self.last = np.repeat(np.cumsum(lengths) - 1, lengths)
        """int64 [F]: the last frame of each frame's episode."""

    def make(self, starts: np.ndarray, augmentation: Augmentation | None = None) -> ChunkBatch:
        """The chunks that begin at the frames `starts` int64 [B]."""
        steps = starts[:, None] + self.offsets
        last = self.last[starts][:, None]
        images = {camera: self.frames.images[camera][starts] for camera in self.cameras}
        if augmentation is not None:
            images = {camera: augment_images(image, augmentation) for camera, image in images.items()}
        return ChunkBatch(
            observations=ObservationBatch(
                images={camera: torch.from_numpy(image) for camera, image in images.items()},
                state=torch.from_numpy(self.frames.state[starts]),
                instructions=[self.instructions[task] for task in self.frames.task_index[starts]],
            ),
            actions=torch.from_numpy(self.frames.actions[np.minimum(steps, last)]),
            mask=torch.from_numpy(steps <= last),
        )
