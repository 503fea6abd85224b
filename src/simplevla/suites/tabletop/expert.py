"""Scripted expert: a feedback law on the simulator's state, so it recovers from any disturbance."""

import numpy as np

from simplevla.suites.base import Expert
from simplevla.suites.tabletop.environment import MAX_DELTA_M, TabletopEnvironment
from simplevla.suites.tabletop.layout import BLOCK_HALF

HOVER_M = 0.09
"""Height at which the hand crosses over blocks (5 cm) and knob (5.3 cm)."""
GRASP_M = 0.022
CARRY_M, RELEASE_M = 0.085, 0.045
"""Height of a carried block's centre, and the height from which it is dropped; it rests at 2.5 cm."""
AIR_M = 0.03
"""Height of its centre from which it is in the air."""
STRIP_X_M = 0.145
"""Place where a carried block is let go, right of the strip's edge."""
OPEN, CLOSE = -1.0, 1.0


class TabletopExpert(Expert):
    """Solves each task from its current state; keeps no memory."""

    def __init__(self, environment: TabletopEnvironment) -> None:
        self.env = environment

    def reset(self) -> None:
        return None

    def action(self) -> np.ndarray:
        target, gripper = getattr(self, f"_{self.env._task}")()
        delta = np.clip((target - self.env.hand()) / MAX_DELTA_M, -1.0, 1.0)
        return np.array([*delta, gripper], dtype=np.float32)

    def _over(self, xy: np.ndarray, low: float, tolerance: float = 0.012) -> np.ndarray:
        """Way to the point `low` above `xy`: up if aside and low, then across, then down."""
        hand = self.env.hand()
        aside = float(np.linalg.norm(hand[:2] - xy))
        if aside < tolerance:
            return np.array([*xy, low])
        if aside > 0.03 and hand[2] < 0.065:
            return np.array([*hand[:2], HOVER_M + 0.01])
        return np.array([*xy, HOVER_M if aside > 0.03 else max(hand[2], low)])

    def _pick(self, block: str) -> tuple[np.ndarray, float]:
        position, hand = self.env.block(block), self.env.hand()
        near = np.linalg.norm(hand[:2] - position[:2]) < 0.016 and hand[2] < position[2] + 0.006
        low = position[2] - BLOCK_HALF + GRASP_M
        if near:
            return np.array([*hand[:2], low]), CLOSE
        return self._over(position[:2], low), OPEN

    def _holds(self, block: str) -> bool:
        return self.env.finger_contacts(block) == 2

    def _carry(self, block: str, xy: np.ndarray, rest: float) -> tuple[np.ndarray, float]:
        """Brings the held block to `xy` and lets go when its centre is at height `rest`."""
        position, hand = self.env.block(block), self.env.hand()
        offset = xy - position[:2]
        aside = float(np.linalg.norm(offset))
        travel = rest + 0.05
        if aside > 0.025:
            over = hand[:2] + (offset if position[2] > rest + 0.025 else 0.0)
            return np.array([*over, hand[2] + travel - position[2]]), CLOSE
        if aside > 0.008:
            return np.array([*(hand[:2] + offset), max(hand[2] + rest + 0.015 - position[2], hand[2] - 0.02)]), CLOSE
        if position[2] > rest + 0.006:
            return np.array([*(hand[:2] + offset), hand[2] + rest - position[2]]), CLOSE
        return np.array([*hand[:2], hand[2]]), OPEN

    def _lift_block(self) -> tuple[np.ndarray, float]:
        if self._holds("red"):
            return np.array([*self.env.hand()[:2], 0.15]), CLOSE
        return self._pick("red")

    def _place_on_plate(self) -> tuple[np.ndarray, float]:
        if self._holds("blue"):
            return self._carry("blue", self.env.fixture("plate")[:2], BLOCK_HALF + 0.006)
        return self._pick("blue")

    def _stack_blocks(self) -> tuple[np.ndarray, float]:
        if self._holds("red"):
            base = self.env.block("blue")
            return self._carry("red", base[:2], base[2] + 2 * BLOCK_HALF)
        return self._pick("red")

    def _press_button(self) -> tuple[np.ndarray, float]:
        return self._over(self.env.fixture("button")[:2], 0.01, tolerance=0.014), CLOSE

    def _slide_lid(self) -> tuple[np.ndarray, float]:
        knob = self.env.fixture("rail")[:2] + np.array([self.env.joint("lid") - 0.04, 0.0])
        hand = self.env.hand()
        along, across = hand[:2] - knob
        if -0.05 < along < -0.01 and abs(across) < 0.012 and hand[2] < 0.045:
            return np.array([hand[0] + 0.04, knob[1], 0.034]), CLOSE
        return self._over(knob - np.array([0.034, 0.0]), 0.034, tolerance=0.01), CLOSE

    def _push_to_strip(self) -> tuple[np.ndarray, float]:
        block, hand = self.env.block("blue")[:2], self.env.hand()
        along, across = hand[:2] - block
        if -0.065 < along < -0.02 and abs(across) < 0.014 and hand[2] < 0.045:
            return np.array([hand[0] + 0.03, block[1], 0.025]), CLOSE
        return self._over(block - np.array([0.048, 0.0]), 0.025), CLOSE

    def _carry_to_strip(self) -> tuple[np.ndarray, float]:
        """Always over the table: up, across, down, and open; never a push."""
        if not self._holds("blue"):
            return self._pick("blue")
        position, hand = self.env.block("blue"), self.env.hand()
        aside = STRIP_X_M - position[0]
        if aside > 0.01:
            carried = hand[2] + CARRY_M - position[2]
            # In an arc: across while it still rises, but not before it is in the air.
            return np.array([hand[0] + (aside if position[2] > AIR_M else 0.0), hand[1], carried]), CLOSE
        if position[2] > RELEASE_M:
            return np.array([hand[0] + aside, hand[1], hand[2] + RELEASE_M - 0.005 - position[2]]), CLOSE
        return hand, OPEN
