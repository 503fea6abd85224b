"""Layout of the things at the start: seeded, non-overlapping, reachable."""

from dataclasses import dataclass

import numpy as np

BLOCKS = ("red", "blue")
BLOCK_HALF = 0.025
"""Half the edge of a block, m; the same as in scene.xml."""


AREAS = {
    "rail": ((-0.12, 0.12), (-0.06, 0.16)),
    "button": ((0.06, 0.11), (0.14, 0.16)),
    "plate": ((-0.13, -0.12), (0.06, 0.03)),
    **dict.fromkeys(BLOCKS, ((-0.14, -0.14), (0.06, 0.04))),
}
"""Thing -> corners (low xy, high xy) of the rectangle that its position is drawn from, m."""
CANDIDATES = 128
"""Layouts drawn at a time; about one in fourteen is clear."""


@dataclass(frozen=True)
class Layout:
    """A start scene; positions in metres in the table's frame."""

    positions: dict[str, np.ndarray]
    """Name of block or fixture -> xy [2]."""
    yaws: dict[str, float]
    """Block -> rotation about z, rad."""
    hand: np.ndarray
    """xyz [3] between the finger tips."""


def sample_layout(seed: tuple[int, ...]) -> Layout:
    """Draws the layout of one initial state; the same seed gives the same layout.

    Fixtures stand at the back, blocks and plate in front, the strip along the right. Distances leave room for the open
    gripper (12 cm wide), and the blue block's straight way to the strip is clear, so every task can be solved from
    every layout.
    """
    rng = np.random.default_rng(seed)
    while True:
        candidates = {name: rng.uniform(low, high, size=(CANDIDATES, 2)) for name, (low, high) in AREAS.items()}
        clear = np.flatnonzero(_clear(candidates))
        if len(clear):
            positions = {name: xy[clear[0]] for name, xy in candidates.items()}
            break
    return Layout(
        positions=positions,
        yaws={block: float(rng.uniform(-0.35, 0.35)) for block in BLOCKS},
        hand=rng.uniform((-0.06, -0.08, 0.12), (0.06, 0.04, 0.15)),
    )


def _clear(positions: dict[str, np.ndarray]) -> np.ndarray:
    """True for each usable candidate, bool [C]; candidates are given as xy [C, 2] per thing."""

    def apart(a: str, b: str, least: float) -> np.ndarray:
        return np.linalg.norm(positions[a] - positions[b], axis=1) > least

    clear = apart("red", "blue", 0.105)
    for block in BLOCKS:
        clear &= apart(block, "plate", 0.115)
    for other in ("red", "plate"):
        beside = np.abs(positions[other][:, 1] - positions["blue"][:, 1]) > 0.09
        clear &= beside | (positions[other][:, 0] < positions["blue"][:, 0])
    return clear
