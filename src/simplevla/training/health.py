"""Soundness of an RL run: metrics that have left the range of healthy runs, and what to do then.

The ranges were measured on healthy runs and on ones with 20 times their learning rate (docs/metrics.md has the
figures).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simplevla.evaluation.result import Rate

Row = Mapping[str, Any]
"""One update's metrics, the keys of docs/metrics.md; what isn't finite is None once it was written."""

MAX_KL = 0.02
"""Nats per unit and update: at most 0.004 in healthy runs, 0.03 and more in destroyed ones."""
MAX_CLIP_FRACTION = 0.06
"""Share of the units whose gradient the clip cuts: at most 0.018 in healthy runs, 0.07 and more in destroyed ones."""
ENTROPY_SHARE = 0.1
"""Share of the first update's entropy. RL may sharpen a policy; with less than this, siblings no longer differ."""
ENTROPY_RISE = math.log(2)
"""Nats above the first update's entropy: the policy spreads over twice as many choices, so it forgets."""
SAMPLED_SHARE, SAMPLED_BELOW = 0.5, 0.25
"""Limits of sampled success for a warning: below this share of greedy success, and below it by this much.

The 95 % intervals must part too. Recorded healthy runs have a share of at least 0.7.
"""
LESS_NOISE = (
    "Sampling spoils what the policy can do, and RL has little to reinforce: lower sampling.temperature of a token head, sampling.eta and "
    "sampling.sigma_min of a diffusion head, or sampling.alpha of a flow head."
)

LOWER_LR = "an optimizer.lr three to ten times lower"


@dataclass(frozen=True, kw_only=True)
class HealthWarning:
    """One metric outside of its range, in one update."""

    metric: str
    update: int
    value: float | None
    """Value of the metric; None if it isn't finite."""
    expected: str
    advice: str

    @property
    def got(self) -> str:
        return "not finite" if self.value is None else f"{self.value:.3g}"

    def __str__(self) -> str:
        return f"update {self.update}: {self.metric} is {self.got}; expected {self.expected}. {self.advice}"


