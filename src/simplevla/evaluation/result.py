"""An evaluation's result: every episode's outcome with all that is needed to judge and to repeat it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from simplevla import checked
from simplevla.checked import Count, NotNegative, Positive, Seed, from_dict
from simplevla.errors import UserError
from simplevla.evaluation.statistics import wilson
from simplevla.rollout.crew import Errors
from simplevla.storage import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Rate:
    """`solved` of `n` episodes."""

    solved: int
    n: int

    @property
    def rate(self) -> float:
        """Share solved; NaN without episodes, since there is no rate then."""
        return self.solved / self.n if self.n else float("nan")

    @property
    def low(self) -> float:
        """Lower bound of the 95 % Wilson interval."""
        return wilson(self.solved, self.n)[0]

    @property
    def high(self) -> float:
        """Upper bound of the 95 % Wilson interval."""
        return wilson(self.solved, self.n)[1]

    def __str__(self) -> str:
        if self.n == 0:
            return "no valid episode (n = 0)"
        return f"{self.rate:.1%} [{self.low:.1%}, {self.high:.1%}], {self.solved} of {self.n}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "solved": self.solved,
            "n": self.n,
            "rate": self.rate if self.n else None,
            "wilson_low": self.low,
            "wilson_high": self.high,
        }


@checked.dataclass(frozen=True, kw_only=True)
class Outcome:
    """One valid episode."""

    task: str
    initial_state: Count
    success: bool
    env_steps: Count


@checked.dataclass(frozen=True, kw_only=True)
class Breakage:
    """A kind of error, how often it came, and the last one."""

    count: Positive
    last: str


class Broken(NamedTuple):
    """An episode that ended as ENV_ERROR: no statement about the policy."""

    task: str
    initial_state: int
    reason: str = ""
    """The error that broke it last; empty in files from before this was kept."""


@checked.dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Success per task and overall, under a named protocol."""

    suite: str
    split: str
    episodes_per_task: Count = 0
    """The first so many of the split's initial states of each task were evaluated; 0: all of them."""
    protocol: Mapping[str, str | bool | int | float]
    """The suite's own words on what changes the meaning of its success rates."""
    horizons: Mapping[str, Positive]
    """Task -> env steps after which an unsolved episode ended."""
    greedy: bool
    temperature: NotNegative | None
    """Sampling temperature; None if greedy."""
    seed: Seed
    episodes: tuple[Outcome, ...]
    """Outcomes by task, then initial state; episodes that the environment broke are not here."""
    broken: tuple[Broken, ...] = ()
    errors: Errors = field(default_factory=Errors)
    """All that broke, also where the episode was run again and went well."""
    wall_s: NotNegative
    versions: Mapping[str, str]
    commit: str
    policy: str | None = None
    """Folder of the policy, where it came from one."""
    policy_sha256: str | None = None
    held_out: str = "unknown: not recorded"
    """`yes`, `no: ...` or `unknown: ...`: whether training has met none of these initial states."""
    told: str | None = None
    """The one sentence that the policy was told in every task; None: each task's own."""
    adapter: str = ""
    """Adapter of the policy that acted, or `routed`; empty: the one that was active when it was saved."""
    computed: str = "unknown"
    """Device and precision of the policy, such as `cpu, float32`."""
    differences: tuple[str, ...] = ()
    """Parts of the suite that the policy wasn't trained for, a sentence each."""

    def __post_init__(self) -> None:
        if self.greedy != (self.temperature is None):
            raise UserError(f"greedy is {self.greedy} and temperature {self.temperature}; expected exactly one of them")

    @property
    def how(self) -> str:
        """The choice of actions in words: greedy, or sampled at a temperature."""
        choice = "greedy" if self.greedy else f"sampled at temperature {self.temperature:g}"
        return f"{choice}, adapter {self.adapter}" if self.adapter else choice

    @property
    def as_saved(self) -> bool:
        """True if the policy acted as it was saved, and was told each task's own instruction."""
        return self.told is None and not self.adapter

    @property
    def states(self) -> str:
        """The evaluated initial states in words."""
        first = f"the first {self.episodes_per_task} " if self.episodes_per_task else ""
        return f"{first}{self.split} initial states{' of each task' if first else ''}"

    @property
    def doubts(self) -> list[str]:
        """Reasons to doubt its rates: states that aren't held out, and differences from the policy's training."""
        found = [] if self.held_out == "yes" or self.split == "train" else [f"held out: {self.held_out}"]
        return found + [f"not as trained: {difference}" for difference in self.differences]

    @property
    def env_errors(self) -> int:
        """Episodes that ended as ENV_ERROR; they are not in any n."""
        return len(self.broken)

    @property
    def unmeasured(self) -> list[str]:
        """Tasks all of whose episodes broke: nothing is known about them, and the overall rate is without them."""
        return [name for name, rate in self.by_task.items() if rate.n == 0]

    @property
    def overall(self) -> Rate:
        """Over all episodes, so tasks with more valid episodes weigh more."""
        return _rate(self.episodes)

    @property
    def by_task(self) -> dict[str, Rate]:
        """One per task of the evaluation, also where all its episodes broke."""
        return {name: _rate(e for e in self.episodes if e.task == name) for name in self.horizons}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; rates and intervals are written for people and recomputed from the episodes on reading."""
        return {
            "suite": self.suite,
            "split": self.split,
            "episodes_per_task": self.episodes_per_task,
            "protocol": dict(self.protocol),
            "horizons": dict(self.horizons),
            "greedy": self.greedy,
            "temperature": self.temperature,
            "seed": self.seed,
            "overall": self.overall.to_dict(),
            "by_task": {name: rate.to_dict() for name, rate in self.by_task.items()},
            "env_errors": self.env_errors,
            "wall_s": self.wall_s,
            "policy": self.policy,
            "policy_sha256": self.policy_sha256,
            "held_out": self.held_out,
            "told": self.told,
            "adapter": self.adapter,
            "computed": self.computed,
            "differences": list(self.differences),
            "commit": self.commit,
            "versions": dict(self.versions),
            "episodes": [
                {"task": e.task, "initial_state": e.initial_state, "success": e.success, "env_steps": e.env_steps}
                for e in self.episodes
            ],
            "broken": [broken._asdict() for broken in self.broken],
            "errors": {kind: {"count": n, "last": self.errors.last[kind]} for kind, n in self.errors.counts.items()},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "evaluation result") -> "EvaluationResult":
        """Reads what `to_dict` wrote.

        Raises:
            UserError: naming `source` and the key that is missing or doesn't fit.
        """
        try:
            result = cls(
                suite=values["suite"],
                split=values["split"],
                episodes_per_task=values.get("episodes_per_task", 0),
                protocol=dict(values["protocol"]),
                horizons=values["horizons"],
                greedy=values["greedy"],
                temperature=values["temperature"],
                seed=values["seed"],
                episodes=tuple(from_dict(Outcome, episode) for episode in values["episodes"]),
                broken=tuple(Broken(**broken) for broken in values["broken"]),
                errors=_errors(values.get("errors", {})),
                wall_s=values["wall_s"],
                versions=dict(values["versions"]),
                commit=values["commit"],
                policy=values["policy"],
                policy_sha256=values["policy_sha256"],
                held_out=values.get("held_out", cls.held_out),
                told=values.get("told"),
                adapter=values.get("adapter", cls.adapter),
                computed=values.get("computed", cls.computed),
                differences=tuple(values.get("differences", ())),
            )
            written = {task: (rate["solved"], rate["n"]) for task, rate in values["by_task"].items()}
            written["overall"] = (values["overall"]["solved"], values["overall"]["n"])
        except KeyError as error:
            raise UserError(f"{source}: key {error} is missing; expected a file that `simplevla eval` wrote") from None
        except (TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{source}: {error}; expected a file that `simplevla eval` wrote") from None
        by_hand = "the file was changed by hand or damaged"
        pairs = [(episode.task, episode.initial_state) for episode in result.episodes]
        pairs += [(broken.task, broken.initial_state) for broken in result.broken]
        (task, state), times = Counter(pairs).most_common(1)[0] if pairs else (("", 0), 0)
        if times > 1:
            raise UserError(f"{source}: task {task!r}, initial state {state} is there {times} times; {by_hand}")
        if strange := {task for task, _ in pairs} - result.horizons.keys():
            raise UserError(f"{source}: it has episodes of {min(strange)!r}, which isn't among its tasks; {by_hand}")
        for what, rate in {"overall": result.overall, **result.by_task}.items():
            solved, n = written.get(what, (None, None))
            if (solved, n) != (rate.solved, rate.n):
                raise UserError(
                    f"{source}: {what} says {solved} of {n} solved, its episodes say {rate.solved} of {rate.n}; {by_hand}"
                )
        return result


def _errors(values: dict[str, dict[str, Any]]) -> Errors:
    errors = Errors()
    for kind, error in values.items():
        breakage = from_dict(Breakage, error)
        errors.add(kind, breakage.last, breakage.count)
    return errors


def _rate(episodes: Iterable[Outcome]) -> Rate:
    successes = [e.success for e in episodes]
    return Rate(solved=sum(successes), n=len(successes))


def write_result(path: Path, result: EvaluationResult) -> None:
    """One JSON file, atomically."""
    write_json(path, result.to_dict())


def read_result(path: Path) -> EvaluationResult:
    """The result in `path`; UserError names the file and what is wrong with it."""
    return EvaluationResult.from_dict(read_json(path), source=str(path))


def result_table(result: EvaluationResult) -> Table:
    """Table for the terminal: a row per task and one for all; title and caption say what makes the rate comparable."""
    protocol = ", ".join(f"{key} {value}" for key, value in result.protocol.items())
    errors = f" · {result.env_errors} episodes broken by the environment, not in n" if result.env_errors else ""
    table = Table(
        title=f"{result.suite} · {result.states} · {result.how}",
        caption=f"{protocol} · seed {result.seed} · {result.wall_s:.0f} s · commit {result.commit[:12]}{errors}"
        + "".join(f"\n{note}" for note in result.doubts),
    )
    table.add_column("task")
    for heading in ("success", "95 % Wilson", "solved", "n", "horizon"):
        table.add_column(heading, justify="right")
    for name, rate in result.by_task.items():
        table.add_row(name, *_cells(rate), str(result.horizons[name]))
    table.add_section()
    table.add_row("overall", *_cells(result.overall), "", style="bold")
    return table


def _cells(rate: Rate) -> tuple[str, str, str, str]:
    if rate.n == 0:
        return "no valid episode", "", "0", "0"
    return f"{rate.rate:.1%}", f"{rate.low:.1%} to {rate.high:.1%}", str(rate.solved), str(rate.n)
