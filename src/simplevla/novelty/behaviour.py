"""Differences of two policies' solved episodes from the demonstrations of their tasks."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from simplevla import checked
from simplevla.checked import Count, NotNegative
from simplevla.config import EvalConfig, RolloutConfig, SuiteConfig
from simplevla.demonstrations.dataset import LeRobotDataset
from simplevla.errors import UserError
from simplevla.evaluation.evaluate import evaluation_pairs, evaluation_request
from simplevla.evaluation.result import Rate
from simplevla.evaluation.statistics import mcnemar_exact, mean_interval
from simplevla.novelty.measure import Columns, Demonstrations
from simplevla.novelty.replay import Replay, replayed
from simplevla.policies.base import Policy, Sampling
from simplevla.progress import Progress
from simplevla.rollout.scheduler import Engine
from simplevla.suites.base import Suite
from simplevla.types import Episode, EpisodeStatus

Quantity = Literal["env_steps", "hand_path_m", "distance"]
State = tuple[str, int]
"""(task, initial state)."""


@checked.dataclass(frozen=True, kw_only=True)
class Solved:
    """One solved episode, or one demonstration."""

    task: str
    initial_state: Count | None
    env_steps: Count
    hand_path_m: NotNegative
    distance: NotNegative
    """Distance to the nearest demonstration of the task, in their standard deviations; of one, to the nearest other."""
    nearest: Count
    """Number of that demonstration in its dataset."""
    novel: bool
    """True if it is farther away than 99 % of the demonstrations are from each other."""
    events: str | None = None


@checked.dataclass(frozen=True, kw_only=True)
class Behaviour:
    """All solved episodes of one policy, or all demonstrations."""

    solved: tuple[Solved, ...]
    episodes: Count
    """Valid episodes: those that the environment broke are left out."""
    ended_otherwise: Count = 0
    """Solved episodes whose replay wasn't solved, and that are left out: the simulator doesn't repeat itself."""

    @property
    def novel(self) -> Rate:
        """Share of novel ones among the solved."""
        return Rate(solved=sum(episode.novel for episode in self.solved), n=len(self.solved))

    @property
    def orders(self) -> Counter[str]:
        """Number of episodes that each order of events solved; empty where the suite tells none."""
        return Counter(episode.events for episode in self.solved if episode.events is not None)

    def without(self, event: str) -> Rate:
        """Share of solved episodes in which `event` never was."""
        known = [episode.events.split(" > ") for episode in self.solved if episode.events is not None]
        return Rate(solved=sum(event not in events for events in known), n=len(known))

    def mean(self, quantity: Quantity) -> float:
        """Mean over solved episodes; NaN without one."""
        values = [getattr(episode, quantity) for episode in self.solved]
        return float(np.mean(values)) if values else float("nan")

    def interval(self, quantity: Quantity) -> tuple[float, float]:
        """95 % bootstrap interval of that mean, of at least one solved episode."""
        return mean_interval(np.array([getattr(episode, quantity) for episode in self.solved], float))


@checked.dataclass(frozen=True, kw_only=True)
class Novelty:
    """Two policies on the same initial states, and the demonstrations."""

    suite: str
    split: str
    protocol: Mapping[str, str | bool | int | float]
    thresholds: Mapping[str, NotNegative]
    """Task -> distance above which an episode is novel."""
    demonstrations: Behaviour
    before: Behaviour
    after: Behaviour
    after_sha256: str | None = None
    """Fingerprint of the policy after RL."""
    adapter: str = ""
    """The one that acts in each policy that has adapters; empty: as it was saved."""

    @property
    def sides(self) -> dict[str, Behaviour]:
        return {"demonstrations": self.demonstrations, "before": self.before, "after": self.after}

    @property
    def pairs(self) -> list[tuple[Solved, Solved]]:
        """(before, after) of each initial state that both policies solve."""
        after = {(episode.task, episode.initial_state): episode for episode in self.after.solved}
        return [(e, after[e.task, e.initial_state]) for e in self.before.solved if (e.task, e.initial_state) in after]

    @property
    def paired(self) -> tuple[int, int, int, float]:
        """(states that both solve, novel only before, novel only after, McNemar's exact p) of the same states."""
        pairs = self.pairs
        b = sum(before.novel and not after.novel for before, after in pairs)
        c = sum(after.novel and not before.novel for before, after in pairs)
        return len(pairs), b, c, mcnemar_exact(b, c)

    def change(self, quantity: Quantity) -> tuple[float, float, float, float]:
        """(mean of after - before over `pairs`, its 95 % bootstrap interval low, high, the sign test's exact p)."""
        values = np.array([getattr(after, quantity) - getattr(before, quantity) for before, after in self.pairs], float)
        p = mcnemar_exact(int((values < 0).sum()), int((values > 0).sum()))
        return float(values.mean()), *mean_interval(values), p

    def most_novel(self) -> list[Solved]:
        """The solved episode after RL, of each task, that is farthest from its demonstrations."""
        tasks = dict.fromkeys(episode.task for episode in self.after.solved)
        return [max((e for e in self.after.solved if e.task == task), key=lambda e: e.distance) for task in tasks]


@dataclass(frozen=True)
class Reference:
    """The demonstrations of a suite's tasks, as paths."""

    columns: Columns
    numbers: Mapping[str, np.ndarray]
    """Task -> the dataset's own numbers of its demonstrations, of which only some may be read."""
    tasks: Mapping[str, Demonstrations]
    behaviour: Behaviour

    @classmethod
    def of(cls, dataset: LeRobotDataset, suite: Suite) -> "Reference":
        """Reads them; episodes of tasks that the suite hasn't are left out.

        Raises:
            UserError: a task has fewer than two, or the state's dimensions aren't the suite's.
        """
        columns, rows = Columns.of(suite.spec.state_names), dataset.rows
        if dataset.state_dim != len(suite.spec.state_names):
            raise UserError(
                f"{dataset.folder} has states of {dataset.state_dim} numbers, suite {suite.name!r} of {len(suite.spec.state_names)}; "
                "expected demonstrations of this suite"
            )
        states = [rows.state[start:end] for start, end in dataset.episode_ranges]
        names = dataset.task_names
        by_instruction = {task.instruction: task.name for task in suite.tasks}
        told = [dataset.instructions[rows.task_index[start]] for start, _ in dataset.episode_ranges]
        of_task = names if names is not None else [by_instruction.get(instruction, "") for instruction in told]
        places = {
            task.name: np.array([i for i, name in enumerate(of_task) if name == task.name], int) for task in suite.tasks
        }
        numbers = {name: np.array(dataset.numbers)[chosen] for name, chosen in places.items()}
        orders, starts = dataset.events, dataset.initial_states
        tasks = {
            name: Demonstrations(
                name,
                np.array([columns.path(states[i]) for i in chosen]),
                [starts[i] for i in chosen] if starts else None,
            )
            for name, chosen in places.items()
        }
        solved = [
            Solved(
                task=name,
                initial_state=starts[i] if starts else None,
                env_steps=len(states[i]),
                hand_path_m=columns.length(states[i]),
                distance=float(tasks[name].apart[place]),
                nearest=int(numbers[name][tasks[name].neighbours[place]]),
                novel=bool(tasks[name].apart[place] > tasks[name].threshold),
                events=orders[i] if orders else None,
            )
            for name, chosen in places.items()
            for place, i in enumerate(chosen)
        ]
        return cls(columns, numbers, tasks, Behaviour(solved=tuple(solved), episodes=len(solved)))

    def judged(self, job: Replay, states: np.ndarray, events: str | None) -> Solved:
        """The episode of `job`, which met `states` [T, S] and these events."""
        task = job.task.name
        distance, nearest = self.tasks[task].nearest(self.columns.path(states))
        return Solved(
            task=task,
            initial_state=job.initial_state,
            env_steps=len(states),
            hand_path_m=self.columns.length(states),
            distance=distance,
            nearest=int(self.numbers[task][nearest]),
            novel=distance > self.tasks[task].threshold,
            events=events,
        )


def solved_episodes(
    engine: Engine, policy: Policy, suite: Suite, config: EvalConfig, title: str
) -> tuple[list[Replay], int]:
    """(what solved each initial state of the split that `policy` solves, number of valid episodes).

    Episodes that the environment broke are neither.
    """
    pairs = evaluation_pairs(suite, config)
    requests = (evaluation_request(task, state, config.seed) for task, state in pairs)
    solved: dict[State, Replay] = {}
    with Progress(title, len(pairs)) as progress:
        finished = broken = 0

        def sink(episode: Episode) -> None:
            nonlocal finished, broken
            finished += 1
            broken += episode.status is EpisodeStatus.ENV_ERROR
            if episode.status is EpisodeStatus.SUCCESS:
                chunks = zip(episode.actions, episode.executed, strict=True)
                request = episode.request
                solved[request.task.name, request.initial_state] = Replay(
                    task=request.task,
                    initial_state=request.initial_state,
                    actions=np.concatenate([chunk[:count] for chunk, count in chunks]),
                )
            progress.update(finished, f"{len(solved)} of {finished} solved")

        sampling = Sampling(greedy=True) if config.greedy else Sampling(temperature=config.temperature)
        engine.run(policy, sampling, lambda: next(requests, None), sink, record=True)
    return [solved[key] for task, state in pairs if (key := (task.name, state)) in solved], len(pairs) - broken


def behaviour_of(
    jobs: list[Replay], episodes: int, reference: Reference, suite: Suite, config: SuiteConfig, rollout: RolloutConfig
) -> Behaviour:
    """Replays solved episodes step by step, and measures them."""
    tracks: dict[int, Solved] = {}
    with Progress("replays", len(jobs)) as progress:
        for done, (number, track) in enumerate(replayed(config, suite, rollout, jobs), start=1):
            if track.success:
                tracks[number] = reference.judged(jobs[number], track.states, track.events)
            progress.update(done)
    return Behaviour(
        solved=tuple(tracks[number] for number in sorted(tracks)),
        episodes=episodes,
        ended_otherwise=len(jobs) - len(tracks),
    )


def shares(orders: Iterable[Counter[str]]) -> list[tuple[str, list[tuple[int, int]]]]:
    """Rows (order of events, (count, of all) on each side), the most frequent on any side first."""
    sides = list(orders)
    totals = [sum(side.values()) for side in sides]

    def most(order: str) -> float:
        return max(side[order] / total if total else 0.0 for side, total in zip(sides, totals, strict=True))

    every: dict[str, Any] = dict.fromkeys(order for side in sides for order in side)
    return [(o, [(s[o], t) for s, t in zip(sides, totals, strict=True)]) for o in sorted(every, key=most, reverse=True)]
