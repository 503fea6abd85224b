"""Sources of an update's groups: rolled out when they are asked for, or while the update before trains."""

import copy
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from simplevla.config import TrainConfig
from simplevla.policies.base import Policy
from simplevla.rollout.collect import Collection, NoSignal, collect_groups
from simplevla.rollout.scheduler import Engine, policy_threads
from simplevla.rollout.states import StateSampler


class Rollouts:
    """Rolls out for an update when the loop asks for it, with the policy to be updated. Use as a context manager."""

    def __init__(self, engine: Engine, policy: Policy, sampler: StateSampler, config: TrainConfig) -> None:
        self._engine, self._policy, self._sampler, self._config = engine, policy, sampler, config
        self._cancelled = threading.Event()
        self._done = (0, 0)
        if config.rollout.compile:
            policy.compile_towers()

    def __enter__(self) -> "Rollouts":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def collect(self, update: int) -> Collection:
        """The groups of this update: rolled out, rewarded and selected.

        Raises:
            NoSignal: none of them can train.
        """
        return self._collect(update, staleness=0)

    def __str__(self) -> str:
        """The state of the rollouts that are asked for, or run ahead."""
        kept, done = self._done
        return f"{kept} of {self._config.sampling.groups} groups, of {done} rolled out"

    def settle(self) -> None:
        """Returns when the engine is free."""

    def sampler_state(self) -> dict[str, Any]:
        """State of the sampler from which the next update's rollouts are repeated exactly."""
        return self._sampler.state_dict()

    def behaviour(self) -> dict[str, Tensor]:
        """Trained parameters, on the CPU, of the policy of the next rollouts; empty if it is the trained one."""
        return {}

    def _show(self, kept: int, done: int) -> None:
        self._done = kept, done

    def _collect(self, update: int, staleness: int) -> Collection:
        engine, config = self._engine, self._config
        engine.reset_stats()
        self._show(0, 0)
        started = time.monotonic()
        collection = collect_groups(
            engine, self._policy, self._sampler, config.sampling, config.seed, update, self._cancelled, self._show
        )
        collection.seconds, collection.stats, collection.staleness = time.monotonic() - started, engine.stats, staleness
        # What runs next, an evaluation perhaps, counts apart.
        engine.reset_stats()
        return collection


class RolloutsAhead(Rollouts):
    """Rolls out for update k + 1 in a thread while update k trains, with the weights from before update k.

    From the second update on the policy that samples is one update behind, never more, never less: what is sampled
    doesn't depend on timing, and a resumed run is the uninterrupted one. The ratio is to that policy's
    log-probabilities.

    Args:
        update: the first one to be asked for.
        behaviour: what `behaviour()` gave for the checkpoint that the run goes on from; empty at its beginning.
    """

    def __init__(
        self,
        engine: Engine,
        policy: Policy,
        sampler: StateSampler,
        config: TrainConfig,
        update: int,
        behaviour: Mapping[str, Tensor],
    ) -> None:
        policy.caches_casts = False
        super().__init__(engine, copy.deepcopy(policy), sampler, config)
        self._trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        self._threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollouts")
        # The number is the whole process's: as the engine sets it, lest it change in the middle of an update.
        torch.set_num_threads(min(self._threads, policy_threads(config.rollout)))
        self._take(behaviour or self._trained)
        self._submit(update, staleness=1 if behaviour else 0)

    def __exit__(self, *_: object) -> None:
        self._cancelled.set()
        self._pool.shutdown(wait=True)
        torch.set_num_threads(self._threads)

    def collect(self, update: int) -> Collection:
        """Returns the groups of this update, and begins those of the next one with the present policy."""
        collection = self._future.result()
        self._take(self._trained)
        # Weights and state also after the last update: a run that is extended goes on from them.
        if update < self._config.updates:
            self._submit(update + 1, staleness=1)
        return collection

    def settle(self) -> None:
        error = self._future.exception()
        # That no group has signal is for who asks for the groups.
        if error is not None and not isinstance(error, NoSignal):
            raise error

    def sampler_state(self) -> dict[str, Any]:
        return self._state

    def behaviour(self) -> dict[str, Tensor]:
        acting = dict(self._policy.named_parameters())
        return {name: acting[name].detach().cpu().contiguous() for name in self._trained}

    def _take(self, weights: Mapping[str, Tensor]) -> None:
        """Lets the next rollouts have these weights, and what the sampler gives from here."""
        parameters = dict(self._policy.named_parameters())
        with torch.no_grad():
            for name, value in weights.items():
                parameters[name].copy_(value)
        self._state = self._sampler.state_dict()

    def _submit(self, update: int, staleness: int) -> None:
        self._future: Future[Collection] = self._pool.submit(self._collect, update, staleness)
