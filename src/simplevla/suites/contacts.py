"""Events of manipulation in a MuJoCo scene: what the hand touches, grasps and lifts."""

import mujoco
import numpy as np

LIFTED_M = 0.01
"""Height above the one at rest from which a thing counts as lifted: a dragged one rocks by a millimetre or two."""
RESTING_M_S = 0.01
"""Speed below which a thing rests."""
OPPOSED = -0.5
"""Cosine between the contact normals of two fingers up to which a thing is between them: 120 degrees apart or more."""


class Contacts:
    """Events of everything that can move freely.

    Args:
        fingers: names of each finger's geoms.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, fingers: tuple[tuple[str, ...], ...]) -> None:
        self._data = data
        self._finger = {model.geom(name).id: number for number, names in enumerate(fingers) for name in names}
        self._root = model.body_rootid[model.geom_bodyid]
        """The outermost body of each geom."""
        free = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
        self.watched = False
        """True where `look` is to be called after each physics step."""
        self._things = {int(model.jnt_bodyid[joint]): model.body(model.jnt_bodyid[joint]).name for joint in free}
        self._dof = {int(model.jnt_bodyid[joint]): int(model.jnt_dofadr[joint]) for joint in free}
        self.begin()

    def begin(self) -> None:
        """Notes the heights in the current state, an episode's initial one."""
        self._start = {body: float(self._data.xpos[body, 2]) for body in self._things}
        self._unsettled = set(self._things)
        self._brief: dict[str, None] = {}

    def look(self) -> None:
        """Notes what is so now, for the next `events`; called after a physics step, since a push may be brief."""
        self._brief |= dict.fromkeys(self._now())

    def events(self) -> tuple[str, ...]:
        """`touches THING` (a finger does), `grasps THING` (it is between fingers), `lifts THING`: now or at a `look`.

        Called after each env step; earlier looks don't count. A thing that isn't at rest yet, as some are at the start
        of Meta-World's tasks, is lifted from where it comes to rest or is touched first.
        """
        if not self.watched:
            self.look()
        found, self._brief = self._brief, {}
        return tuple(found)

    def _now(self) -> list[str]:
        data = self._data
        touching: dict[int, list[tuple[int, np.ndarray]]] = {body: [] for body in self._things}
        for pair, frame in zip(data.contact.geom, data.contact.frame, strict=True):
            # The normal points from the first to the second.
            for thing, other, normal in ((pair[0], pair[1], -frame[:3]), (pair[1], pair[0], frame[:3])):
                if other in self._finger and self._root[thing] in touching:
                    touching[self._root[thing]].append((self._finger[other], normal))
        found: list[str] = []
        for body, name in self._things.items():
            height, dof = float(data.xpos[body, 2]), self._dof[body]
            if body in self._unsettled:
                self._start[body] = height
                if touching[body] or np.linalg.norm(data.qvel[dof : dof + 3]) < RESTING_M_S:
                    self._unsettled.remove(body)
            between = any(
                a != b and float(one @ other) <= OPPOSED for a, one in touching[body] for b, other in touching[body]
            )
            holds = {
                "touches": bool(touching[body]),
                "grasps": between,
                "lifts": height > self._start[body] + LIFTED_M,
            }
            found += [f"{verb} {name.removesuffix('_main')}" for verb, true in holds.items() if true]
        return found
