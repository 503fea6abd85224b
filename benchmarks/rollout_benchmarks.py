"""Rollouts: our engine against the reference's schedule, against TorchRL, and against simulators without any policy."""

import multiprocessing
import multiprocessing.connection
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, count, cycle, pairwise

from half_trained import LIBERO, TABLETOP, Plan, half_trained, recorded_plans, requests
from reference import ReferenceRollout, Wastes
from robosuite_environment import RobosuiteEnvironment

from simplevla.config import RolloutConfig, SuiteConfig
from simplevla.policies.base import Policy, Sampling
from simplevla.recipes import libero, tabletop
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.rollout.workers import WORKER_VARIABLES
from simplevla.suites.registry import make_suite
from simplevla.types import Episode, EpisodeRequest

SAMPLING = Sampling(temperature=1.0)
ALL = Wastes()
TABLETOP_ROLLOUT = tabletop.train().rollout
LIBERO_ROLLOUT = libero.train().rollout
LITE_FAST = replace(libero.SUITE, stepping="fast")
STOCK = SuiteConfig(name=libero.SUITE.name, visuals="stock", image_size=libero.SUITE.image_size)
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
        from torchrl_rollout import TorchRLRollout
    except ImportError as error:
        raise SystemExit(f"error: {error}; install TorchRL: pip install -e '.[bench]'") from error

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
def utilisation(
    recipe: str, suite: SuiteConfig, rollout: RolloutConfig, groups: int, seconds: float, share_first: bool = False
) -> Sides:
    """Env steps per second of the engine, until it has no new episode for a slot, and of as many processes that only replay what
    the policy did.

    Args:
        share_first: the processes too render what siblings begin with only once.
    """
    policy = half_trained(recipe)
    plans = recorded_plans(policy, suite, rollout, groups)
    workers = rollout.workers or len(os.sched_getaffinity(0))
    bounds = [len(plans) * number // workers for number in range(workers + 1)]
    with (
        RolloutEngine(suite, rollout, policy.chunk_length) as engine,
        # Whole blocks, so that a process changes its task as rarely as in the engine.
        replaying([plans[a:b] for a, b in pairwise(bounds)], suite, seconds, share_first) as replay_all,
    ):

        def ours() -> float:
            queue = list(chain.from_iterable(requests(suite, groups, seed=2)))
            left, rates = len(queue), []
            engine.reset_stats()
            started = time.perf_counter()

            def sink(_: Episode) -> None:
                nonlocal left
                left -= 1
                if left >= engine.slots:
                    rates.append(engine.stats.env_steps / (time.perf_counter() - started))

            engine.run(policy, SAMPLING, lambda: queue.pop(0) if queue else None, sink)
            return rates[-1]

        yield ours, replay_all


def tabletop_utilisation() -> Sides:
    return utilisation(TABLETOP, tabletop.SUITE, TABLETOP_ROLLOUT, groups=256, seconds=8)


def tabletop_utilisation_sharing() -> Sides:
    return utilisation(TABLETOP, tabletop.SUITE, TABLETOP_ROLLOUT, groups=256, seconds=8, share_first=True)


def tabletop_utilisation_bfloat16() -> Sides:
    """With the policy in bfloat16, which this kind of CPU multiplies in hardware, and batches of 128."""
    rollout = replace(TABLETOP_ROLLOUT, slots_per_worker=128, bfloat16=True)
    return utilisation(TABLETOP, tabletop.SUITE, rollout, groups=256, seconds=8)


def libero_utilisation() -> Sides:
    return utilisation(LIBERO, STOCK, STOCK_ROLLOUT, groups=2, seconds=25)


def libero_lite_fast_utilisation() -> Sides:
    return utilisation(LIBERO, LITE_FAST, LIBERO_ROLLOUT, groups=8, seconds=20)


@contextmanager
def replaying(shares: list[list[Plan]], suite: SuiteConfig, seconds: float, share_first: bool) -> Iterator[Side]:
    """Processes that execute recorded episodes, one share each, over and over; their env steps per second, together."""
    context = multiprocessing.get_context("spawn")
    os.environ.update(WORKER_VARIABLES)
    lines = []
    for share in shares:
        line, theirs = context.Pipe()
        context.Process(target=replay, args=(theirs, suite, share, share_first), daemon=True).start()
        lines.append(line)
    for line in lines:
        assert line.recv() == "ready"

    def replay_all() -> float:
        for line in lines:
            line.send(seconds)
        return sum(line.recv() for line in lines)

    yield replay_all
    for line in lines:
        line.send(None)


def replay(
    line: multiprocessing.connection.Connection, config: SuiteConfig, plans: list[Plan], share_first: bool
) -> None:
    """A worker without a policy: told a number of seconds, it executes recorded episodes for so long, with the pictures that
    a policy would look at, and answers with its env steps per second."""
    suite = make_suite(config)
    environment = suite.make_environment()
    # Its scene is built before the time runs, as ours are in an unmeasured turn.
    environment.reset(suite.task(plans[0][0]), plans[0][1])
    episodes = cycle(plans)
    line.send("ready")
    while (seconds := line.recv()) is not None:
        steps, started, begun = 0, time.perf_counter(), None
        while time.perf_counter() < started + seconds:
            task, state, chunks = next(episodes)
            seen = share_first and begun == (task, state)
            (environment.reset_unseen if seen else environment.reset)(suite.task(task), state)
            begun = task, state
            for number, chunk in enumerate(chunks, start=1):
                result = environment.step_chunk(chunk)
                steps += result.executed
                if number < len(chunks):
                    assert result.observation
        line.send(steps / (time.perf_counter() - started))
