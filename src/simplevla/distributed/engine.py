"""Rollouts on a Ray cluster, with the interface of the local `RolloutEngine`.

Actors hold environments and a replica of the policy; requests go out to them, finished episodes come back through Ray's
object store, and what is trained travels once per update. An actor that is lost or doesn't answer is replaced, and its
episodes are run again; which groups an update is made of doesn't depend on any of that.
"""

import contextlib
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from simplevla.config import RayConfig, TrainConfig
from simplevla.distributed.actor import Finished, RolloutActor
from simplevla.distributed.files import packed
from simplevla.policies.base import Policy, Sampling
from simplevla.rollout.scheduler import RolloutStats, Sink, Source
from simplevla.rollout.workers import STARTUP_TIMEOUT_S
from simplevla.types import Episode, EpisodeRequest, EpisodeStatus

AHEAD = 4
"""Requests that an actor holds beyond its slots, so that a free slot needn't wait for the driver."""
MAX_DEATHS = 10
"""Actors lost in one rollout, after which something is wrong with more than one machine."""

Key = tuple[int, ...]
"""An episode's seed, which no other episode has."""


@dataclass(eq=False)
class _Replica:
    """One actor, as the driver sees it."""

    handle: Any
    slots: int = 1
    running: Any = None
    """The future of its `run`."""
    answer: Any = None
    """The future of its `take`, if one is out, and when it was asked for."""
    asked: float = 0.0
    outstanding: dict[Key, EpisodeRequest] = field(default_factory=dict)
    """Given to it and not yet back."""
    stats: RolloutStats = field(default_factory=RolloutStats)
    version: tuple[int, ...] | None = None
    """Of its weights; None: as it was made."""


