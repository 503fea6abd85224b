"""Groups of one update, sampled until enough of them carry a signal: dynamic sampling (arXiv 2509.09674)."""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from simplevla.algorithm.selection import is_mixed
from simplevla.config import SamplingConfig
from simplevla.policies.base import Policy, Sampling
from simplevla.rollout.crew import Errors
from simplevla.rollout.scheduler import Engine, RolloutStats
from simplevla.rollout.states import StateSampler
from simplevla.types import Episode, EpisodeRequest, EpisodeStatus, Task

Show = Callable[[int, int], None]


class NoSignal(Exception):
    """No group had both outcomes within the bound, so there is nothing to learn from; says why and what to do."""

    def __init__(self, message: str, collection: "Collection") -> None:
        super().__init__(message)
        self.collection = collection
        """Counts of the groups sampled in vain."""


@dataclass
class Collection:
    """The groups of one update, and counts over all groups that were sampled for it."""

    groups: list[list[Episode]] = field(default_factory=list)
    """Kept groups of N complete siblings, in the order in which they were asked for."""
    sampled: int = 0
    mixed: int = 0
    """Groups with both outcomes, within the filter."""
    all_failed: int = 0
    all_solved: int = 0
    outside: int = 0
    """Groups with both outcomes, but a mean success outside the filter."""
    broken: int = 0
    """Groups dropped because a sibling ended ENV_ERROR."""
    success_by_task: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Task -> (solved, n) over all sampled episodes that have a reward."""
    stats: RolloutStats = field(default_factory=RolloutStats)
    """Counts of the engine over all episodes."""
    seconds: float = 0.0
    """Wall time of the rollouts."""
    staleness: int = 0
    """Number of updates that the policy which sampled is behind the one that is to be updated."""


def rewards(groups: Sequence[Sequence[Episode]]) -> Tensor:
    """Rewards of G groups of N siblings, float32 [G, N]."""
    return torch.tensor([[episode.reward for episode in group] for group in groups])


class Cancelled(Exception):
    """Raised in rollouts that are no longer wanted."""


class _Collector:
    """The source and the sink of one collection.

    A group is started only while kept + in flight < wanted. So exactly the shortest run of groups that holds the wanted
    number of good ones is sampled: nothing is surplus, and no group is preferred for being quick.
    """

    def __init__(
        self,
        sampler: StateSampler,
        config: SamplingConfig,
        seed: int,
        update: int,
        cancelled: threading.Event,
        show: Show,
    ) -> None:
        self.sampler = sampler
        self.config = config
        self.seed = (seed, update)
        self.cancelled = cancelled
        self.show = show
        self.limit = math.floor(config.groups * config.max_oversampling) if config.dynamic else config.groups
        self.result = Collection()
        self.kept: dict[int, list[Episode]] = {}
        self.outcomes: dict[int, tuple[Task, int, list[float]]] = {}
        """(task, initial state, rewards) of complete groups, those without signal too, whose episodes aren't kept."""
        self.open: dict[int, list[Episode]] = {}
        self.queue: list[EpisodeRequest] = []

    def source(self) -> EpisodeRequest | None:
        if self.cancelled.is_set():
            raise Cancelled
        if not self.queue:
            if self.result.sampled == self.limit or len(self.kept) + len(self.open) >= self.config.groups:
                return None
            self._start_group()
        return self.queue.pop()

    def _start_group(self) -> None:
        number = self.result.sampled
        task, initial_state = next(self.sampler)
        self.result.sampled += 1
        self.open[number] = []
        self.queue = [
            EpisodeRequest(task=task, initial_state=initial_state, seed=(*self.seed, number, sibling), group=number)
            for sibling in reversed(range(self.config.group_size))
        ]

    def sink(self, episode: Episode) -> None:
        number = episode.request.group
        siblings = self.open[number]
        siblings.append(episode)
        if episode.status is not EpisodeStatus.ENV_ERROR:
            solved, n = self.result.success_by_task.get(episode.request.task.name, (0, 0))
            self.result.success_by_task[episode.request.task.name] = (solved + int(episode.reward), n + 1)
        if len(siblings) == self.config.group_size:
            del self.open[number]
            self._judge(number, sorted(siblings, key=lambda sibling: sibling.request.seed))

    def _judge(self, number: int, siblings: list[Episode]) -> None:
        if any(sibling.status is EpisodeStatus.ENV_ERROR for sibling in siblings):
            self.result.broken += 1
            return
        rewards = [sibling.reward for sibling in siblings]
        request = siblings[0].request
        self.outcomes[number] = request.task, request.initial_state, rewards
        mixed = is_mixed(rewards, self.config.filter_low, self.config.filter_high)
        self.result.mixed += mixed
        self.result.all_failed += max(rewards) == 0
        self.result.all_solved += min(rewards) == 1
        self.result.outside += not mixed and max(rewards) != min(rewards)
        if mixed or not self.config.dynamic:
            self.kept[number] = siblings
        self.show(len(self.kept), len(self.outcomes))


