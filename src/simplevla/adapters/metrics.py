"""Metrics of continual learning: the success matrix and the averages read from it.

c[i, j] is the success rate on task j after training up to the i-th task; row 0 is the base policy. T tasks were
trained, numbered 1..T in the order of training; c[k, k] belongs to task k right after its training. Tasks beyond the T
were never trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from simplevla.checked import Count, NotNegative, Seed, Share, from_dict, part
from simplevla.errors import UserError

NumberOf = Annotated[int, Ge(0)]
FORMULAS = {
    "AVG": "mean over trained tasks j of c[T, j]",
    "NBT": "mean over k < T of (c[k, k] - c[T, k]); above 0 is forgetting",
    "FWT": "mean over k >= 2 of (c[k-1, k] - c[0, k]); above 0: training the earlier tasks helped",
    "ZS": "mean over never trained tasks j of c[T, j]",
    "LIBERO FWT": "mean over k of FWT_k, the mean of task k's success at its evaluations during training, before the "
    "first update included and held at its best from the first time that this is reached",
    "LIBERO NBT": "mean over k of 1/(T-k) sum over i > k of (c[k, k] - c[i, k]), 0 for k = T",
    "AUC": "LIBERO's: mean over k of 1/(T-k+1) (FWT_k + sum over i > k of c[i, k])",
}
"""Metric -> formula; printed wherever the metric is. AVG to ZS as in arXiv 2603.11653, the rest as in LIBERO (arXiv
2306.03310 and its `compute_metric`)."""


@part(frozen=True, kw_only=True)
class WrittenMatrix:
    """The part of continual.json that is the matrix."""

    tasks: tuple[str, ...]
    order: tuple[str, ...]
    matrix: tuple[tuple[Share, ...], ...]
    n: tuple[tuple[Count, ...], ...]


@part(frozen=True, kw_only=True)
class Stage:
    """The training of one task, in stage.json and in continual.json."""

    task: str
    outcome: str
    message: str
    warnings: tuple[str, ...] = ()
    updates: Count
    episodes: Count
    minutes: NotNegative
    curve: tuple[Share, ...]
    trained_parameters: NumberOf
    adapter_bytes: NumberOf | None


@part(frozen=True, kw_only=True)
class ContinualResult(WrittenMatrix):
    """The content of continual.json."""

    structure: str
    start_from: str
    seed: Seed
    episodes: Count
    commit: str
    protocol: dict[str, str | bool | int | float]
    stages: tuple[Stage, ...]
    doubts: tuple[str, ...] | None = None
    libero: dict[str, float] | None
    AVG: float | None
    NBT: float | None
    FWT: float | None
    ZS: float | None
    AUC: float | None


@dataclass(frozen=True, kw_only=True)
class SuccessMatrix:
    """Success of every task before and after each training; may end early, with fewer rows than tasks."""

    tasks: tuple[str, ...]
    """Columns: all tasks that are evaluated, trained or not."""
    order: tuple[str, ...]
    """The trained tasks, in the order of training."""
    solved: tuple[tuple[int, ...], ...]
    """[T + 1, tasks] episodes solved; row 0 is the base policy."""
    n: tuple[tuple[int, ...], ...]
    """[T + 1, tasks] episodes run, at least 1 each."""

    def __post_init__(self) -> None:
        if len(set(self.tasks)) != len(self.tasks) or not self.tasks:
            raise UserError(f"tasks are {self.tasks}; expected at least one, each once")
        unknown = [task for task in self.order if task not in self.tasks]
        if unknown or len(set(self.order)) != len(self.order):
            raise UserError(f"order is {self.order}; expected tasks of {self.tasks}, each at most once")
        shapes = [[len(row) for row in rows] for rows in (self.solved, self.n)]
        expected = [len(self.tasks)] * (len(self.order) + 1)
        if shapes != [expected, expected]:
            raise UserError(
                f"solved and n have rows of {shapes[0]} and {shapes[1]} cells; expected {len(expected)} rows (the base "
                f"and one per trained task) of {len(self.tasks)}"
            )
        for i, row in enumerate(self.solved):
            for task, solved, n in zip(self.tasks, row, self.n[i], strict=True):
                if not 0 <= solved <= n or n < 1:
                    raise UserError(
                        f"row {i}, task {task!r}: {solved} solved of n = {n}; expected 0 <= solved <= n, n >= 1"
                    )

    @classmethod
    def from_dict(cls, result: Mapping[str, Any]) -> "SuccessMatrix":
        """Builds the matrix from `continual.json`, where `matrix` holds the rates."""
        written = from_dict(WrittenMatrix, result)
        rates, n = written.matrix, written.n
        if [len(row) for row in rates] != [len(row) for row in n]:
            raise UserError("matrix and n have rows of other lengths; expected what continual.json holds")
        solved = tuple(
            tuple(round(rate * count) for rate, count in zip(row, counts, strict=True))
            for row, counts in zip(rates, n, strict=True)
        )
        matrix = cls(tasks=written.tasks, order=written.order, solved=solved, n=n)
        for i, row in enumerate(rates):
            for j, rate in enumerate(row):
                if abs(matrix.rate(i, matrix.tasks[j]) - rate) > 1e-6:
                    raise UserError(f"matrix[{i}][{j}] is {rate}, which isn't a share of n = {n[i][j]} episodes")
        return matrix

    def to_dict(self, structure: str, seed: int, curves: Mapping[str, Sequence[float]] | None = None) -> dict[str, Any]:
        """The content of `continual.json`; metrics that aren't defined are None.

        Args:
            structure: how adapters were used, for example `per_task`.
            curves: as in `libero`; without them AUC is None.
        """
        return {
            "tasks": list(self.tasks),
            "order": list(self.order),
            "structure": structure,
            "seed": seed,
            "matrix": [[self.rate(i, task) for task in self.tasks] for i in range(len(self.n))],
            "n": [list(row) for row in self.n],
            "AVG": self.avg(),
            "NBT": self.nbt(),
            "FWT": self.fwt(),
            "ZS": self.zs(),
            "AUC": self.libero(curves)["AUC"] if curves is not None and self.order else None,
        }

    def rate(self, i: int, task: str) -> float:
        """Success rate c[i, j], j being the column of `task`."""
        j = self.tasks.index(task)
        return self.solved[i][j] / self.n[i][j]

    def avg(self) -> float | None:
        """AVG = mean over trained tasks j of c[T, j]: success at the end. None if nothing was trained."""
        return _mean([self.rate(-1, task) for task in self.order])

    def nbt(self) -> float | None:
        """NBT = mean over k < T of (c[k, k] - c[T, k]): the loss of a task since its training.

        Negative where later tasks helped. None with fewer than two trained tasks.
        """
        return _mean([self.rate(k, task) - self.rate(-1, task) for k, task in self._numbered()[:-1]])

    def fwt(self) -> float | None:
        """FWT = mean over k >= 2 of (c[k-1, k] - c[0, k]): what the tasks before gave to a task not yet trained.

        None with fewer than two trained tasks.
        """
        return _mean([self.rate(k - 1, task) - self.rate(0, task) for k, task in self._numbered()[1:]])

    def zs(self) -> float | None:
        """ZS = mean over never trained tasks j of c[T, j]. None if all were trained."""
        return _mean([self.rate(-1, task) for task in self.tasks if task not in self.order])

    def libero(self, curves: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """LIBERO's own `LIBERO FWT`, `LIBERO NBT` and `AUC`, which differ from the above (see FORMULAS).

        FWT_k = mean_e s_k(e), where s_k(e) is task k's success at evaluation e of its own training, and
        s_k(e) = s_k(e*) from the first best evaluation e* on.
        FWT = 1/T sum_k FWT_k.
        NBT = 1/T sum_k NBT_k, NBT_k = 1/(T-k) sum_{i>k} (c[k, k] - c[i, k]), NBT_T = 0.
        AUC = 1/T sum_k AUC_k, AUC_k = 1/(T-k+1) (FWT_k + sum_{i>k} c[i, k]).

        LIBERO goes on from the best checkpoint of a task, so that its c[k, k] is s_k(e*); here c[k, k] is what was
        measured after the training.

        Args:
            curves: trained task -> its success at each evaluation, the first one before any update.

        Raises:
            UserError: a trained task has no curve, or nothing was trained.
        """
        missing = [task for task in self.order if not curves.get(task)]
        if missing or not self.order:
            raise UserError(f"no learning curve of {missing or 'any task'}; expected one per trained task")
        last = len(self.order)
        forward, backward, areas = [], [], []
        for k, task in self._numbered():
            curve = list(curves[task])
            best = curve.index(max(curve))
            forward.append(sum(curve[:best] + [curve[best]] * (len(curve) - best)) / len(curve))
            later = [self.rate(i, task) for i in range(k + 1, last + 1)]
            backward.append(sum(self.rate(k, task) - rate for rate in later) / len(later) if later else 0.0)
            areas.append((forward[-1] + sum(later)) / (last - k + 1))
        return {
            "LIBERO FWT": sum(forward) / last,
            "LIBERO NBT": sum(backward) / last,
            "AUC": sum(areas) / last,
        }

    def _numbered(self) -> list[tuple[int, str]]:
        """(k, task), k from 1: the row after its training."""
        return list(enumerate(self.order, start=1))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