class RayEngine:
    """Use it as a context manager, in the place of a `RolloutEngine`.

    Raises:
        ValueError: the cluster can't be reached or lacks what `config.ray` asks for.
    """

    def __init__(self, config: TrainConfig, policy: Policy) -> None:
        self._config, self._settings = config, config.ray
        self.stats = RolloutStats()
        self._replicas: list[_Replica] = []
        self._own_cluster = not ray.is_initialized()
        connect(self._settings)
        try:
            check_resources(self._settings, ray.cluster_resources())
            self._files = ray.put(packed(policy))
            self._weights: Any = None
            self._version: tuple[int, ...] = ()
            self._rollouts = 0
            self._replicas = [_Replica(self._new_actor()) for _ in range(self._settings.actors)]
            for replica in self._replicas:
                self._greet(replica)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the actors, and the cluster if this engine started it."""
        if ray.is_initialized():
            for replica in self._replicas:
                ray.kill(replica.handle)
            if self._own_cluster:
                ray.shutdown()
        self._replicas = []

    def reset_stats(self) -> None:
        self.stats = RolloutStats()

    def run(self, policy: Policy, sampling: Sampling, source: Source, sink: Sink, record: bool = True) -> None:
        """See `RolloutEngine.run`; `sink` gets the episodes in the order in which they come back.

        Raises:
            ValueError: actors keep dying, or what the local engine raises.
        """
        started = time.perf_counter()
        self._rollouts += 1
        rollout = _Rollout(number=self._rollouts, sampling=sampling, source=source, sink=sink, record=record)
        try:
            self._put_weights(policy)
            for replica in self._replicas:
                self._start(replica, rollout)
            self._fill(rollout)
            while any(replica.outstanding for replica in self._replicas):
                self._turn(rollout)
                self._fill(rollout)
            self._end(rollout)
        except RayTaskError as error:
            raise cause_of(error) from None
        finally:
            for replica in self._replicas:
                self._add_stats(replica)
            self.stats.wall_s += time.perf_counter() - started

    def _start(self, replica: _Replica, rollout: "_Rollout") -> None:
        """Bring the actor's weights up to date and let it begin; replace it if it was lost meanwhile."""
        try:
            if replica.version != self._version:
                ray.get(replica.handle.load_weights.remote(self._weights), timeout=self._settings.answer_timeout_s)
                replica.version = self._version
            else:
                ray.get(replica.handle.slots.remote(), timeout=self._settings.answer_timeout_s)
            replica.running = replica.handle.run.remote(rollout.number, rollout.sampling, rollout.record)
        except (RayActorError, GetTimeoutError) as error:
            self._replace(replica, f"lost between rollouts: {str(error).splitlines()[0]}", rollout)

    def _end(self, rollout: "_Rollout") -> None:
        """Let the actors' `run` return. One that is lost here has delivered everything; the next rollout replaces it."""
        for replica in self._replicas:
            with contextlib.suppress(RayActorError, GetTimeoutError):
                waiting = [replica.handle.stop.remote(rollout.number), replica.running]
                ray.get(waiting, timeout=self._settings.answer_timeout_s)
            replica.answer = None

    def _fill(self, rollout: "_Rollout") -> None:
        """Give the actors as many requests as their slots and `AHEAD` hold, the emptiest first."""
        given: dict[_Replica, list[EpisodeRequest]] = {}
        while room := [r for r in self._replicas if len(r.outstanding) < r.slots + AHEAD]:
            request = rollout.waiting.pop(0) if rollout.waiting else rollout.source()
            if request is None:
                break
            emptiest = min(room, key=lambda replica: len(replica.outstanding) / replica.slots)
            emptiest.outstanding[_key(request)] = request
            given.setdefault(emptiest, []).append(request)
        for replica, requests in given.items():
            replica.handle.give.remote(requests)

    def _turn(self, rollout: "_Rollout") -> None:
        """Wait for an answer, and handle those that are there; replace actors that died or don't answer."""
        for replica in self._replicas:
            if replica.answer is None and replica.outstanding:
                replica.answer, replica.asked = replica.handle.take.remote(), time.monotonic()
        waited = time.perf_counter()
        futures = [x for r in self._replicas for x in (r.answer, r.running) if x is not None]
        done, _ = ray.wait(futures, num_returns=1, timeout=1.0)
        self.stats.wait_s += time.perf_counter() - waited
        for replica in self._replicas:
            try:
                if replica.answer in done:
                    finished: Finished = ray.get(replica.answer)
                    replica.answer, replica.stats = None, finished.stats
                    self._deliver(replica, finished.episodes, rollout)
                elif replica.running in done:
                    # It doesn't return before `stop`: this raises what went wrong.
                    ray.get(replica.running)
                elif replica.answer is not None and time.monotonic() - replica.asked > self._settings.answer_timeout_s:
                    self._replace(replica, f"no answer for {self._settings.answer_timeout_s:g} s", rollout)
            except RayActorError as error:
                self._replace(replica, str(error).splitlines()[0], rollout)

    def _deliver(self, replica: _Replica, episodes: list[Episode], rollout: "_Rollout") -> None:
        for episode in episodes:
            # One that was given to an actor which was taken for dead may come twice.
            if replica.outstanding.pop(_key(episode.request), None) is not None:
                self.stats.episodes += 1
                rollout.sink(episode)

    def _replace(self, replica: _Replica, reason: str, rollout: "_Rollout") -> None:
        """Put a new actor in the place of one that is lost, and let its episodes be run again."""
        rollout.deaths += 1
        if rollout.deaths > MAX_DEATHS:
            raise ValueError(
                f"{rollout.deaths} rollout actors were lost in one rollout, the last one by: {reason}. Look at the nodes' memory "
                "(`ray status`, and Ray's logs), or give each actor fewer environments (rollout.workers, rollout.slots_per_worker)"
            )
        lost = list(replica.outstanding.values())
        self._add_stats(replica)
        self.stats.worker_restarts += 1
        self.stats.retries += len(lost)
        self.stats.last_error = f"a rollout actor was replaced: {reason}"
        ray.kill(replica.handle)
        replica.handle, replica.answer, replica.outstanding = self._new_actor(), None, {}
        replica.version = None
        self._greet(replica)
        self._start(replica, rollout)
        for request in lost:
            failures = rollout.failures[_key(request)] = rollout.failures.get(_key(request), 0) + 1
            if failures >= self._config.rollout.max_attempts:
                self.stats.episodes += 1
                self.stats.env_errors += 1
                rollout.sink(Episode(request=request, status=EpisodeStatus.ENV_ERROR))
            else:
                rollout.waiting.append(request)

    def _new_actor(self) -> Any:
        settings, config = self._settings, self._config
        options = {
            "num_cpus": settings.cpus,
            "num_gpus": settings.gpus,
            # `run` lasts, and `give`, `take` and `stop` come meanwhile.
            "max_concurrency": 4,
            # A suite of the user's own must be found there as it is here.
            "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
        }
        device = "cuda" if settings.gpus else "cpu"
        remote = ray.remote(RolloutActor).options(**options)
        return remote.remote(config.suite, config.rollout, config.denoising, self._files, device)

    def _greet(self, replica: _Replica) -> None:
        """Wait until the actor is ready."""
        try:
            replica.slots = ray.get(replica.handle.slots.remote(), timeout=STARTUP_TIMEOUT_S)
        except GetTimeoutError:
            raise ValueError(
                f"a rollout actor wasn't ready after {STARTUP_TIMEOUT_S:g} s; the cluster has {_listed(ray.available_resources())} free. Free what "
                "others use, or lower ray.actors"
            ) from None
        except RayTaskError as error:
            raise cause_of(error) from None
        except RayActorError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(f"a rollout actor couldn't be made: {reason}") from None

    def _put_weights(self, policy: Policy) -> None:
        """Into the object store: what is trained, if it has changed since the last time; adapters alone where adapters train."""
        trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        version = (id(policy), *(parameter._version for parameter in trained.values()))
        if version != self._version:
            self._weights = ray.put({name: parameter.detach().cpu() for name, parameter in trained.items()})
            self._version = version

    def _add_stats(self, replica: _Replica) -> None:
        for name in ("env_steps", "decisions", "worker_restarts", "retries", "env_errors", "policy_s"):
            setattr(self.stats, name, getattr(self.stats, name) + getattr(replica.stats, name))
        self.stats.last_error = replica.stats.last_error or self.stats.last_error
        replica.stats = RolloutStats()


