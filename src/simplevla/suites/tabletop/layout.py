"""Where things lie at the start: seeded, non-overlapping, reachable."""

from dataclasses import dataclass

import numpy as np

BLOCKS = ("red", "green", "blue")
BLOCK_HALF = 0.02
"""Half the edge of a block, m; the same as in scene.xml."""


AREAS = {
    "rail": ((-0.12, 0.12), (-0.06, 0.16)),
    "button": ((0.08, 0.10), (0.15, 0.16)),
    "plate": ((-0.14, -0.14), (0.14, 0.02)),
    "zone": ((-0.14, -0.14), (0.14, 0.02)),
    **{block: ((-0.16, -0.16), (0.16, 0.05)) for block in BLOCKS},
}
"""Thing -> corners (low xy, high xy) of the rectangle that its position is drawn from, m."""
CANDIDATES = 512
"""Layouts drawn at a time; about three in a thousand are clear."""


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
    """Draw the layout of one initial state; the same seed gives the same layout.

    Fixtures stand at the back, blocks, plate and zone in front. Distances leave room for the open gripper (11 cm wide), and
    the straight way of the green block to the zone is clear, so every task can be solved from every layout.
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
        hand=rng.uniform((-0.06, -0.08, 0.11), (0.06, 0.04, 0.15)),
    )


def _clear(positions: dict[str, np.ndarray]) -> np.ndarray:
    """Which candidates, given as xy [C, 2] per thing, are usable: bool [C]."""

    def apart(a: str, b: str, least: float) -> np.ndarray:
        return np.linalg.norm(positions[a] - positions[b], axis=1) > least

    clear = apart("plate", "zone", 0.125)
    for block in BLOCKS:
        for other in BLOCKS:
            if block < other:
                clear &= apart(block, other, 0.085)
        clear &= apart(block, "plate", 0.095) & apart(block, "zone", 0.095)
    for name in (*BLOCKS, "plate", "zone"):
        clear &= apart(name, "button", 0.09)

    way = positions["zone"] - positions["green"]
    length = np.linalg.norm(way, axis=1, keepdims=True)
    direction = way / length
    behind = positions["green"] - 0.06 * direction
    clear &= (np.abs(behind[:, 0]) < 0.2) & (behind[:, 1] > -0.2) & (behind[:, 1] < 0.09)
    for name, margin in (("red", 0.06), ("blue", 0.06), ("plate", 0.085)):
        along = ((positions[name] - behind) * direction).sum(axis=1, keepdims=True).clip(0.0, length + 0.06)
        clear &= np.linalg.norm(positions[name] - behind - along * direction, axis=1) > margin
    return clear
