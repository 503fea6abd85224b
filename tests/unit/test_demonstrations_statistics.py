"""Normalisation statistics against numbers worked out by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from simplevla.checked import from_dict
from simplevla.policies.normalization import MEASURES, Statistics, measure

COLUMN = np.array([[4.0], [0.0], [2.0], [1.0], [3.0]], np.float32)


def good() -> dict[str, dict[str, list[float]]]:
    return {"state": measure(COLUMN), "action": measure(np.hstack([COLUMN, -COLUMN]))}


def test_measures_of_zero_to_four() -> None:
    # Sorted 0..4: std = sqrt((4 + 1 + 0 + 1 + 4) / 5); the 1 % quantile lies 0.01 * 4 steps after the smallest.
    measured = measure(COLUMN)
    assert list(measured) == list(MEASURES)
    assert measured["mean"] == [2.0]
    assert measured["std"] == pytest.approx([math.sqrt(2)], abs=1e-12)
    assert (measured["min"], measured["max"]) == ([0.0], [4.0])
    assert measured["q01"] == pytest.approx([0.04], abs=1e-12)
    assert measured["q99"] == pytest.approx([3.96], abs=1e-12)


def test_dimensions_are_measured_apart() -> None:
    measured = measure(np.hstack([COLUMN, 10 * COLUMN]))
    assert measured["mean"] == [2.0, 20.0]
    assert measured["max"] == [4.0, 40.0]


def test_json_round_trip(tmp_path: Path) -> None:
    statistics = from_dict(Statistics, good())
    path = tmp_path / "statistics.json"
    path.write_text(json.dumps(statistics.to_dict()))
    assert Statistics.load(path) == statistics
    assert Statistics.load(path).action["min"] == [0.0, -4.0]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("q01", None, r"lack \['q01'\]"),
        ("median", [0.0], r"unknown \['median'\]"),
        ("mean", [0.0, 1.0], r"lengths .*'mean': 2"),
        ("mean", 0.0, "state.mean is 0.0; expected a list"),
        ("std", [float("nan")], "state.std.0 is nan; expected a finite number"),
        ("std", [-1.0], "std >= 0"),
        ("min", [5.0], "min <= max"),
        ("q99", [-5.0], "q01 <= q99"),
        ("max", ["4"], "state.max.0 is '4'; expected a number"),
    ],
)
def test_bad_measures_are_refused(key: str, value: object, message: str) -> None:
    values: dict = good()
    if value is None:
        del values["state"][key]
    else:
        values["state"][key] = value
    with pytest.raises(ValueError, match=message):
        from_dict(Statistics, values)


def test_missing_part_and_missing_or_damaged_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Statistics lacks 'action'"):
        from_dict(Statistics, {"state": measure(COLUMN)})
    path = tmp_path / "statistics.json"
    with pytest.raises(ValueError, match="is missing"):
        Statistics.load(path)
    path.write_text(json.dumps(good())[:-5])
    with pytest.raises(ValueError, match="is not valid JSON"):
        Statistics.load(path)