@dataclass
class _Rollout:
    """One call of `run`."""

    number: int
    sampling: Sampling
    source: Source
    sink: Sink
    record: bool
    waiting: list[EpisodeRequest] = field(default_factory=list)
    """To be run again."""
    failures: dict[Key, int] = field(default_factory=dict)
    deaths: int = 0


def check_resources(settings: RayConfig, resources: dict[str, float]) -> None:
    """Refuse at once what the cluster could never place.

    Raises:
        ValueError: naming what is missing.
    """
    needed = {
        "CPU": settings.actors * settings.cpus + settings.learners * settings.learner_cpus,
        "GPU": settings.actors * settings.gpus + settings.learners * settings.learner_gpus,
    }
    missing = {
        name: count - resources.get(name, 0.0) for name, count in needed.items() if count > resources.get(name, 0.0)
    }
    if missing:
        raise ValueError(
            f"{settings.actors} rollout actors and {settings.learners} learners need {_listed(needed)}; the cluster has "
            f"{_listed({name: resources.get(name, 0.0) for name in needed})}: {_listed(missing)} are missing. Add nodes, or lower ray.actors, "
            "ray.learners or what each of them reserves"
        )


def _listed(resources: dict[str, float]) -> str:
    return ", ".join(f"{resources[name]:g} {name}s" for name in ("CPU", "GPU") if name in resources)


def connect(settings: RayConfig) -> None:
    """Join the cluster at `settings.address`, or start one, unless this process has one already.

    Raises:
        ValueError: there is none.
    """
    if ray.is_initialized():
        return
    try:
        ray.init(address=settings.address or None, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    except ConnectionError as error:
        raise ValueError(
            f"no Ray cluster at {settings.address!r} ({error}); start one with `ray start --head`, or leave ray.address empty"
        ) from None


def _key(request: EpisodeRequest) -> Key:
    return (*request.seed, request.group)


def cause_of(error: RayTaskError) -> Exception:
    """What was raised inside the actor, as the local engine would raise it."""
    cause = error.cause
    return cause if isinstance(cause, Exception) else error
