"""A process of a Ray cluster that holds environments and a replica of the policy."""

import threading
from collections import deque
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from simplevla.config import RayConfig, TrainConfig
from simplevla.distributed.files import unpacked
from simplevla.distributed.simulators import remote_simulators
from simplevla.policies.base import Sampling
from simplevla.rollout.scheduler import RolloutEngine, RolloutStats
from simplevla.types import Episode, EpisodeRequest

WAIT_S = 0.5
"""Seconds that `take` waits for an episode."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """Episodes that an actor hands over, and its counters."""

    episodes: list[Episode]
    stats: RolloutStats
    """Counters of this run so far."""


class RolloutActor:
    """Runs one `RolloutEngine`: `run` lasts for a rollout, in which `give` brings requests and `take` fetches episodes.

    Args:
        files: a saved policy, path in its folder -> content.
        device: of the replica.
    """

    def __init__(
        self,
        config: TrainConfig,
        ray: RayConfig,
        files: dict[str, bytes],
        device: str,
    ) -> None:
        self._policy = unpacked(files)
        self._policy.to(torch.device(device))
        self._policy.prepare_for_rl(config)
        if config.rollout.compile:
            self._policy.compile_towers()
        length = self._policy.chunk_length
        if ray.simulators:
            self._engine = remote_simulators(config.suite, config.rollout, ray, length)
        else:
            self._engine = RolloutEngine(config.suite, config.rollout, length)
        self._changed = threading.Condition()
        self._requests: deque[EpisodeRequest] = deque()
        self._episodes: list[Episode] = []
        self._ended = 0
        """Number of the last rollout that was stopped."""

    def slots(self) -> int:
        """Environments; an answer also says that the actor is ready."""
        return self._engine.slots

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Replaces the named parameters."""
        parameters = dict(self._policy.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                parameters[name].copy_(value)

    def run(self, number: int, sampling: Sampling, record: bool) -> None:
        """Rolls out what `give` brings until `stop` of this number, which may come before."""
        self._engine.reset_stats()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._requests or self._ended >= number)
                if self._ended >= number:
                    return
            self._engine.run(self._policy, sampling, self._next, self._finish, record)

    def give(self, requests: list[EpisodeRequest]) -> None:
        """Takes on more requests."""
        with self._changed:
            self._requests.extend(requests)
            self._changed.notify_all()

    def take(self) -> Finished:
        """Returns the episodes that ended since the last call, after a short wait perhaps none."""
        with self._changed:
            self._changed.wait_for(lambda: self._episodes, timeout=WAIT_S)
            episodes, self._episodes = self._episodes, []
        # A copy, since another thread goes on counting while this one is sent.
        stats = replace(self._engine.stats, errors=self._engine.stats.errors.copy())
        return Finished(episodes=episodes, stats=stats)

    def stop(self, number: int) -> None:
        """Lets the `run` of this number return; nothing may be in flight."""
        with self._changed:
            self._ended = number
            self._changed.notify_all()

    def _next(self) -> EpisodeRequest | None:
        with self._changed:
            return self._requests.popleft() if self._requests else None

    def _finish(self, episode: Episode) -> None:
        with self._changed:
            self._episodes.append(episode)
            self._changed.notify_all()
