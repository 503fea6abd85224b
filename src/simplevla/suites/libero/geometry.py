"""Geometry of a scene for experts: axis-aligned boxes around collision shapes, and contacts."""

import numpy as np

from simplevla.suites.libero.simulation import Simulation

HAND_HALF_WIDTH = 0.06
"""Half the width that the open hand needs beside its path, m."""
OPEN_HAND = np.array(
    [
        (x, side * y, z)
        for x in (-0.011, 0.011)
        for side in (-1, 1)
        for y in (0.04, 0.055, 0.066)
        for z in (-0.011, 0.02)
    ]
    + [(x, y, 0.04) for x in (-0.034, 0.0, 0.034) for y in (-0.105, -0.05, 0.0, 0.05, 0.105)]
)
"""[P, 3] m, points of fingers and palm of the open hand around its grasp point, pointing down, fingers along y."""


class SceneGeometry:
    """Boxes and contacts of the object to move (`item`), of its target and of everything else."""

    item: np.ndarray
    """[3] m, the object's position as LIBERO's predicates read it."""
    item_low: np.ndarray
    item_high: np.ndarray
    """[3] m, corners of the box around the object."""
    target: np.ndarray
    """[3] m, the point over which the object is let go."""
    target_high: float
    """Top of the thing that the target belongs to, m."""
    pinched: bool
    """Both fingers touch the object."""
    touched: bool
    """True if at least one finger touches the object."""
    item_on_target: bool
    """The object touches the thing that the target belongs to."""

    def __init__(self, simulation: Simulation, item: str, target: str) -> None:
        """`item` and `target` are names of the goal predicate: objects, fixtures or regions of either."""
        model = self._model = simulation.model
        self._data = simulation.data
        self._item_body = simulation.body_of(item)
        self._target_body = simulation.body_of(target)
        self._target_site = simulation.region_site(target)
        roots = model.body_rootid[model.geom_bodyid]
        solid = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
        robot = {simulation.robot_root}
        self._geoms = {
            int(body): np.flatnonzero(solid & (roots == body))
            for body in np.unique(roots)
            if body not in robot and body != 0 and (solid & (roots == body)).any()
        }
        self._others = np.concatenate([geoms for body, geoms in self._geoms.items() if body != self._item_body])
        self._left, self._right = (
            np.isin(model.geom_bodyid, [model.body(name).id for name in names]) for names in simulation.finger_bodies
        )
        self._is_item = roots == self._item_body
        self._is_target = roots == self._target_body
        self._boxes: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def update(self) -> None:
        """Reads the simulator's current state."""
        data = self._data
        self._boxes = {body: self._box(geoms) for body, geoms in self._geoms.items()}
        self.item_low, self.item_high = self._boxes[self._item_body]
        self.item = data.xpos[self._item_body].copy()
        self.target_high = float(self._boxes[self._target_body][1][2])
        if self._target_site is not None:
            self.target = data.site_xpos[self._target_site].copy()
        else:
            self.target = data.xpos[self._target_body].copy()
        pairs = data.contact.geom[: data.ncon]
        left, right = self._touch(pairs, self._left), self._touch(pairs, self._right)
        self.pinched, self.touched = left and right, left or right
        self.item_on_target = self._touch(pairs, self._is_target)

    def highest_between(self, start: np.ndarray, end: np.ndarray, with_item: bool) -> float:
        """Height in m of the highest thing under the straight way from `start` to `end` [2], as wide as the hand."""
        highest = min(self.item_low[2], self.target[2])
        for body, (low, high) in self._boxes.items():
            if body == self._item_body and not with_item:
                continue
            if _crosses(start, end, low[:2] - HAND_HALF_WIDTH, high[:2] + HAND_HALF_WIDTH):
                highest = max(highest, high[2])
        return float(highest)

    def collisions(self, hand: np.ndarray) -> int:
        """Number of the open hand's sample points that lie inside other things with the hand at `hand` [3] m."""
        rotation = self._data.geom_xmat[self._others].reshape(-1, 3, 3)
        bounds = self._model.geom_aabb[self._others]
        points = (hand + OPEN_HAND)[:, None] - self._data.geom_xpos[self._others]
        local = np.einsum("nij,pni->pnj", rotation, points) - bounds[:, :3]
        return int((np.abs(local) <= bounds[:, 3:]).all(-1).any(-1).sum())

    def _box(self, geoms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rotation = self._data.geom_xmat[geoms].reshape(-1, 3, 3)
        bounds = self._model.geom_aabb[geoms]
        centre = self._data.geom_xpos[geoms] + np.einsum("nij,nj->ni", rotation, bounds[:, :3])
        half = np.einsum("nij,nj->ni", np.abs(rotation), bounds[:, 3:])
        return (centre - half).min(0), (centre + half).max(0)

    def _touch(self, pairs: np.ndarray, other: np.ndarray) -> bool:
        """True if a contact joins the item and a geom of the mask `other`."""
        first, second = pairs[:, 0], pairs[:, 1]
        return bool(((self._is_item[first] & other[second]) | (other[first] & self._is_item[second])).any())


def _crosses(start: np.ndarray, end: np.ndarray, low: np.ndarray, high: np.ndarray) -> bool:
    """True if the segment from `start` to `end` meets the rectangle `low` to `high`, all [2]."""
    way = end - start
    enter, leave = 0.0, 1.0
    for axis in range(2):
        if abs(way[axis]) < 1e-9:
            if not low[axis] <= start[axis] <= high[axis]:
                return False
            continue
        a, b = (low[axis] - start[axis]) / way[axis], (high[axis] - start[axis]) / way[axis]
        enter, leave = max(enter, min(a, b)), min(leave, max(a, b))
    return enter <= leave
