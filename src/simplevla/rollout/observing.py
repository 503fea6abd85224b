"""Batches of observations from the slots' shared memory; siblings that begin with the same observation share it."""

from collections.abc import Sequence

import numpy as np

from simplevla.policies.base import ObservationBatch, shared_index
from simplevla.rollout.workers import SlotArrays
from simplevla.types import EpisodeRequest, Observation

View = tuple[SlotArrays, int]
"""A worker's shared memory and the slot's row in it."""


def observe(views: Sequence[View], requests: Sequence[EpisodeRequest], alone: Sequence[bool]) -> ObservationBatch:
    """Copies the observations of D decisions out of shared memory, for the policy to read and episodes to keep.

    Args:
        views: [D].
        requests: [D].
        alone: [D], whether nobody else sees the same: siblings do until they have executed something. It's copied once.
    """
    firsts: dict[tuple[str, int], int] = {}
    copied: list[int] = []
    index: list[int] = []
    for decision, request in enumerate(requests):
        place = len(copied)
        if not alone[decision]:
            place = firsts.setdefault((request.task.name, request.initial_state), place)
            # Whatever the suite promises: pictures may have noise.
            if place < len(copied) and not _equal(views[copied[place]], views[decision]):
                place = len(copied)
        if place == len(copied):
            copied.append(decision)
        index.append(place)
    seen = [
        Observation(images={name: images[slot] for name, images in arrays.images.items()}, state=arrays.state[slot])
        for arrays, slot in (views[decision] for decision in copied)
    ]
    instructions = [requests[decision].task.instruction for decision in copied]
    return ObservationBatch.stacked(seen, instructions, shared_index(index, len(copied)))


def _equal(one: View, other: View) -> bool:
    (arrays, slot), (others, place) = one, other
    return np.array_equal(arrays.state[slot], others.state[place]) and all(
        np.array_equal(image[slot], others.images[camera][place]) for camera, image in arrays.images.items()
    )
