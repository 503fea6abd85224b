"""Joins several datasets' frames into one sequence, without copying a picture."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simplevla.demonstrations.dataset import Frames
from simplevla.demonstrations.streaming import Pictures
from simplevla.errors import UserError


@dataclass(frozen=True, kw_only=True)
class JoinedPictures:
    """One camera's pictures in several datasets, one dataset after another."""

    parts: Sequence[Pictures]
    starts: np.ndarray
    """int64 [parts]: the number that each part's first frame has here."""

    def __getitem__(self, frames: np.ndarray) -> np.ndarray:
        """uint8 [B, height, width, 3] of the frames int64 [B]."""
        part = np.searchsorted(self.starts, frames, "right") - 1
        found = {
            number: self.parts[number][frames[part == number] - self.starts[number]] for number in set(part.tolist())
        }
        pictures = np.empty((len(frames), *next(iter(found.values())).shape[1:]), np.uint8)
        for number, own in found.items():
            pictures[part == number] = own
        return pictures


def joined(parts: Sequence[Frames], instructions: Sequence[int]) -> Frames:
    """All frames of `parts`, whose episodes and instructions count on from one part to the next.

    Args:
        instructions: number of instructions of each part.
    """
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0, *(len(part.state) for part in parts[:-1])])
    episodes = np.cumsum([0, *(1 + int(part.episode_index.max()) for part in parts[:-1])]).tolist()
    tasks = np.cumsum([0, *instructions[:-1]]).tolist()
    return Frames(
        images={
            name: JoinedPictures(parts=[part.images[name] for part in parts], starts=starts) for name in parts[0].images
        },
        state=np.concatenate([part.state for part in parts]),
        actions=np.concatenate([part.actions for part in parts]),
        task_index=np.concatenate([part.task_index + first for part, first in zip(parts, tasks, strict=True)]),
        episode_index=np.concatenate([part.episode_index + first for part, first in zip(parts, episodes, strict=True)]),
    )


def require_one_size(cameras: Iterable[str], sizes: Mapping[str, Mapping[str, tuple[int, int]]]) -> None:
    """Refuses datasets whose pictures can't stand in one batch.

    Args:
        sizes: name of a dataset -> camera -> (height, width).

    Raises:
        UserError: one of `cameras` has another size in one of them.
    """
    first = next(iter(sizes))
    for camera, (other, theirs) in itertools.product(cameras, sizes.items()):
        if theirs[camera] != sizes[first][camera]:
            (height, width), (first_height, first_width) = theirs[camera], sizes[first][camera]
            raise UserError(
                f"camera {camera!r} has {height} x {width} pixels in {other} and {first_height} x {first_width} in {first}; a batch "
                "of both needs one size, record or convert one of them again"
            )
