"""The schedule of the reference system over our environments and policy, for comparison only.

The reference is SimpleVLA-RL's public code, verl/workers/rollout/rob_rollout.py.

A batch of siblings runs in lock-step, one process per episode. Each waste is a switch, so that its price can be measured
alone. D decisions, T decisions per padded episode, U units.
"""

import multiprocessing
import multiprocessing.connection
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simplevla.algorithm.advantage import group_relative_advantages
from simplevla.algorithm.loss import clipped_policy_loss
from simplevla.config import SuiteConfig, TrainConfig
from simplevla.policies.base import ObservationBatch, Policy, Sampling
from simplevla.suites.base import Environment
from simplevla.suites.registry import make_suite
from simplevla.types import Episode, EpisodeRequest, EpisodeStatus, Observation, Task


@dataclass(frozen=True, kw_only=True)
class Wastes:
    """What the reference does that our engine doesn't."""

    new_process: bool = True
    """A process and an environment per episode; off: they are kept and reset."""
    every_image: bool = True
    """Render after every env step; off: once per chunk."""
    feed_finished: bool = True
    """Finished episodes stay in the policy's batch until the horizon; off: the batch shrinks, and ends with the last."""
    float_images: bool = True
    """Observations are kept as normalised float32; off: as uint8."""


def serve(
    connection: multiprocessing.connection.Connection,
    config: SuiteConfig,
    every_image: bool,
    make_environment: Callable[[], Environment] | None,
) -> None:
    """One environment: ("reset", task, state) -> observation; actions -> (observation, executed, success); None ends."""
    suite = make_suite(config)
    environment = (make_environment or suite.make_environment)()
    while (command := connection.recv()) is not None:
        if isinstance(command, tuple):
            _, task, state = command
            connection.send(environment.reset(suite.task(task), state))
            continue
        observation, executed, success = None, 0, False
        for chunk in command[:, None] if every_image else [command]:
            result = environment.step_chunk(chunk)
            observation, executed, success = result.observation, executed + result.executed, result.success
            if success:
                break
        connection.send((observation, executed, success))
    environment.close()


class ReferenceRollout:
    """Lock-step rollouts; a context manager, since processes may be kept.

    Args:
        make_environment: builds the environments in place of the suite.
    """

    def __init__(
        self,
        suite: SuiteConfig,
        policy: Policy,
        wastes: Wastes,
        make_environment: Callable[[], Environment] | None = None,
    ) -> None:
        self.suite, self.policy, self.wastes = suite, policy, wastes
        self.make_environment = make_environment
        # As the reference does; with spawn, every episode would also import torch.
        self.context = multiprocessing.get_context("fork")
        self.kept: list[tuple] = []

    def __enter__(self) -> "ReferenceRollout":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop(self.kept)

    def run(self, requests: Sequence[EpisodeRequest], sampling: Sampling) -> list[Episode]:
        """Roll out one batch of episodes, each of the same horizon; returns them in the order of `requests`."""
        while len(self.kept) < len(requests):
            self.kept.append(self._start())
        lines = [line for _, line in self.kept[: len(requests)]]
        for line, request in zip(lines, requests, strict=True):
            line.send(("reset", request.task.name, request.initial_state))
        seen = [line.recv() for line in lines]
        runs = [_Run(request) for request in requests]
        horizon = requests[0].task.horizon
        step = 0
        while step < horizon:
            active = [i for i, run in enumerate(runs) if not run.success]
            fed = list(range(len(runs))) if self.wastes.feed_finished else active
            if not fed:
                break
            batch = batch_of([seen[i] for i in fed], [requests[i].task for i in fed])
            with torch.inference_mode():
                sample = self.policy.act(batch, sampling, [runs[i].generator for i in fed])
            count = min(self.policy.chunk_length, horizon - step)
            for row, i in enumerate(fed):
                if not runs[i].success:
                    runs[i].record(seen[i], sample, row, self.wastes.float_images)
                    lines[i].send(sample.actions[row, :count])
            for i in active:
                seen[i], executed, runs[i].success = lines[i].recv()
                runs[i].executed.append(executed)
            step += count
        if self.wastes.new_process:
            self._stop(self.kept)
            self.kept = []
        return [run.episode() for run in runs]

    def _start(self) -> tuple:
        ours, theirs = self.context.Pipe()
        arguments = (theirs, self.suite, self.wastes.every_image, self.make_environment)
        process = self.context.Process(target=serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return process, ours

    @staticmethod
    def _stop(kept: list[tuple]) -> None:
        for _, line in kept:
            line.send(None)
        for process, _ in kept:
            process.join()


class _Run:
    """An episode in the making."""

    def __init__(self, request: EpisodeRequest) -> None:
        self.request = request
        self.generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(request.seed)))
        self.success = False
        self.observations: list[Observation] = []
        self.stored: list[dict[str, np.ndarray]] = []
        self.trace: list[np.ndarray] = []
        self.logprobs: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []
        self.executed: list[int] = []

    def record(self, seen: Observation, sample: object, row: int, float_images: bool) -> None:
        self.observations.append(seen)
        if float_images:
            self.stored.append({name: image.astype(np.float32) / 127.5 - 1 for name, image in seen.images.items()})
        self.trace.append(sample.trace[row].numpy())
        self.logprobs.append(sample.logprobs[row].numpy())
        self.actions.append(sample.actions[row])

    def episode(self) -> Episode:
        images = {
            name: np.stack([seen.images[name] for seen in self.observations]) for name in self.observations[0].images
        }
        return Episode(
            request=self.request,
            status=EpisodeStatus.SUCCESS if self.success else EpisodeStatus.TIMEOUT,
            env_steps=sum(self.executed),
            images=images,
            state=np.stack([seen.state for seen in self.observations]),
            trace=np.stack(self.trace),
            logprobs=np.stack(self.logprobs),
            executed=np.array(self.executed),
            actions=np.stack(self.actions),
        )


