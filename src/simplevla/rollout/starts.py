"""First observations, compared: a suite promises that the same initial state always begins in the same way."""

from collections import OrderedDict

import numpy as np

from simplevla.rollout.workers import SlotArrays

KEPT = 64
"""First observations that are remembered; siblings follow one another."""
STATE_TOLERANCE = 1e-4
"""Absolute, and ten times that relative: what a solver leaves of its last episode is below it."""
LEVELS = 16
"""Largest difference, of 255, that a renderer may make in a pixel."""


class Starts:
    """The first observations of the last `KEPT` pairs of task and initial state."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, int], dict[str, np.ndarray]] = OrderedDict()

    def difference(self, task: str, initial_state: int, arrays: SlotArrays, slot: int) -> str:
        """Says what of the observation in `slot` isn't as in the first episode from there; empty where all is."""
        new = {"state": arrays.state[slot], **{f"image {name!r}": rows[slot] for name, rows in arrays.images.items()}}
        known = self._seen.get((task, initial_state))
        if known is None:
            self._seen[task, initial_state] = {what: array.copy() for what, array in new.items()}
            if len(self._seen) > KEPT:
                self._seen.popitem(last=False)
            return ""
        for what, array in new.items():
            if array.dtype == np.uint8:
                most = int(np.abs(array.astype(np.int16) - known[what]).max())
                if most > LEVELS:
                    return f"{what} by up to {most} of 255"
            elif not np.allclose(array, known[what], rtol=10 * STATE_TOLERANCE, atol=STATE_TOLERANCE):
                return f"{what}, {known[what].tolist()} and {array.tolist()}"
        return ""
