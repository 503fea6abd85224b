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
    """Events of everything that can move, but for the robot: what lies about, and what hangs on a joint.

    Args:
        fingers: names of each finger's geoms.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, fingers: tuple[tuple[str, ...], ...]) -> None:
        self._data = data
        self._finger = {model.geom(name).id: number for number, names in enumerate(fingers) for name in names}
        free = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
        self.watched = False
        """True where `look` is to be called after each physics step."""
        self._dof = {int(model.jnt_bodyid[joint]): int(model.jnt_dofadr[joint]) for joint in free}
        """Body that moves freely -> its first velocity."""
        self._is_finger = np.zeros(model.ngeom, bool)
        self._is_finger[list(self._finger)] = True
        robot = {int(model.body_rootid[model.geom_bodyid[geom]]) for geom in self._finger}
        self._thing = [self._thing_of(model, int(body), robot) for body in model.geom_bodyid]
        """The body of each geom that moves as a whole; None for the robot's and for what can't move."""
        bodies = sorted({*self._dof, *(body for body in self._thing if body is not None)})
        self._things = {body: model.body(body).name or model.joint(model.body_jntadr[body]).name for body in bodies}
        self.begin()

    def _thing_of(self, model: mujoco.MjModel, body: int, robot: set[int]) -> int | None:
        root = int(model.body_rootid[body])
        if root in robot:
            return None
        if root in self._dof:
            return root
        while body and not model.body_jntnum[body]:
            body = int(model.body_parentid[body])
        return body or None

    def begin(self) -> None:
        """Notes the heights in the current state, an episode's initial one."""
        self._start = {body: float(self._data.xpos[body, 2]) for body in self._dof}
        self._unsettled = set(self._dof)
        self._brief: dict[str, None] = {}

    def look(self) -> None:
        """Notes what is so now, for the next `events`; called after a physics step, since a push may be brief."""
        self._brief |= dict.fromkeys(self._now())

    def events(self) -> tuple[str, ...]:
        """`touches THING` (a finger does), `grasps THING` (it is between fingers), `lifts THING`: now or at a `look`.

        What hangs on a joint, as a drawer or a button, is touched and grasped, and never lifted.

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
        at_fingers = self._is_finger[data.contact.geom].any(axis=1)
        for pair, frame in zip(data.contact.geom[at_fingers], data.contact.frame[at_fingers], strict=True):
            # The normal points from the first to the second.
            for geom, other, normal in ((pair[0], pair[1], -frame[:3]), (pair[1], pair[0], frame[:3])):
                if other in self._finger and (thing := self._thing[geom]) is not None:
                    touching[thing].append((self._finger[other], normal))
        found: list[str] = []
        for body, name in self._things.items():
            height = float(data.xpos[body, 2])
            if body in self._unsettled:
                self._start[body], dof = height, self._dof[body]
                if touching[body] or np.linalg.norm(data.qvel[dof : dof + 3]) < RESTING_M_S:
                    self._unsettled.remove(body)
            between = any(
                a != b and float(one @ other) <= OPPOSED for a, one in touching[body] for b, other in touching[body]
            )
            holds = {
                "touches": bool(touching[body]),
                "grasps": between,
                "lifts": body in self._dof and height > self._start[body] + LIFTED_M,
            }
            found += [f"{verb} {name.removesuffix('_main')}" for verb, true in holds.items() if true]
        return found
