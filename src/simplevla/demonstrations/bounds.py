"""The statistics that a new policy gets: measured over the frames, with extremes that don't take the others' room.

A token head spreads its 256 bins over [min, max] of an action dimension, and the state is divided by its standard deviation.
One value at 100 times the others' range would leave the others three bins.
"""

import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np

from simplevla.demonstrations import layout
from simplevla.demonstrations.rows import Rows
from simplevla.policies.normalization import Statistics, measure

BINS = 256
TAIL = 0.01
"""Share of the frames at either end that isn't counted as the middle."""
LARGEST_STRETCH = 5.0
"""The whole range of an action (std of a state) may be so many times the middle's; LIBERO's actions have about 2."""
FEW_EPISODES, FEW_FRAMES = 2, 0.001
"""Extremes in at most so many episodes, or in at most this share of the frames, are faults; else the robot moves so."""
FEWEST_FRAMES = 8
"""With fewer there is no middle."""

ROUNDING = {"min": 1e-6, "max": 1e-6, "mean": 1e-4, "std": 3e-3}
"""How far a measure in `stats.json` may lie from the frames', in the largest absolute value: LeRobot computes in float32,
the std from mean squares. Its quantiles are means over the episodes' quantiles and aren't compared."""


def statistics_of(rows: Rows) -> Statistics:
    """All measures, over all frames."""
    return Statistics(state=measure(rows.state), action=measure(rows.actions))


def warn_of_other_statistics(folder: Path, stats: dict[str, Any], measured: Statistics) -> None:
    """Say where the content of `stats.json` isn't of these frames; what it lacks isn't needed."""
    found = []
    for key, own in ((layout.STATE, measured.state), (layout.ACTION, measured.action)):
        written = stats.get(key)
        scale = np.maximum(np.abs(own["min"]), np.abs(own["max"]))
        for name, tolerance in ROUNDING.items():
            if not isinstance(written, dict) or name not in written:
                continue
            expected = np.array(own[name])
            try:
                got = np.asarray(written[name], np.float64).reshape(-1)
            except (TypeError, ValueError):
                got = np.empty(0)
            if got.shape != expected.shape:
                found.append(f"{key} {name} has {len(got)} numbers, the frames have {len(expected)} dimensions")
                continue
            for dimension in np.flatnonzero(~(np.abs(got - expected) <= tolerance * scale + 1e-9)):
                values = f"{got[dimension]:.6g}, the frames' is {expected[dimension]:.6g}"
                found.append(f"{key} {name} of dimension {dimension} is {values}")
    if found:
        more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
        warnings.warn(
            f"{folder / layout.STATS} isn't of these frames: {'; '.join(found[:4])}{more}. The frames' own statistics are used.",
            stacklevel=2,
        )


def bounded_statistics(folder: Path, rows: Rows, bounds: Literal["min_max", "quantile"]) -> Statistics:
    """What a new policy normalises with: `quantile` cuts the values off at their 1 % and 99 % quantiles first.

    Dimensions that stay at one value, or switch between two, keep their extremes: a gripper that hardly ever closes must
    still be able to.

    Raises:
        ValueError: a few extremes take the others' room; names dimension, frame and episode, and what to do.
    """
    parts = {}
    for name, values in (("state", rows.state), ("action", rows.actions)):
        if bounds == "quantile":
            columns = [_cut(column) for column in values.T]
            values = np.stack(columns, axis=1)
        for dimension, column in enumerate(values.T):
            _check_extremes(folder, name, dimension, column, rows, bounds)
        parts[name] = measure(values)
    return Statistics(state=parts["state"], action=parts["action"])


def _cut(column: np.ndarray) -> np.ndarray:
    wide = column.astype(np.float64)
    middle = _middle(np.sort(wide))
    if np.ptp(middle) == 0 or len(np.unique(wide)) <= 2:
        return wide
    # Of up to 100 frames a quantile would be a mix with the single extreme.
    low, high = np.quantile(wide, (TAIL, 1 - TAIL)) if len(wide) > 1 / TAIL else (middle[0], middle[-1])
    return np.clip(wide, low, high)


def _middle(ordered: np.ndarray) -> np.ndarray:
    """Sorted values without 1 % of them at either end, at least one."""
    tail = int(np.ceil(TAIL * len(ordered)))
    return ordered[tail : len(ordered) - tail]


def _check_extremes(folder: Path, name: str, dimension: int, column: np.ndarray, rows: Rows, bounds: str) -> None:
    ordered, distinct = np.sort(column.astype(np.float64)), np.unique(column.astype(np.float64))
    if len(ordered) < FEWEST_FRAMES or len(distinct) <= 2:
        return
    middle, whole = _middle(ordered), np.ptp(ordered)
    spread = np.std if name == "state" else np.ptp
    # The second condition spares what rests most of the time: its values are few, but spread over the range.
    tail = int(np.ceil(TAIL * len(distinct)))
    parts = [part for part in (distinct[tail:], distinct[:-tail], distinct[tail:-tail]) if len(part) > 1]
    stretched = spread(ordered) > LARGEST_STRETCH * spread(middle)
    if not stretched or whole <= LARGEST_STRETCH * min(np.ptp(part) for part in parts):
        return
    low, high = middle[0], middle[-1]
    beyond = np.maximum(low - column, column - high)
    far = beyond > whole / LARGEST_STRETCH
    frame, episodes = int(np.argmax(beyond)), np.unique(rows.episode_index[far])
    where = f"{folder}: {name} dimension {dimension} is {column[frame]:.4g} at frame {frame} of episode {rows.episode_index[frame]}"
    middle_text = f"98 % of the frames lie between {low:.4g} and {high:.4g}"
    room = f"would share {int(BINS * np.ptp(middle) / whole) + 1} of a token head's {BINS} bins"
    if name == "state":
        room = "would hardly differ once they are divided by the standard deviation"
    extent = f"such extremes are in {int(far.sum())} of {len(column)} frames, {len(episodes)} of {rows.episode_index[-1] + 1} episodes"
    remedy = "remove the episode" + ("" if bounds == "quantile" else ", or give --bounds quantile, which cuts them off")
    if len(episodes) <= FEW_EPISODES or far.sum() <= FEW_FRAMES * len(column):
        raise ValueError(f"{where}; {middle_text} and {room}; {extent}: {remedy}")
    if name == "action" and bounds == "min_max":
        warnings.warn(f"{where}; {middle_text} and {room}; {extent}. --bounds quantile cuts them off.", stacklevel=4)