class Health:
    """Judges the rows of a run one after another, and keeps those alone that later ones are compared with."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.kept: list[Row] = []
        self._found: dict[str, tuple[HealthWarning, int]] = {}
        for row in rows:
            self.judge(row)

    def judge(self, row: Row) -> list[HealthWarning]:
        """The warnings of `row`, the next of the run."""
        rows = [*self.kept, row]
        judges = (_kl, _clip_fraction, _entropy, _evaluation, sampled_success, _starts)
        warnings = [warning for judge in judges if (warning := judge(rows)) is not None]
        for warning in warnings:
            first, count = self._found.get(warning.metric, (warning, 0))
            self._found[warning.metric] = first, count + 1
        self.kept = _needed(rows)
        return warnings

    @property
    def found(self) -> list[tuple[HealthWarning, int]]:
        """(its first warning, in how many updates) of each metric that ever left its range, by first appearance."""
        return list(self._found.values())


def _needed(rows: Sequence[Row]) -> list[Row]:
    """The first of `rows` with an entropy, the best and the newest evaluation, and the last row, in their order."""
    with_entropy = [row for row in rows if "entropy" in row]
    evaluated = [row for row in rows if row.get("eval_n")]
    best = [max(evaluated, key=lambda row: row["eval_low"])] if evaluated else []
    needed = [id(row) for row in [*with_entropy[:1], *best, *evaluated[-1:], rows[-1]]]
    return [row for row in rows if id(row) in needed]


def _kl(rows: Sequence[Row]) -> HealthWarning | None:
    return _above("approx_kl", MAX_KL, rows[-1], lambda row: row["approx_kl"])


def _clip_fraction(rows: Sequence[Row]) -> HealthWarning | None:
    def both(row: Row) -> float | None:
        low, high = row.get("clipfrac_low"), row.get("clipfrac_high")
        return None if low is None or high is None else low + high

    return _above("clip_fraction", MAX_CLIP_FRACTION, rows[-1], both)


def _above(metric: str, limit: float, row: Row, value_of: Callable[[Row], float | None]) -> HealthWarning | None:
    if "approx_kl" not in row:
        return None
    value = _finite(value_of(row))
    if value is not None and value <= limit:
        return None
    advice = f"One update moves the policy too far: start again with {LOWER_LR}."
    return _warning(metric, row, value, f"at most {limit:g}", advice)


def _entropy(rows: Sequence[Row]) -> HealthWarning | None:
    entropies = [_finite(row["entropy"]) for row in rows if "entropy" in row]
    if "entropy" not in rows[-1] or entropies[0] is None:
        return None
    first, value = entropies[0], entropies[-1]
    # That of a density may be near 0 or below, where a share means nothing.
    share = min(ENTROPY_SHARE * first, first - ENTROPY_RISE)
    low, high = share if first > 0 else -math.inf, first + ENTROPY_RISE
    if value is not None and low <= value <= high:
        return None
    if value is not None and value < low:
        advice = (
            "Siblings hardly differ any more, so that little can be learned from them: stop here, or start again with "
            f"{LOWER_LR} or a higher sampling.temperature."
        )
    else:
        advice = f"The policy forgets what it could do: start again with {LOWER_LR}."
    return _warning("entropy", rows[-1], value, f"{low:.3g} to {high:.3g}, from the first update's {first:.3g}", advice)


def _evaluation(rows: Sequence[Row]) -> HealthWarning | None:
    evaluated = [row for row in rows if row.get("eval_n")]
    if not evaluated or rows[-1] is not evaluated[-1]:
        return None
    best, last = max(evaluated, key=lambda row: row["eval_low"]), evaluated[-1]
    if last["eval_high"] >= best["eval_low"]:
        return None
    expected = (
        f"a 95 % interval that meets the best one's, {best['eval_low']:.3g} to {best['eval_high']:.3g} after update "
        f"{best['update']} (now {last['eval_low']:.3g} to {last['eval_high']:.3g})"
    )
    advice = (
        f"The policy gets worse: start again, from the first policy or a checkpoint before the fall, with {LOWER_LR}."
    )
    return _warning("eval_success", last, last["eval_success"], expected, advice)


def sampled_success(rows: Sequence[Row]) -> HealthWarning | None:
    """Compares what the last row sampled with greedy success, on the tasks that both have.

    The evaluation of the row before is of the very policy that sampled; else that of the last row is, one update later.
    """
    evaluated: Row = next((row["eval_by_task"] for row in rows[-2:] if row.get("eval_by_task")), {})
    trained: Row = rows[-1].get("success_by_task", {})
    greedy, sampled = (
        Rate(
            solved=sum(counts[task][0] for task in trained if task in evaluated),
            n=sum(counts[task][1] for task in trained if task in evaluated),
        )
        for counts in (evaluated, trained)
    )
    if not greedy.n or not sampled.n or sampled.high >= greedy.low:
        return None
    if sampled.rate >= SAMPLED_SHARE * greedy.rate or greedy.rate - sampled.rate < SAMPLED_BELOW:
        return None
    expected = f"at least {SAMPLED_SHARE * greedy.rate:.3g}, {SAMPLED_SHARE:g} of the greedy success on the same tasks, {greedy}"
    return _warning("sampled_success", rows[-1], sampled.rate, expected, LESS_NOISE)


def _starts(rows: Sequence[Row]) -> HealthWarning | None:
    count = rows[-1].get("unlike_starts", 0)
    if not count:
        return None
    advice = (
        "Siblings that begin in different states are compared as if only their actions differed: let the suite's reset depend on task and "
        "initial state alone (simplevla check-suite)."
    )
    return _warning("unlike_starts", rows[-1], count, "0 episodes", advice)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _warning(metric: str, row: Row, value: float | None, expected: str, advice: str) -> HealthWarning:
    return HealthWarning(metric=metric, update=row["update"], value=value, expected=expected, advice=advice)
