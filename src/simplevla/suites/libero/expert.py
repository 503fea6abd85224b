"""Scripted pick and place from the simulator's state, for demonstrations.

A feedback law: every action follows from where hand, fingers and object are now, so disturbances are corrected. Memory
is kept only of which grasp is being tried and of how long nothing has come of it.
"""

import numpy as np

from simplevla.errors import UserError
from simplevla.suites.base import Expert
from simplevla.suites.libero.conventions import PICK_AND_PLACE
from simplevla.suites.libero.environment import LiberoEnvironment
from simplevla.suites.libero.geometry import SceneGeometry

METRES_PER_UNIT = 0.05
RADIANS_PER_UNIT = 0.5
GAIN = 2.0
"""The controller covers about half of a commanded displacement in an env step."""
OPEN, CLOSE = -1.0, 1.0
FINGER_SPAN = 0.072
"""Widest object in m that fits between the open fingers with some room."""
FINGER_OPEN = 0.036
"""A finger joint beyond this (m) counts as open."""
GRASP_DEPTH = 0.03
"""Depth below an object's top at which the fingertips close, m."""
RIM_DEPTH = 0.02
TIP = 0.013
"""Lowest height of the grasp point above what the object stands on, m: the fingertips reach 1.1 cm below it."""
WALL = 0.005
"""Distance from an object's outer edge to the middle of its rim, m."""
CLEARANCE = 0.03
"""Room below fingers or carried object when they cross over something, m."""
SIDESTEP = 0.025
"""Distance between places where a grasp is tried, m."""
CHOICE_KEPT = 0.06
"""A place is chosen anew as long as the hand is further than this from the object, m."""
ALIGNED = np.array([0.02, 0.013, 0.01])
"""Largest distance of the hand from a grasp when it closes, m; x, along the width of the fingertips, matters least."""
CLOSING_SLACK = 2.5
"""Factor by which closing fingers may drag the object further without the grasp being given up."""
PLACE_ALIGNED = {"on": 0.012, "in": 0.02}
"""Distance from the target's centre, m, at which the object is let go; LIBERO's `on` wants less than 3 cm."""
PATIENCE = 70
"""Env steps without holding the object after which another grasp is tried."""
CLEARING = 15
"""Env steps for which the open hand stays around a released object that leans on a finger."""
RELEASE_PATIENCE = 40
"""Env steps that a released object may take to come to rest before it is grasped again."""


