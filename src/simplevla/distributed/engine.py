"""Rollouts on a Ray cluster, with the interface of the local `RolloutEngine`.

Actors hold environments and a replica of the policy; requests go out to them, finished episodes come back through Ray's
object store, and what is trained travels once per update. An actor that is lost or doesn't answer is replaced, and its
episodes are run again; which groups an update is made of doesn't depend on any of that.
"""

import contextlib
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from simplevla.config import TrainConfig
from simplevla.distributed.actor import Finished, RolloutActor
from simplevla.distributed.cluster import cause_of, check_resources, connect, listed, surroundings
from simplevla.distributed.files import packed
from simplevla.errors import UserError
from simplevla.policies.base import Policy, Sampling
from simplevla.rollout.scheduler import RolloutStats, Sink, Source
from simplevla.rollout.workers import STARTUP_TIMEOUT_S
from simplevla.types import Episode, EpisodeRequest, EpisodeStatus

AHEAD = 4
"""Requests that an actor holds beyond its slots, so that a free slot needn't wait for the driver."""
MAX_DEATHS = 10
"""Actors lost in one rollout, or before the first, after which something is wrong with more than one machine."""

Key = tuple[int, ...]
"""An episode's seed, which no other episode has."""


@dataclass(eq=False)
class _Replica:
    """One actor, as the driver sees it."""

    handle: Any
    starting: Any
    """The future of its number of slots, until it is ready."""
    slots: int = 1
    running: Any = None
    """The future of its `run`."""
    answer: Any = None
    """The future of its `take`, if one is out, and when it was asked for."""
    asked: float = 0.0
    outstanding: dict[Key, EpisodeRequest] = field(default_factory=dict)
    """Requests given to the actor whose episodes are not yet back."""
    stats: RolloutStats = field(default_factory=RolloutStats)
    version: tuple[int, ...] | None = None
    """Version of the actor's weights; None: those that it was made with."""


