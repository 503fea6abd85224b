"""Env steps to success before and after RL, on the initial states that both policies solve."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean, median

from simplevla.evaluation.result import EvaluationResult


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Pairs of solved episodes, before and after RL, of the same initial states."""

    pairs: tuple[tuple[int, int], ...]
    """(env steps before, after) of each state; at least one."""

    @property
    def n(self) -> int:
        """Number of states that both solve."""
        return len(self.pairs)

    @property
    def means(self) -> tuple[float, float]:
        """Mean env steps (before, after)."""
        before, after = zip(*self.pairs, strict=True)
        return mean(before), mean(after)

    @property
    def medians(self) -> tuple[float, float]:
        """Median env steps (before, after)."""
        before, after = zip(*self.pairs, strict=True)
        return median(before), median(after)

    @property
    def faster(self) -> int:
        """Number of states that are solved in fewer env steps after RL."""
        return sum(after < before for before, after in self.pairs)

    @property
    def slower(self) -> int:
        """Number of states that are solved in more env steps after RL."""
        return sum(after > before for before, after in self.pairs)


def steps_to_success(before: EvaluationResult, after: EvaluationResult) -> tuple[Steps | None, dict[str, Steps]]:
    """(of all tasks, of each task) that have states which both solve; None and {} if there is none."""
    solved = {(e.task, e.initial_state): e.env_steps for e in after.episodes if e.success}
    pairs = [
        (e.task, (e.env_steps, solved[e.task, e.initial_state]))
        for e in before.episodes
        if e.success and (e.task, e.initial_state) in solved
    ]
    if not pairs:
        return None, {}

    def of(tasks: Iterable[str]) -> Steps:
        return Steps(pairs=tuple(pair for task, pair in pairs if task in tasks))

    tasks = list(dict.fromkeys(task for task, _ in pairs))
    return of(tasks), {task: of([task]) for task in tasks}