def batch_of(seen: Sequence[Observation], tasks: Sequence[Task]) -> ObservationBatch:
    """One row per observation."""
    return ObservationBatch.stacked(seen, [task.instruction for task in tasks])


def longest(episodes: Sequence[Episode]) -> int:
    """T: decisions of an episode that uses up the longest horizon."""
    chunk = episodes[0].actions.shape[1]
    return max(-(-episode.request.task.horizon // chunk) for episode in episodes)


NORMALISATIONS = 2
"""Normalisations in which the reference keeps each image (SimpleVLA-RL, verl/workers/rollout/rob_rollout.py)."""


def stored_bytes(episodes: Sequence[Episode]) -> int:
    """What the reference keeps of these episodes: every array padded to T decisions, images of six channels in float32."""
    steps = longest(episodes)
    per_decision = [
        sum(4 * NORMALISATIONS * array[0].size for array in episode.images.values())
        + sum(array[0].nbytes for array in (episode.state, episode.trace, episode.logprobs))
        for episode in episodes
    ]
    return steps * sum(per_decision)


@dataclass(frozen=True, kw_only=True)
class UpdateWastes:
    """What the reference's update does that ours doesn't."""

    padding: bool = True
    """Forward and backward over T decisions per episode; off: over the valid ones."""
    score_again: bool = True
    """Old log-probabilities computed anew; off: the rollout's."""
    score_dropped: bool = True
    """Those of groups without signal too."""


def padded_update(
    policy: Policy,
    groups: Sequence[Sequence[Episode]],
    dropped: Sequence[Sequence[Episode]],
    config: TrainConfig,
    wastes: UpdateWastes | None = None,
) -> None:
    """One update: old log-probabilities of all episodes, then forward and backward over those that train."""
    wastes = wastes or UpdateWastes()
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=config.optimizer.lr, weight_decay=config.optimizer.weight_decay
    )
    steps = longest([episode for group in groups for episode in group])

    def padded(episode: Episode) -> Padded:
        return Padded(episode, steps if wastes.padding else len(episode.executed), policy)

    order = np.random.default_rng((config.seed, 1)).permutation(len(groups))
    parts = [
        [
            (padded(episode), advantage)
            for g in part
            for episode, advantage in zip(groups[g], advantages_of(groups[g]), strict=True)
        ]
        for part in np.array_split(order, config.minibatches)
    ]
    score = old_logprobs if wastes.score_again else stored_logprobs
    old = [score(policy, [one for one, _ in part], config) for part in parts]
    for group in dropped if wastes.score_dropped else []:
        old_logprobs(policy, [padded(episode) for episode in group], config)
    for part, before in zip(parts, old, strict=True):
        padded_gradients(policy, part, before, config)
        torch.nn.utils.clip_grad_norm_(policy.parameters(), config.optimizer.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def old_logprobs(policy: Policy, episodes: "Sequence[Padded]", config: TrainConfig) -> Tensor:
    """[all rows of the episodes, U], computed once more although the rollout has them."""
    sampling = Sampling(temperature=config.sampling.temperature)
    with torch.no_grad():
        return torch.cat([policy.score(*joined(some), sampling)[0] for some in microbatches(episodes, config)])


def stored_logprobs(policy: Policy, episodes: "Sequence[Padded]", config: TrainConfig) -> Tensor:
    """The rollout's own, [all rows of the episodes, U]."""
    return torch.from_numpy(np.concatenate([one.episode.logprobs[one.rows] for one in episodes]))


def padded_gradients(policy: Policy, part: "Sequence[tuple[Padded, float]]", old: Tensor, config: TrainConfig) -> None:
    """Leave the gradient of one mini-batch of (episode, advantage) in the parameters."""
    sampling, clip = Sampling(temperature=config.sampling.temperature), config.loss
    advantage_of = {id(one): advantage for one, advantage in part}
    first = 0
    for some in microbatches([one for one, _ in part], config):
        logprobs = policy.score(*joined(some), sampling)[0]
        weights = torch.cat([one.mask / one.mask.sum() for one in some]) / len(part)
        advantages = torch.cat([torch.full((len(one.rows),), advantage_of[id(one)]) for one in some])
        before = old[first : first + len(logprobs)]
        first += len(logprobs)
        loss = clipped_policy_loss(logprobs, before, advantages, weights, clip.clip_low, clip.clip_high).loss
        torch.autograd.backward(loss)


def microbatches(episodes: "Sequence[Padded]", config: TrainConfig) -> "Iterator[list[Padded]]":
    """Whole episodes, about as many decisions as in one of our micro-batches."""
    some: list[Padded] = []
    for one in episodes:
        if some and sum(len(each.rows) for each in some) + len(one.rows) > config.microbatch_decisions:
            yield some
            some = []
        some.append(one)
    yield some


def advantages_of(group: Sequence[Episode]) -> list[float]:
    """One per sibling."""
    return group_relative_advantages(torch.tensor([[episode.reward for episode in group]]))[0].tolist()


class Padded:
    """An episode's decisions, its last one repeated up to T rows; `mask` float32 [T, U] is 1 where an action was executed."""

    def __init__(self, episode: Episode, steps: int, policy: Policy) -> None:
        self.episode = episode
        self.rows = np.minimum(np.arange(steps), len(episode.executed) - 1)
        executed = np.zeros(steps, np.int64)
        executed[: len(episode.executed)] = episode.executed
        self.mask = torch.from_numpy(policy.unit_action_index[None] < executed[:, None]).float()


def joined(padded: Sequence[Padded]) -> tuple[ObservationBatch, Tensor]:
    """Observations and trace of all rows of some padded episodes; images arrive as uint8, as the policy expects them."""
    episodes = [(one.episode, one.rows) for one in padded]
    cameras = padded[0].episode.images
    batch = ObservationBatch(
        images={
            name: torch.from_numpy(np.concatenate([e.images[name][rows] for e, rows in episodes])) for name in cameras
        },
        state=torch.from_numpy(np.concatenate([e.state[rows] for e, rows in episodes])),
        instructions=[e.request.task.instruction for e, rows in episodes for _ in rows],
    )
    return batch, torch.from_numpy(np.concatenate([e.trace[rows] for e, rows in episodes]))
