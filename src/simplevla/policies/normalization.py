"""The numbers that a policy normalises with. Computed once over the demonstrations, then frozen with the policy."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Len

from simplevla.checked import dataclass
from simplevla.errors import UserError
from simplevla.storage import read_as

MEASURES = ("mean", "std", "min", "max", "q01", "q99")
Measures = dict[str, Annotated[list[float], Len(1, 10_000)]]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """`mean`, `std`, `min`, `max`, `q01`, `q99` of each state and action dimension, in the suite's units.

    Each field maps a measure to one float per dimension: `statistics.action["q01"][0]`.

    Raises:
        UserError: a measure is missing, lengths differ, a number isn't finite, or the measures contradict each other.
    """

    state: Measures
    action: Measures

    def __post_init__(self) -> None:
        for name in ("state", "action"):
            _check(name, getattr(self, name))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """Reads `statistics.json`."""
        if not path.exists():
            raise UserError(f"{path} is missing; every policy is saved with the statistics it was trained with")
        return read_as(path, cls)


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


def _check(name: str, measures: Measures) -> None:
    missing = [m for m in MEASURES if m not in measures]
    unknown = [m for m in measures if m not in MEASURES]
    if missing or unknown:
        raise UserError(
            f"{name} statistics lack {missing or 'nothing'} and hold the unknown {unknown or 'nothing'}; "
            f"expected exactly {', '.join(MEASURES)}"
        )
    lengths = {m: len(numbers) for m, numbers in measures.items()}
    if len(set(lengths.values())) != 1:
        raise UserError(f"{name} statistics have lengths {lengths}; expected one list of floats per measure, all alike")
    for index in range(lengths["mean"]):
        row = {m: measures[m][index] for m in MEASURES}
        if row["std"] < 0 or row["min"] > row["max"] or row["q01"] > row["q99"]:
            raise UserError(f"{name} dimension {index} has {row}; expected std >= 0, min <= max and q01 <= q99")