class RayEngine:
    """Use it as a context manager, in the place of a `RolloutEngine`.

    Raises:
        UserError: the cluster can't be reached or lacks what `config.ray` asks for.
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
            self._rollouts = self._deaths = 0
            for _ in range(self._settings.actors):
                handle = self._new_actor()
                self._replicas.append(_Replica(handle, handle.slots.remote()))
            for replica in self._replicas:
                while replica.starting is not None:
                    try:
                        self._greet(replica)
                    except RayActorError as error:
                        self._renew(replica, f"lost while starting: {str(error).splitlines()[0]}")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the actors, and the cluster if this engine started it."""
        if ray.is_initialized():
            for replica in self._replicas:
                ray.kill(replica.handle)
            if self._own_cluster:
                ray.shutdown()
        self._replicas = []

    def reset_stats(self) -> None:
        self.stats = RolloutStats()

    def run(self, policy: Policy, sampling: Sampling, source: Source, sink: Sink, record: bool = True) -> None:
        """Rolls out as `RolloutEngine.run`; `sink` gets the episodes in the order in which they come back.

        Raises:
            UserError: actors keep dying, or what the local engine raises.
        """
        started = time.perf_counter()
        self._rollouts += 1
        self._deaths = 0
        rollout = _Rollout(number=self._rollouts, sampling=sampling, source=source, sink=sink, record=record)
        try:
            self._put_weights(policy)
            for replica in self._replicas:
                if replica.starting is None:
                    self._start(replica, rollout)
            self._fill(rollout)
            while not rollout.drained or rollout.waiting or any(replica.outstanding for replica in self._replicas):
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
        """Brings the actor's weights up to date and lets it begin; replaces it if it was lost meanwhile."""
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
        """Lets the actors' `run` return. An actor lost here has delivered everything; the next rollout replaces it."""
        for replica in self._replicas:
            if replica.starting is not None:
                continue
            with contextlib.suppress(RayActorError, GetTimeoutError):
                waiting = [replica.handle.stop.remote(rollout.number), replica.running]
                ray.get(waiting, timeout=self._settings.answer_timeout_s)
            replica.answer = None

    def _fill(self, rollout: "_Rollout") -> None:
        """Gives the actors as many requests as their slots and `AHEAD` hold, the emptiest first."""
        given: dict[_Replica, list[EpisodeRequest]] = {}
        while room := [r for r in self._replicas if r.starting is None and len(r.outstanding) < r.slots + AHEAD]:
            request = rollout.waiting.pop(0) if rollout.waiting else rollout.source()
            rollout.drained = request is None
            if request is None:
                break
            emptiest = min(room, key=lambda replica: len(replica.outstanding) / replica.slots)
            emptiest.outstanding[_key(request)] = request
            given.setdefault(emptiest, []).append(request)
        for replica, requests in given.items():
            replica.handle.give.remote(requests)

    def _turn(self, rollout: "_Rollout") -> None:
        """Waits for an answer, and handles those that are there; replaces actors that died or don't answer."""
        for replica in self._replicas:
            if replica.answer is None and replica.outstanding:
                replica.answer, replica.asked = replica.handle.take.remote(), time.monotonic()
        waited = time.perf_counter()
        futures = [x for r in self._replicas for x in (r.starting, r.answer, r.running) if x is not None]
        done, _ = ray.wait(futures, num_returns=1, timeout=1.0)
        self.stats.wait_s += time.perf_counter() - waited
        for replica in self._replicas:
            try:
                if replica.starting in done:
                    self._greet(replica)
                    self._start(replica, rollout)
                elif replica.answer in done:
                    finished: Finished = ray.get(replica.answer)
                    replica.answer, replica.stats = None, finished.stats
                    self._deliver(replica, finished.episodes, rollout)
                elif replica.running in done:
                    # It doesn't return before `stop`: this raises what went wrong.
                    ray.get(replica.running)
                elif replica.answer is not None and time.monotonic() - replica.asked > self._settings.answer_timeout_s:
                    self._replace(replica, f"no answer for {self._settings.answer_timeout_s:g} s", rollout)
            except RayActorError as error:
                lost = "lost while starting: " if replica.starting is not None else ""
                self._replace(replica, lost + str(error).splitlines()[0], rollout)
        self._require_one(rollout)

    def _require_one(self, rollout: "_Rollout") -> None:
        """Waits for lost actors to be placed again, but not for ever if all of them are lost."""
        if any(replica.starting is None for replica in self._replicas):
            rollout.alone_since = time.monotonic()
        elif time.monotonic() - rollout.alone_since > STARTUP_TIMEOUT_S:
            raise _not_ready()

    def _deliver(self, replica: _Replica, episodes: list[Episode], rollout: "_Rollout") -> None:
        for episode in episodes:
            # One that was given to an actor which was taken for dead may come twice.
            if replica.outstanding.pop(_key(episode.request), None) is not None:
                self.stats.episodes += 1
                rollout.drained = False
                rollout.sink(episode)

    def _replace(self, replica: _Replica, reason: str, rollout: "_Rollout") -> None:
        """Asks for a new actor in the place of a lost one, and lets its episodes be run again by any that is ready."""
        lost, replica.outstanding = list(replica.outstanding.values()), {}
        error = self._renew(replica, reason)
        self.stats.retries += len(lost)
        for request in lost:
            failures = rollout.failures[_key(request)] = rollout.failures.get(_key(request), 0) + 1
            if failures >= self._config.rollout.max_attempts:
                self.stats.episodes += 1
                self.stats.env_errors += 1
                rollout.drained = False
                rollout.sink(Episode(request=request, status=EpisodeStatus.ENV_ERROR, error=error))
            else:
                rollout.waiting.append(request)

    def _renew(self, replica: _Replica, reason: str) -> str:
        """Asks for a new actor in the place of one that is lost; returns a sentence about it."""
        self._deaths += 1
        if self._deaths > MAX_DEATHS:
            raise UserError(
                f"{self._deaths} rollout actors were lost in one rollout, the last one by: {reason}. Look at the nodes' memory "
                "(`ray status`, and Ray's logs), or give each actor fewer environments (rollout.workers, rollout.slots_per_worker)"
            )
        self._add_stats(replica)
        self.stats.worker_restarts += 1
        error = f"a rollout actor was replaced: {reason}"
        self.stats.errors.add("rollout actor lost", error)
        ray.kill(replica.handle)
        replica.handle, replica.answer, replica.running = self._new_actor(), None, None
        replica.starting, replica.version = replica.handle.slots.remote(), None
        return error

    def _new_actor(self) -> Any:
        settings, config = self._settings, self._config
        options = {
            "num_cpus": settings.cpus,
            "num_gpus": settings.gpus,
            # `run` lasts, and `give`, `take` and `stop` come meanwhile.
            "max_concurrency": 4,
            "runtime_env": surroundings(),
        }
        device = "cuda" if settings.gpus else "cpu"
        remote = ray.remote(RolloutActor).options(**options)
        return remote.remote(config, settings, self._files, device)

    def _greet(self, replica: _Replica) -> None:
        """Waits until the actor is ready.

        Raises:
            RayActorError: it is lost.
            UserError: it can't be made.
        """
        try:
            replica.slots = ray.get(replica.starting, timeout=STARTUP_TIMEOUT_S)
            replica.starting = None
        except GetTimeoutError:
            raise _not_ready() from None
        except RayTaskError as error:
            raise cause_of(error) from None
        except RayActorError as error:
            if not error.actor_init_failed:
                raise
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"a rollout actor couldn't be made: {reason}") from None

    def _put_weights(self, policy: Policy) -> None:
        """Puts the trained weights into the object store if they have changed: adapters alone where adapters train."""
        trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        version = (id(policy), *(parameter._version for parameter in trained.values()))
        if version != self._version:
            self._weights = ray.put({name: parameter.detach().cpu() for name, parameter in trained.items()})
            self._version = version

    def _add_stats(self, replica: _Replica) -> None:
        for name in ("env_steps", "decisions", "worker_restarts", "retries", "env_errors", "unlike_starts", "policy_s"):
            setattr(self.stats, name, getattr(self.stats, name) + getattr(replica.stats, name))
        self.stats.errors.merge(replica.stats.errors)
        replica.stats = RolloutStats()


@dataclass
class _Rollout:
    """One call of `run`."""

    number: int
    sampling: Sampling
    source: Source
    sink: Sink
    record: bool
    drained: bool = False
    """The source had nothing to start when it was last asked, and nothing has changed since."""
    alone_since: float = field(default_factory=time.monotonic)
    """Time at which an actor was last ready, seconds of the monotonic clock."""
    waiting: list[EpisodeRequest] = field(default_factory=list)
    """Requests that are to be run again."""
    failures: dict[Key, int] = field(default_factory=dict)


def _key(request: EpisodeRequest) -> Key:
    return (*request.seed, request.group)


def _not_ready() -> UserError:
    return UserError(
        f"no rollout actor was ready after {STARTUP_TIMEOUT_S:g} s; the cluster has {listed(ray.available_resources())} free. Free what "
        "others use, add nodes, or lower ray.actors"
    )
