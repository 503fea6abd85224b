"""Counts what a campaign tried and what was survived."""

from dataclasses import dataclass, field

from benchmarks.experiments.reliability_commands import Ended

SHOWN = 20
"""Failures that are kept, of those that there are."""


@dataclass
class Tally:
    """What came of a part of the campaign."""

    tried: int = 0
    survived: int = 0
    tracebacks: int = 0
    hangs: int = 0
    results_lost: int = 0
    left_behind: int = 0
    by_kind: dict[str, list[int]] = field(default_factory=dict)
    """Kind -> survived, tried."""
    failures: list[str] = field(default_factory=list)

    def add(self, kind: str, problems: list[str]) -> None:
        """Count one try, which was survived if there are no problems."""
        self.tried += 1
        self.survived += not problems
        counts = self.by_kind.setdefault(kind, [0, 0])
        counts[0] += not problems
        counts[1] += 1
        if problems:
            failure = f"{kind}: {'; '.join(problems)}"
            print(f"  {failure}", flush=True)
            self.failures = [*self.failures, failure][:SHOWN]

    def look_at(self, ended: Ended) -> list[str]:
        """Count what a process left or said that it shouldn't; the problems."""
        self.left_behind += ended.left
        self.tracebacks += ended.traceback
        self.hangs += ended.code is None
        problems = {
            f"{ended.left} processes left": ended.left > 0,
            f"traceback: {ended.last}": ended.traceback,
            "hangs": ended.code is None,
        }
        return [problem for problem, there in problems.items() if there]
