"""Rollouts: our engine against the reference's schedule, and against simulators without any policy."""

import multiprocessing
import multiprocessing.connection
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain

from half_trained import ROLLOUT, half_trained, recorded_plans, requests
from reference import ReferenceRollout, Wastes

from simplevla.policies.base import Sampling
from simplevla.recipes import tabletop
from simplevla.rollout.scheduler import RolloutEngine
from simplevla.suites.registry import make_suite
from simplevla.types import Episode

SAMPLING = Sampling(temperature=1.0)
ALL = Wastes()
Sides = Iterator[tuple[Callable[[], float], Callable[[], float]]]


@contextmanager
def tabletop_vs_reference(wastes: Wastes = ALL, groups: int = 24, reference_groups: int = 3) -> Sides:
    """Finished episodes per second; the reference runs one group at a time in lock-step."""
    policy = half_trained()
    with (
        RolloutEngine(tabletop.SUITE, ROLLOUT, policy.chunk_length) as engine,
        ReferenceRollout(tabletop.SUITE, policy, wastes) as reference,
    ):

        def ours() -> float:
            queue = iter(list(chain.from_iterable(requests(groups, seed=1))))
            finished: list[Episode] = []
            started = time.perf_counter()
            engine.run(policy, SAMPLING, lambda: next(queue, None), finished.append)
            return len(finished) / (time.perf_counter() - started)

        def theirs() -> float:
            batches = list(requests(reference_groups, seed=1))
            started = time.perf_counter()
            finished = [episode for batch in batches for episode in reference.run(batch, SAMPLING)]
            return len(finished) / (time.perf_counter() - started)

        yield ours, theirs


@contextmanager
def tabletop_utilisation() -> Sides:
    """Env steps per second of the engine, and of as many processes that only replay recorded chunks."""
    policy = half_trained()
    plans = recorded_plans(policy, groups=32)
    with RolloutEngine(tabletop.SUITE, ROLLOUT, policy.chunk_length) as engine:
        workers = len(os.sched_getaffinity(0))

        def ours() -> float:
            queue = iter(list(chain.from_iterable(requests(64, seed=2))))
            engine.reset_stats()
            started = time.perf_counter()
            engine.run(policy, SAMPLING, lambda: next(queue, None), lambda _: None)
            return engine.stats.env_steps / (time.perf_counter() - started)

        context = multiprocessing.get_context("spawn")
        lines = []
        for number in range(workers):
            line, theirs_end = context.Pipe()
            context.Process(target=replay, args=(theirs_end, plans[number::workers]), daemon=True).start()
            assert line.recv() == "ready"
            lines.append(line)

        def theirs() -> float:
            started = time.perf_counter()
            for line in lines:
                line.send("go")
            steps = sum(line.recv() for line in lines)
            return steps / (time.perf_counter() - started)

        yield ours, theirs
        for line in lines:
            line.send(None)


def replay(line: multiprocessing.connection.Connection, plans: list) -> None:
    """A worker without a policy: executes recorded episodes whenever asked, and answers with its env steps."""
    suite = make_suite(tabletop.SUITE)
    environment = suite.make_environment()
    line.send("ready")
    while line.recv() is not None:
        steps = 0
        for task, state, chunks in plans:
            environment.reset(suite.task(task), state)
            steps += sum(environment.step_chunk(chunk).executed for chunk in chunks)
        line.send(steps)
