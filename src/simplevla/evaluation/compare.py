"""Two evaluations of the same initial states, paired: which policy is better, and could it be chance?"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from simplevla.errors import UserError
from simplevla.evaluation.result import EvaluationResult, Rate, read_result
from simplevla.evaluation.statistics import mcnemar_exact


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Outcomes on the same initial states."""

    both: int
    only_a: int
    """Pairs solved by `a` alone: b of McNemar's test."""
    only_b: int
    """Pairs solved by `b` alone: c of McNemar's test."""
    neither: int

    @property
    def n(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def a(self) -> Rate:
        return Rate(solved=self.both + self.only_a, n=self.n)

    @property
    def b(self) -> Rate:
        return Rate(solved=self.both + self.only_b, n=self.n)

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided; NaN without pairs, which say nothing."""
        return mcnemar_exact(self.only_a, self.only_b) if self.n else float("nan")

    def to_dict(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "a": self.a.to_dict(),
            "b": self.b.to_dict(),
            "only_a": self.only_a,
            "only_b": self.only_b,
            "mcnemar_exact_p": self.p_value if self.n else None,
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A against B."""

    suite: str
    split: str
    name_a: str
    name_b: str
    overall: Paired
    by_task: dict[str, Paired]
    unpaired: int
    """Initial states left out because an episode of A or B ended as ENV_ERROR."""
    notes: tuple[str, ...] = ()
    """Differences beside the policy, or that it is the same; and doubts about either result."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "suite": self.suite,
            "split": self.split,
            "a": self.name_a,
            "b": self.name_b,
            "overall": self.overall.to_dict(),
            "by_task": {name: paired.to_dict() for name, paired in self.by_task.items()},
            "unpaired": self.unpaired,
            "notes": list(self.notes),
        }


def compare(a: EvaluationResult, b: EvaluationResult, name_a: str = "A", name_b: str = "B") -> Comparison:
    """Pairs the episodes of `a` and `b` by (task, initial state).

    Raises:
        UserError: they differ in suite, split, protocol, horizons or initial states, naming the difference; or no
            initial state has a valid episode in both.
    """
    _require_same("suite", a.suite, b.suite, name_a, name_b)
    _require_same("split", a.split, b.split, name_a, name_b)
    for key in sorted({*a.protocol, *b.protocol}):
        missing = "not given"
        _require_same(f"protocol {key!r}", a.protocol.get(key, missing), b.protocol.get(key, missing), name_a, name_b)
    for task in sorted({*a.horizons, *b.horizons}):
        _require_same(f"horizon of {task!r}", a.horizons.get(task), b.horizons.get(task), name_a, name_b)
    solved_a = {(e.task, e.initial_state): e.success for e in a.episodes}
    solved_b = {(e.task, e.initial_state): e.success for e in b.episodes}
    asked_a = {*solved_a, *((task, state) for task, state, _ in a.broken)}
    asked_b = {*solved_b, *((task, state) for task, state, _ in b.broken)}
    if asked_a != asked_b:
        examples = ", ".join(f"{task}/{state}" for task, state in sorted(asked_a ^ asked_b)[:3])
        raise UserError(
            f"initial states differ: {len(asked_a - asked_b)} only in {name_a}, "
            f"{len(asked_b - asked_a)} only in {name_b} ({examples}); "
            "evaluate both with the same tasks and episodes_per_task"
        )
    shared = solved_a.keys() & solved_b.keys()
    if not shared:
        raise UserError(
            f"no initial state has a valid episode in both: the environment broke {a.env_errors} of {len(asked_a)} episodes of "
            f"{name_a} and {b.env_errors} of {name_b}. Mend it and evaluate again."
        )

    def pair(keys: list[tuple[str, int]]) -> Paired:
        outcomes = [(solved_a[key], solved_b[key]) for key in keys]
        return Paired(
            both=outcomes.count((True, True)),
            only_a=outcomes.count((True, False)),
            only_b=outcomes.count((False, True)),
            neither=outcomes.count((False, False)),
        )

    return Comparison(
        suite=a.suite,
        split=a.split,
        name_a=name_a,
        name_b=name_b,
        overall=pair(list(shared)),
        by_task={task: pair([key for key in shared if key[0] == task]) for task in a.horizons},
        unpaired=len(asked_a) - len(shared),
        notes=tuple(_notes(a, b)),
    )


def _notes(a: EvaluationResult, b: EvaluationResult) -> Iterator[str]:
    if a.policy_sha256 is not None and a.policy_sha256 == b.policy_sha256:
        yield "A and B are evaluations of the same policy"
    how = [result.how for result in (a, b)]
    if how[0] != how[1]:
        yield f"A is {how[0]}, B {how[1]}"
    if a.computed != b.computed and "unknown" not in (a.computed, b.computed):
        yield f"A was computed on {a.computed}, B on {b.computed}"
    if a.seed != b.seed:
        yield f"A has seed {a.seed}, B {b.seed}"
    for name, result in (("A", a), ("B", b)):
        yield from (f"{name} {doubt}" for doubt in result.doubts)


def compare_files(path_a: Path, path_b: Path) -> Comparison:
    """`compare` on two files that `simplevla eval` wrote; UserError names the file or the difference."""
    return compare(read_result(path_a), read_result(path_b), str(path_a), str(path_b))


def comparison_table(comparison: Comparison) -> Table:
    """Table for the terminal: a row per task and one for all."""
    left_out = f"; {comparison.unpaired} pairs broken by an environment, left out" if comparison.unpaired else ""
    table = Table(
        title=f"{comparison.suite} · {comparison.split} initial states",
        caption=f"A = {comparison.name_a}, B = {comparison.name_b}. p: McNemar's exact test, two-sided{left_out}"
        + "".join(f"\n{note}" for note in comparison.notes),
    )
    table.add_column("task")
    for heading in ("n", "A", "B", "only A", "only B", "p"):
        table.add_column(heading, justify="right")
    for name, paired in comparison.by_task.items():
        table.add_row(name, *_cells(paired))
    table.add_section()
    table.add_row("overall", *_cells(comparison.overall), style="bold")
    return table


def _cells(paired: Paired) -> tuple[str, ...]:
    rates = (f"{rate.rate:.1%}" if rate.n else "no pair" for rate in (paired.a, paired.b))
    p = f"{paired.p_value:.3g}" if paired.n else ""
    return str(paired.n), *rates, str(paired.only_a), str(paired.only_b), p


def _require_same(what: str, a: object, b: object, name_a: str, name_b: str) -> None:
    if a != b:
        raise UserError(
            f"{what} differs: {a!r} in {name_a}, {b!r} in {name_b}; success rates under different protocols can't be "
            "compared. Evaluate both in the same way."
        )
