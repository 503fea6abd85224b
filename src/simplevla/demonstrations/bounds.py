"""Statistics of a new policy: measured over the frames, without extremes that leave the others no bins.

A token head spreads its 256 bins over [min, max] of an action dimension; the state is divided by its standard
deviation. One value at 100 times the others' range would leave the others three bins.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from simplevla.demonstrations.rows import Rows
from simplevla.errors import UserError
from simplevla.policies.normalization import Statistics, measure

BINS = 256
TAIL = 0.01
"""Share of the frames at either end that isn't counted as the middle."""
LARGEST_STRETCH = 5.0
"""The whole range of an action (std of a state) may be so many times the middle's; LIBERO's actions have about 2."""
FEW_EPISODES, FEW_FRAMES = 2, 0.001
"""Extremes in at most so many episodes, or in at most this share of the frames, are faults; else the robot moves so."""
FEWEST_FRAMES = 8
"""The fewest values that have a middle."""
STRANGE, LARGEST_SHARE = 10.0, 0.1
"""Limits of strange values: they widen the range so many times, and are at most this share of the different values.

The values of two episodes may be strange too. All may be meant, so it is a warning. Degrees among radians make a range
57 times as large.
"""

ROUNDING = {"min": 1e-6, "max": 1e-6, "mean": 1e-4, "std": 3e-3}
"""Largest difference of a measure in `stats.json` from the frames' own, as a share of their largest absolute value.

LeRobot computes in float32, the std from mean squares. Its quantiles are means over the episodes' quantiles and aren't
compared."""


def statistics_of(rows: Rows) -> Statistics:
    """All measures, over all frames."""
    return Statistics(state=measure(rows.state), action=measure(rows.actions))


def warn_of_other_statistics(
    file: Path, stats: dict[str, Any], measured: Statistics, state_key: str, action_key: str
) -> None:
    """Warns of measures `stats`, read from `file`, that differ from these frames'; missing ones aren't needed."""
    found = []
    for key, own in ((state_key, measured.state), (action_key, measured.action)):
        written = stats.get(key)
        scale = np.maximum(np.abs(own["min"]), np.abs(own["max"]))
        for name, tolerance in ROUNDING.items():
            if not isinstance(written, dict) or name not in written:
                continue
            expected = np.array(own[name])
            try:
                got = np.asarray(written[name], np.float64).reshape(-1)
            except (TypeError, ValueError, OverflowError):
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
            f"{file} isn't of these frames: {'; '.join(found[:4])}{more}. The frames' own statistics are used.",
            stacklevel=2,
        )


def bounded_statistics(folder: Path, rows: Rows, bounds: Literal["min_max", "quantile"] | None) -> Statistics:
    """Statistics by which a new policy normalises; `quantile` cuts values off at their 1 % and 99 % quantiles first.
    None is for a policy that divides actions by their standard deviation too, and cuts nothing off.

    Dimensions that stay at one value, or switch between two, keep their extremes: a gripper that hardly ever closes
    must still be able to.

    Raises:
        UserError: a few extremes leave the others hardly any bins; names dimension, frame and episode, and what to do.
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


def _check_extremes(
    folder: Path, name: str, dimension: int, column: np.ndarray, rows: Rows, bounds: str | None
) -> None:
    if len(column) < FEWEST_FRAMES or len(np.unique(column)) <= 2:
        return
    wide = column.astype(np.float64)
    divided = name == "state" or bounds is None
    middle, others = _stretched(wide, np.std if divided else np.ptp), "98 % of the frames"
    tail = middle is not None
    if middle is None:
        middle, others = _without_strangers(wide, rows.episode_index), "the others"
    if middle is None:
        return
    low, high, whole = middle[0], middle[-1], np.ptp(wide)
    beyond = np.maximum(low - wide, wide - high)
    far = beyond > whole / LARGEST_STRETCH
    frame, episodes = int(np.argmax(beyond)), np.unique(rows.episode_index[far])
    where = f"{folder}: {name} dimension {dimension} is {column[frame]:.4g} at frame {frame} of episode {rows.episode_index[frame]}"
    room = f"would share {int(BINS * (high - low) / whole) + 1} of a token head's {BINS} bins"
    if divided:
        room = "would hardly differ once they are divided by the standard deviation"
    extent = f"such extremes are in {int(far.sum())} of {len(column)} frames, {len(episodes)} of {len(np.unique(rows.episode_index))} episodes"
    found = f"{where}; {others} lie between {low:.4g} and {high:.4g} and {room}; {extent}"
    if tail and (len(episodes) <= FEW_EPISODES or far.sum() <= FEW_FRAMES * len(column)):
        remedy = "" if bounds != "min_max" else ", or give --bounds quantile, which cuts them off"
        raise UserError(f"{found}: remove the episode{remedy}")
    remedy = "Have they the same units? Else remove their episodes"
    if tail and bounds == "min_max":
        remedy = "--bounds quantile cuts them off"
    warnings.warn(f"{found}. {remedy}.", stacklevel=4)


def _stretched(column: np.ndarray, spread: Callable[[np.ndarray], Any]) -> np.ndarray | None:
    """Sorted middle of the values, if a few extremes would leave it hardly any bins."""
    ordered, distinct = np.sort(column), np.unique(column)
    middle, tail = _middle(ordered), int(np.ceil(TAIL * len(distinct)))
    # The second condition spares what rests most of the time: its values are few, but spread over the range.
    parts = [part for part in (distinct[tail:], distinct[:-tail], distinct[tail:-tail]) if len(part) > 1]
    if spread(ordered) <= LARGEST_STRETCH * spread(middle):
        return None
    return middle if np.ptp(ordered) > LARGEST_STRETCH * min(np.ptp(part) for part in parts) else None


def _without_strangers(column: np.ndarray, episode_index: np.ndarray) -> np.ndarray | None:
    """Sorted rest of the values, if those behind a gap, or in the two episodes that reach furthest, are unlike it."""
    distinct = np.unique(column)
    edges = distinct[1:][np.diff(distinct) > np.ptp(column) / STRANGE]
    part = np.searchsorted(edges, column, side="right")
    size = np.bincount(np.searchsorted(edges, distinct, side="right"))
    numbers, starts = np.unique(episode_index, return_index=True)
    reach = np.maximum.reduceat(np.abs(column - np.median(column)), starts)
    rests, strange = [], part != size.argmax()
    # A fault of recording is a few episodes'. What most of them have is a motion, such as a gripper that opens once.
    few = 2 * len(np.unique(episode_index[strange])) <= len(numbers)
    if few and size.max() >= (1 - LARGEST_SHARE) * len(distinct):
        rests.append(column[~strange])
    if len(numbers) > 2 * FEW_EPISODES:
        rests.append(column[~np.isin(episode_index, numbers[np.argsort(reach)[-FEW_EPISODES:]])])
    return next((np.sort(rest) for rest in rests if 0 < STRANGE * np.ptp(rest) < np.ptp(column)), None)
