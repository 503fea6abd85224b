"""Rollouts: our engine against the reference's schedule, against TorchRL, and against simulators without any policy."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, count
from typing import Any

from benchmarks.support.half_trained import LIBERO, MANISKILL, TABLETOP, half_trained, requests
from benchmarks.support.reference import ReferenceRollout, Wastes
from benchmarks.support.robosuite_environment import RobosuiteEnvironment
from benchmarks.support.same_work import Log, LoggingWorker, start_replay
from simplevla.config import RolloutConfig, SuiteConfig
from simplevla.policies.base import Policy, Sampling
from simplevla.recipes import libero, maniskill, tabletop
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.types import Episode, EpisodeRequest

SAMPLING = Sampling(temperature=1.0)
ALL = Wastes()
TABLETOP_ROLLOUT = tabletop.train().rollout
LIBERO_ROLLOUT = libero.train().rollout
LITE_FAST = libero.suite(libero.OBJECT)
LITE = replace(LITE_FAST, stepping=None)
STOCK = replace(LITE, visuals="stock")
STOCK_ROLLOUT = RolloutConfig(workers=4, slots_per_worker=1)
"""A stock scene takes 1.7 GB."""
Side = Callable[[], float]
Sides = Iterator[tuple[Side, Side]]


def roll_out(engine: RolloutEngine, policy: Policy, wanted: Iterator[list[EpisodeRequest]]) -> list[Episode]:
    queue = chain.from_iterable(wanted)
    finished: list[Episode] = []
    engine.run(policy, SAMPLING, lambda: next(queue, None), finished.append)
    return finished


@contextmanager
def tabletop_vs_reference(wastes: Wastes = ALL, groups: int = 32, reference_groups: int = 3) -> Sides:
    """Finished episodes per second; the reference runs one group at a time in lock-step."""
    policy = half_trained(TABLETOP)
    with (
        RolloutEngine(tabletop.SUITE, TABLETOP_ROLLOUT, policy.chunk_length) as engine,
        ReferenceRollout(tabletop.SUITE, policy, wastes) as reference,
    ):

        def ours() -> float:
            started = time.perf_counter()
            finished = roll_out(engine, policy, requests(tabletop.SUITE, groups, seed=1))
            return len(finished) / (time.perf_counter() - started)

        def theirs() -> float:
            batches = list(requests(tabletop.SUITE, reference_groups, seed=1))
            started = time.perf_counter()
            finished = [episode for batch in batches for episode in reference.run(batch, SAMPLING)]
            return len(finished) / (time.perf_counter() - started)

        yield ours, theirs


@contextmanager
def libero_vs_reference(suite: SuiteConfig, rollout: RolloutConfig, groups: int) -> Sides:
    """Finished episodes per second; other tasks and states at every turn, so that ours pays for changing scenes.

    The reference drives LIBERO's own `OffScreenRenderEnv` with stock visuals, one group of four at a time, as memory allows.
    """
    policy = half_trained(LIBERO)
    make_environment = partial(RobosuiteEnvironment, STOCK.name, STOCK.image_size)
    with (
        RolloutEngine(suite, rollout, policy.chunk_length) as engine,
        ReferenceRollout(STOCK, policy, ALL, make_environment) as reference,
    ):
        our_seed, their_seed = count(1), count(1)

        def ours() -> float:
            wanted = requests(suite, groups, next(our_seed))
            started = time.perf_counter()
            return len(roll_out(engine, policy, wanted)) / (time.perf_counter() - started)

        def theirs() -> float:
            (batch,) = requests(STOCK, 1, next(their_seed), 4)
            started = time.perf_counter()
            return len(reference.run(batch, SAMPLING)) / (time.perf_counter() - started)

        yield ours, theirs


def libero_stock_vs_reference() -> Sides:
    return libero_vs_reference(STOCK, STOCK_ROLLOUT, groups=4)


def libero_lite_fast_vs_reference() -> Sides:
    return libero_vs_reference(LITE_FAST, LIBERO_ROLLOUT, groups=6)


@contextmanager
def tabletop_vs_torchrl(chunked: bool = False) -> Sides:
    """Env steps of finished episodes per second; TorchRL with 16 environments, more than which gain nothing here."""
    try:
        from benchmarks.support.torchrl_rollout import TorchRLRollout
    except ImportError as error:
        raise SystemExit(f"error: {error}; install what it needs: pip install -e '.[bench,gymnasium]'") from error

    policy = half_trained(TABLETOP)
    with RolloutEngine(tabletop.SUITE, TABLETOP_ROLLOUT, policy.chunk_length) as engine:

        def ours() -> float:
            started = time.perf_counter()
            finished = roll_out(engine, policy, requests(tabletop.SUITE, 32, seed=1))
            return sum(episode.env_steps for episode in finished) / (time.perf_counter() - started)

        with TorchRLRollout(tabletop.SUITE, policy, environments=16, episodes=256, chunked=chunked) as torchrl:
            yield ours, torchrl.env_steps_per_second


def tabletop_vs_torchrl_chunked() -> Sides:
    return tabletop_vs_torchrl(chunked=True)


@contextmanager
def utilisation(recipe: str, suite: SuiteConfig, rollout: RolloutConfig, groups: int) -> Sides:
    """Env steps per second of the engine, and of as many processes that do what its workers have just done, without a policy:
    the same commands in the same order in the same slots, hence the same scenes built and pictures drawn."""
    policy = half_trained(recipe)
    workers: list[LoggingWorker] = []

    def make_worker(*arguments: Any) -> LoggingWorker:
        workers.append(LoggingWorker(*arguments))
        return workers[-1]

    pending: list[list[Log]] = []
    env_steps = 0
    with RolloutEngine(suite, rollout, policy.chunk_length, make_worker) as engine:
        lines = [start_replay(suite, engine.slots // len(workers), policy.chunk_length) for _ in workers]

        def ours() -> float:
            nonlocal env_steps
            started = time.perf_counter()
            finished = roll_out(engine, policy, requests(suite, groups, seed=2))
            seconds = time.perf_counter() - started
            env_steps = sum(episode.env_steps for episode in finished)
            pending.append([worker.log for worker in workers])
            for worker in workers:
                worker.log = []
            return env_steps / seconds

        def theirs() -> float:
            """Of the last turn; the unmeasured one before it too, so that the same scenes stand."""
            for logs in pending:
                for line, log in zip(lines, logs, strict=True):
                    line.send(log)
                for line in lines:
                    assert line.recv() == "loaded"
                started = time.perf_counter()
                for line in lines:
                    line.send("go")
                executed = sum(line.recv() for line in lines)
                seconds = time.perf_counter() - started
            assert executed == env_steps, f"{executed} env steps were replayed; expected the {env_steps} of the rollout"
            pending.clear()
            return env_steps / seconds

        yield ours, theirs
        for line in lines:
            line.send(None)


def tabletop_utilisation() -> Sides:
    return utilisation(TABLETOP, tabletop.SUITE, TABLETOP_ROLLOUT, groups=256)


def tabletop_utilisation_bfloat16() -> Sides:
    """With the policy in bfloat16, which this kind of CPU multiplies in hardware, and batches of 128."""
    rollout = replace(TABLETOP_ROLLOUT, slots_per_worker=128, bfloat16=True)
    return utilisation(TABLETOP, tabletop.SUITE, rollout, groups=256)


def libero_utilisation() -> Sides:
    return utilisation(LIBERO, STOCK, STOCK_ROLLOUT, groups=2)


def libero_lite_fast_utilisation() -> Sides:
    return utilisation(LIBERO, LITE_FAST, LIBERO_ROLLOUT, groups=8)


def maniskill_utilisation() -> Sides:
    stock = replace(maniskill.SUITE, visuals="stock")
    return utilisation(MANISKILL, stock, maniskill.train().rollout, groups=8)


def maniskill_lite_utilisation() -> Sides:
    return utilisation(MANISKILL, maniskill.SUITE, maniskill.train().rollout, groups=32)
