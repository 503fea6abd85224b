"""Events of manipulation in a MuJoCo scene: what the hand touches, grasps and lifts."""

import mujoco
import numpy as np

LIFTED_M = 0.01
"""Height above the one at the start from which a thing counts as lifted: a dragged one rocks by a millimetre or two."""


class Contacts:
    """Events of everything that can move freely.

    Args:
        fingers: names of each finger's geoms.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, fingers: tuple[tuple[str, ...], ...]) -> None:
        self._data = data
        self._finger = {model.geom(name).id: number for number, names in enumerate(fingers) for name in names}
        self._fingers = len(fingers)
        self._root = model.body_rootid[model.geom_bodyid]
        """The outermost body of each geom."""
        free = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
        self._things = {int(model.jnt_bodyid[joint]): model.body(model.jnt_bodyid[joint]).name for joint in free}
        self.begin()

    def begin(self) -> None:
        """Notes the heights in the current state, an episode's initial one."""
        self._start = {body: float(self._data.xpos[body, 2]) for body in self._things}

    def events(self) -> tuple[str, ...]:
        """`touches THING` (a finger does), `grasps THING` (all fingers do) and `lifts THING`, in the current state."""
        touching: dict[int, set[int]] = {body: set() for body in self._things}
        for pair in self._data.contact.geom:
            for thing, other in (pair, pair[::-1]):
                if other in self._finger and self._root[thing] in touching:
                    touching[self._root[thing]].add(self._finger[other])
        found: list[str] = []
        for body, name in self._things.items():
            lifted = self._data.xpos[body, 2] > self._start[body] + LIFTED_M
            holds = {"touches": touching[body], "grasps": len(touching[body]) == self._fingers, "lifts": lifted}
            found += [f"{verb} {name.removesuffix('_main')}" for verb, true in holds.items() if true]
        return tuple(found)
