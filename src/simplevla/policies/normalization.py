"""The numbers that a policy normalises with. Computed once over the demonstrations, then frozen with the policy."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simplevla.errors import UserError

MEASURES = ("mean", "std", "min", "max", "q01", "q99")


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """`mean`, `std`, `min`, `max`, `q01`, `q99` of each state and action dimension, in the suite's units.

    Each field maps a measure to one float per dimension: `statistics.action["q01"][0]`.

    Raises:
        UserError: a measure is missing, lengths differ, a number isn't finite, or the measures contradict each other.
    """

    state: dict[str, list[float]]
    action: dict[str, list[float]]

    def __post_init__(self) -> None:
        for name in ("state", "action"):
            _check(name, getattr(self, name))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"state": self.state, "action": self.action}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Statistics":
        """The statistics that `to_dict` wrote."""
        if not isinstance(values, dict) or set(values) != {"state", "action"}:
            got = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise UserError(f"statistics hold {got}; expected the keys 'action' and 'state'")
        return cls(state=values["state"], action=values["action"])

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """Read `statistics.json`."""
        try:
            return cls.from_dict(json.loads(path.read_text()))
        except FileNotFoundError:
            raise UserError(
                f"{path} is missing; every policy is saved with the statistics it was trained with"
            ) from None
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is damaged ({error}); take it from another checkpoint of the same run") from error


def measure(values: np.ndarray) -> dict[str, list[float]]:
    """All measures of `values` [F, D] over its F rows; `std` divides by F, quantiles interpolate linearly.

    >>> measure(np.array([[0.0], [1.0], [2.0]]))["mean"]
    [1.0]
    """
    assert values.ndim == 2, f"expected [F, D], got {values.shape}"
    wide = values.astype(np.float64)
    low, high = np.quantile(wide, (0.01, 0.99), axis=0)
    columns = (wide.mean(0), wide.std(0), wide.min(0), wide.max(0), low, high)
    return {name: [float(x) for x in column] for name, column in zip(MEASURES, columns, strict=True)}


def _check(name: str, measures: Any) -> None:
    if not isinstance(measures, dict):
        raise UserError(f"{name} statistics are a {type(measures).__name__}; expected {', '.join(MEASURES)}")
    missing = [m for m in MEASURES if m not in measures]
    unknown = [m for m in measures if m not in MEASURES]
    if missing or unknown:
        raise UserError(
            f"{name} statistics lack {missing or 'nothing'} and hold the unknown {unknown or 'nothing'}; "
            f"expected exactly {', '.join(MEASURES)}"
        )
    lengths = {m: len(v) if isinstance(v, list) else -1 for m, v in measures.items()}
    if len(set(lengths.values())) != 1 or min(lengths.values()) < 1:
        raise UserError(f"{name} statistics have lengths {lengths}; expected one list of floats per measure, all alike")
    for measure_name, numbers in measures.items():
        for index, number in enumerate(numbers):
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise UserError(f"{name} {measure_name}[{index}] is {number!r}; expected a finite number")
    for index in range(lengths["mean"]):
        row = {m: measures[m][index] for m in MEASURES}
        if row["std"] < 0 or row["min"] > row["max"] or row["q01"] > row["q99"]:
            raise UserError(f"{name} dimension {index} has {row}; expected std >= 0, min <= max and q01 <= q99")