class PickAndPlace(Expert):
    """Grasp the task's object, carry it over the target, let go; try another grasp when one fails."""

    def __init__(self, environment: LiberoEnvironment) -> None:
        self._environment = environment

    def reset(self) -> None:
        """Binds to the environment's current task.

        Raises:
            UserError: the task is none that this expert solves.
        """
        task, suite = self._environment.task.name, self._environment.suite
        known = PICK_AND_PLACE[suite]
        if known and task not in known:
            raise UserError(f"no expert for {suite} task {task!r}; there is one for: {', '.join(known)}")
        self._simulation = self._environment.simulation
        (self._relation, item, target), *_ = self._simulation.goals
        self._geometry = SceneGeometry(self._simulation, item, target)
        self._upright = self._simulation.nominal_hand_rotation
        self._attempt = 0
        self._without = 0
        self._released = 0
        self._reopening = False
        self._chosen: np.ndarray | None = None

    def action(self) -> np.ndarray:
        scene = self._geometry
        scene.update()
        hand, fingers = self._simulation.hand_position, np.abs(self._simulation.fingers)
        closing = self._simulation.gripper_command
        held = scene.pinched and closing > 0
        self._without = 0 if held else self._without + 1
        if self._without > PATIENCE:
            self._attempt, self._without, self._chosen = self._attempt + 1, 0, None
        if self._released and fingers.min() < FINGER_OPEN:
            return self._command(hand, hand, OPEN)
        if self._released:
            return self._after_release(hand)
        if held and closing < 1:
            return self._command(hand, hand, CLOSE)
        if held:
            return self._carry(hand)
        return self._approach(hand, fingers, closing)

    def _approach(self, hand: np.ndarray, fingers: np.ndarray, closing: float) -> np.ndarray:
        """Goes above the grasp, down to it, and closes."""
        grasp = self._grasp(hand)
        if self._reopening:
            self._reopening = fingers.min() < FINGER_OPEN
            return self._command(hand, hand, OPEN)
        aside = float(np.linalg.norm(grasp[:2] - hand[:2]))
        off = np.abs(grasp - hand) / ALIGNED
        if off.max() < (CLOSING_SLACK if closing > -1 else 1):
            if closing >= 1 and fingers.max() < 0.003:
                self._attempt, self._reopening, self._chosen = self._attempt + 1, True, None
            return self._command(hand, np.array([*hand[:2], grasp[2]]) if closing > 0 else grasp, CLOSE)
        if off[:2].max() < 0.8:
            return self._command(hand, grasp, OPEN)
        over = self._geometry.highest_between(hand[:2], grasp[:2], with_item=True) + CLEARANCE + TIP
        return self._command(hand, _across(hand, grasp[:2], over, max(hand[2], grasp[2]), aside), OPEN)

    def _grasp(self, hand: np.ndarray) -> np.ndarray:
        """Target of the grasp point of the hand, [3] m: across the object if it is narrow, else a side of its rim.

        Of several such places those come first where the open hand would touch nothing else; each failed attempt moves
        on to the next. A choice is kept while the hand is near it.
        """
        low, high = self._geometry.item_low, self._geometry.item_high
        half = (high - low) / 2
        if 2 * half[1] < FINGER_SPAN:
            shifts = [(x, 0.0) for x in (0.0, -SIDESTEP, SIDESTEP) if abs(x) < max(half[0] - TIP, 0.001)]
            depth = GRASP_DEPTH
        else:
            rim = half[1] - WALL
            shifts = [(0.0, side * (rim - inward)) for inward in (0.0, SIDESTEP) for side in (1, -1)]
            depth = RIM_DEPTH
        middle = np.array([*(low + high)[:2] / 2, max(high[2] - depth, low[2] + TIP)])
        if self._chosen is None or np.abs(hand - middle)[:2].max() > half[1] + CHOICE_KEPT:
            places = [np.array([*shift, 0.0]) for shift in shifts]
            places.sort(key=lambda place: self._geometry.collisions(middle + place))
            self._chosen = places[self._attempt % len(places)]
        return middle + self._chosen

    def _carry(self, hand: np.ndarray) -> np.ndarray:
        """Lifts, crosses, lowers, lets go."""
        scene = self._geometry
        offset = scene.target[:2] - scene.item[:2]
        aside = float(np.linalg.norm(offset))
        hanging = hand[2] - scene.item_low[2]
        if aside < PLACE_ALIGNED[self._relation]:
            inside = self._relation == "in" and (
                hand[2] < scene.target_high + CLEARANCE or scene.item_low[2] < scene.target_high - 0.05
            )
            if inside or scene.item_on_target:
                self._released = 1
                return self._command(hand, hand, OPEN)
            return self._command(hand, np.array([*(hand[:2] + offset), hand[2] - 0.03]), CLOSE)
        over = scene.highest_between(scene.item[:2], scene.target[:2], with_item=False) + CLEARANCE + hanging
        return self._command(hand, _across(hand, hand[:2] + offset, over, hand[2], aside), CLOSE)

    def _after_release(self, hand: np.ndarray) -> np.ndarray:
        """Gets clear of the object, rises and waits; grasps again when the object came to rest in a wrong place."""
        self._released += 1
        if self._released > RELEASE_PATIENCE:
            self._released, self._attempt, self._chosen = 0, self._attempt + 1, None
        scene = self._geometry
        if scene.touched and self._released < CLEARING:
            narrow = scene.item_high[1] - scene.item_low[1] < FINGER_SPAN
            middle = (scene.item_low + scene.item_high)[:2] / 2
            return self._command(hand, np.array([*(middle if narrow else hand[:2]), hand[2]]), OPEN)
        return self._command(hand, hand + np.array([0, 0, 0.03]), OPEN)

    def _command(self, hand: np.ndarray, goal: np.ndarray, gripper: float) -> np.ndarray:
        """The action that moves the hand towards `goal` [3] m and turns it back upright."""
        rotation = self._simulation.hand_rotation
        turn = 0.5 * np.cross(rotation, self._upright, axis=0).sum(axis=1)
        move = GAIN * (goal - hand) / METRES_PER_UNIT
        return np.clip([*move, *(turn / RADIANS_PER_UNIT), gripper], -1, 1).astype(np.float32)


def _across(hand: np.ndarray, xy: np.ndarray, over: float, near: float, aside: float) -> np.ndarray:
    """The next point [3] m on the way to above `xy`: up to height `over`, then across, sinking to `near` at the end."""
    if aside < 0.03:
        return np.array([*xy, min(near, over)])
    if hand[2] < over - 0.02:
        return np.array([*hand[:2], over + 0.01])
    return np.array([*xy, over])
