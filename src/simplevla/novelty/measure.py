"""Distance of episodes from demonstrations, by the path of hand and gripper over normalised time (docs/novelty.md)."""

import re
from dataclasses import dataclass

import numpy as np

from simplevla.errors import UserError

POINTS = 32
"""Points of a path: an episode of 16 to 300 env steps keeps its shape."""
SHRINKAGE = 0.2
"""Part of the covariance that is a sphere's: few demonstrations span few directions."""
STILL_M = 0.001
"""Least standard deviation, for demonstrations that are all the same."""
QUANTILE = 0.99
"""Share of demonstrations that are nearer to another one than the threshold."""
LENGTH = re.compile(r"_(\d*)(mm|cm|m)$")
METRES = {"mm": 0.001, "cm": 0.01, "m": 1.0}
FINGERS = ("gripper", "finger")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The dimensions of the state that make the path of hand and gripper."""

    indices: tuple[int, ...]
    scales: tuple[float, ...]
    """Factor to metres of each, by the unit at the end of its name."""
    hand: tuple[bool, ...]
    """False for a gripper's opening."""

    @classmethod
    def of(cls, state_names: tuple[str, ...]) -> "Columns":
        """All lengths of `state_names`, such as `hand_x_m` and `gripper_opening_10cm`; angles wrap and are left out.

        Raises:
            UserError: no name ends in a unit of length.
        """
        found = [(number, match) for number, name in enumerate(state_names) if (match := LENGTH.search(name))]
        if not found:
            raise UserError(
                f"no dimension of the state is a length: {', '.join(state_names)}; novelty compares paths in metres, so the suite's "
                "state_names must say which dimensions are, as in hand_x_m or opening_10cm"
            )
        return cls(
            indices=tuple(number for number, _ in found),
            scales=tuple(float(match[1] or 1) * METRES[match[2]] for _, match in found),
            hand=tuple(not any(word in state_names[number] for word in FINGERS) for number, _ in found),
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
    """The demonstrations of one task, as paths [M, P, D] in metres.

    Raises:
        UserError: fewer than two, so that nothing says how far they are from each other.
    """

    def __init__(self, task: str, paths: np.ndarray) -> None:
        if len(paths) < 2:
            raise UserError(
                f"task {task!r} has {len(paths)} demonstrations; novelty needs at least 2 to know how far they are from each other"
            )
        vectors = paths.reshape(len(paths), -1)
        covariance = np.cov(vectors.T)
        size = len(covariance)
        floor = max(float(np.trace(covariance)) / size, STILL_M**2)
        shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * floor * np.eye(size)
        self._whitening = np.linalg.inv(np.linalg.cholesky(shrunk)).T / np.sqrt(size)
        self._white = vectors @ self._whitening
        between = np.stack([np.linalg.norm(self._white - white, axis=1) for white in self._white])
        np.fill_diagonal(between, np.inf)
        self.apart, self.neighbours = between.min(axis=1), between.argmin(axis=1)
        """Distance of each to the nearest other one, and which that is."""
        self.threshold = float(np.quantile(self.apart, QUANTILE, method="higher"))
        """Distance within which 99 % of demonstrations have another one."""

    def nearest(self, path: np.ndarray) -> tuple[float, int]:
        """(distance, number) of the demonstration nearest to `path` [P, D]."""
        found = np.linalg.norm(self._white - path.reshape(-1) @ self._whitening, axis=1)
        return float(found.min()), int(found.argmin())
