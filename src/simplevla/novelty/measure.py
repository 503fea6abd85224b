"""Distance of episodes from demonstrations, by the path of hand and gripper over normalised time (docs/novelty.md)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simplevla.errors import UserError

POINTS = 32
"""Points of a path: an episode of 16 to 300 env steps keeps its shape."""
SHRINKAGE = 0.2
"""Part of the covariance that is a sphere's: few demonstrations span few directions."""
STILL_M = 0.001
"""Least standard deviation of demonstrations; two paths that differ by less, root mean square, are the same."""
QUANTILE = 0.99
"""Share of demonstrations that are nearer to another one than the threshold."""
LENGTH = re.compile(r"_(\d*)(mm|cm|m)$")
METRES = {"mm": 0.001, "cm": 0.01, "m": 1.0}
AXIS = re.compile(r"(^|_)[xyz]_")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The dimensions of the state that make the path of hand and gripper."""

    indices: tuple[int, ...]
    scales: tuple[float, ...]
    """Factor to metres of each, by the unit at the end of its name."""
    hand: tuple[bool, ...]
    """True for a position: its name has an axis. False for others, such as a gripper's opening."""

    @classmethod
    def of(cls, state_names: tuple[str, ...]) -> "Columns":
        """All lengths of `state_names`, such as `hand_x_m` and `gripper_opening_10cm`; angles wrap and are left out.

        Raises:
            UserError: no name ends in a unit of length, or none of these has an axis.
        """
        found = [(number, match) for number, name in enumerate(state_names) if (match := LENGTH.search(name))]
        if not found:
            raise UserError(
                f"no dimension of the state is a length: {', '.join(state_names)}; novelty compares paths in metres, so the suite's "
                "state_names must say which dimensions are, as in hand_x_m or opening_10cm"
            )
        hand = tuple(AXIS.search(state_names[number]) is not None for number, _ in found)
        if not any(hand):
            raise UserError(
                f"no length of the state is a position: {', '.join(state_names[number] for number, _ in found)}; novelty measures the "
                "hand's way, so the suite's state_names must name the axes, as in hand_x_m"
            )
        return cls(
            indices=tuple(number for number, _ in found),
            scales=tuple(float(match[1] or 1) * METRES[match[2]] for _, match in found),
            hand=hand,
        )

    def metres(self, states: np.ndarray) -> np.ndarray:
        """float64 [T, D] in metres, of states [T, S]."""
        return states[:, self.indices].astype(np.float64) * np.array(self.scales)

    def path(self, states: np.ndarray) -> np.ndarray:
        """The path [POINTS, D], m: states [T, S] at equal shares of the episode's time, interpolated linearly."""
        metres = self.metres(states)
        times, points = np.linspace(0, 1, len(metres)), np.linspace(0, 1, POINTS)
        return np.stack([np.interp(points, times, column) for column in metres.T], axis=1)

    def length(self, states: np.ndarray) -> float:
        """The way of the hand, m."""
        return float(np.linalg.norm(np.diff(self.metres(states)[:, self.hand], axis=0), axis=1).sum())


class Demonstrations:
    """The demonstrations of one task, as paths [M, P, D] in metres, and the initial state of each where it is known.

    Raises:
        UserError: fewer than two of different initial states and paths, so that nothing says how far they are from each
            other.
    """

    def __init__(self, task: str, paths: np.ndarray, initial_states: Sequence[int] | None = None) -> None:
        if len(paths) < 2:
            raise UserError(
                f"task {task!r} has {len(paths)} demonstrations; novelty needs at least 2 to know how far they are from each other"
            )
        vectors = paths.reshape(len(paths), -1)
        self._whitening = _whitening(vectors)
        self._white = vectors @ self._whitening
        self.apart, self.neighbours = np.zeros(len(paths)), np.zeros(len(paths), int)
        """Distance of each to the nearest of the others, by their own covariance, and which that is."""
        for number, vector in enumerate(vectors):
            differences = vectors - vector
            other = (differences**2).mean(axis=1) >= STILL_M**2
            if initial_states is not None:
                other &= np.asarray(initial_states) != initial_states[number]
            if other.any():
                distances = np.linalg.norm(differences[other] @ _whitening(vectors[other]), axis=1)
                self.apart[number], self.neighbours[number] = distances.min(), other.nonzero()[0][distances.argmin()]
        if not self.apart.any():
            raise UserError(
                f"task {task!r} has {len(paths)} demonstrations, all of one initial state or one path; novelty needs at least 2 "
                "different ones to know how far they are from each other"
            )
        self.threshold = float(np.quantile(self.apart, QUANTILE, method="higher"))
        """Distance within which 99 % of demonstrations have another one."""

    def nearest(self, path: np.ndarray) -> tuple[float, int]:
        """(distance, number) of the demonstration nearest to `path` [P, D]."""
        found = np.linalg.norm(self._white - path.reshape(-1) @ self._whitening, axis=1)
        return float(found.min()), int(found.argmin())


def _whitening(vectors: np.ndarray) -> np.ndarray:
    """The matrix [K, K] that makes Euclidean distances between vectors [M, K] Mahalanobis's, divided by `sqrt(K)`."""
    size = vectors.shape[1]
    covariance = np.cov(vectors.T) if len(vectors) > 1 else np.zeros((size, size))
    floor = max(float(np.trace(covariance)) / size, STILL_M**2)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * floor * np.eye(size)
    return np.linalg.inv(np.linalg.cholesky(shrunk)).T / np.sqrt(size)