def collect_groups(
    engine: Engine,
    policy: Policy,
    sampler: StateSampler,
    config: SamplingConfig,
    seed: int,
    update: int,
    cancelled: threading.Event | None = None,
    show: Show = lambda kept, done: None,
) -> Collection:
    """Samples groups until `config.groups` of them carry a signal, or the bound on oversampling is reached.

    An episode's noise follows from (seed, update, group number, sibling). With `config.dynamic` off, exactly
    `config.groups` are sampled and every complete one trains.

    Args:
        cancelled: set by another thread, it ends the rollouts as soon as an episode ends.
        show: called after each group with how many are kept, and how many are complete.

    Raises:
        Cancelled: it was set.
        NoSignal: not a single group can train.
    """
    collector = _Collector(sampler, config, seed, update, cancelled or threading.Event(), show)
    sampler.begin(update, config.group_size)
    engine.run(policy, Sampling.of(config), collector.source, collector.sink)
    result = collector.result
    sampler.observe([collector.outcomes[number] for number in sorted(collector.outcomes)])
    result.groups = [collector.kept[number] for number in sorted(collector.kept)]
    if not result.groups:
        raise NoSignal(_explain(result, config, engine.stats.errors), result)
    return result


def _explain(result: Collection, config: SamplingConfig, errors: Errors) -> str:
    bounds = f"{config.filter_low:g} to {config.filter_high:g}"
    counts = {
        "failed in every episode": result.all_failed,
        "succeeded in every episode": result.all_solved,
        f"had a mean success outside of {bounds}": result.outside,
        "lost an episode to a broken environment": result.broken,
    }
    tried = f"sampling.groups is {config.groups}"
    if config.dynamic:
        tried += f", and at most sampling.max_oversampling = {config.max_oversampling:g} times as many are tried"
    lines = [
        f"No learning signal: RL learns from groups of which some episodes succeed and some fail. Of {result.sampled} "
        f"groups with {config.group_size} episodes each, "
        f"{', '.join(f'{n} {what}' for what, n in counts.items() if n)}. ({tried}.)",
        "Success per task:",
    ]
    rates = {task: (solved, n, 100 * solved / n) for task, (solved, n) in sorted(result.success_by_task.items())}
    lines += [f"  {task}: {solved}/{n} = {rate:.1f} %" for task, (solved, n, rate) in rates.items()]
    if result.all_failed:
        lines.append(
            "Where success is 0 %, RL has nothing to reinforce. If `simplevla eval` (greedy) solves far more, the sampling spoils it: lower "
            f"sampling.temperature (now {config.temperature:g}), sigma_min of a diffusion head (now {config.sigma_min:g}), or alpha of a flow head "
            f"(now {config.alpha:g}). Else give the policy a better SFT (more demonstrations or batches), or take easier tasks."
        )
        if any(solved for solved, _ in result.success_by_task.values()):
            lines.append(
                f"Rare successes are seen by larger groups: raise sampling.group_size (now {config.group_size}) and lower sampling.filter_low "
                f"(now {config.filter_low:g}) below its inverse, so that a group with one success trains."
            )
    if result.all_solved:
        lines.append("Where success is 100 %, training is done: stop here, or add harder tasks.")
    if result.outside:
        lines.append("Some groups had both outcomes: widen sampling.filter_low and sampling.filter_high to use them.")
    if result.broken:
        lines.append(
            f"Some episodes broke in their environment: {errors}. The last error was: {errors.last_error.strip()}"
        )
    return "\n".join(lines)
