"""What a rollout costs, from its parts measured one by one; docs/performance.md explains the formula.

Seconds of one core. W worker processes, C cores, B rows of a policy batch.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from half_trained import Plan

from simplevla.config import RolloutConfig, SuiteConfig
from simplevla.policies.base import ObservationBatch, Policy, Sampling
from simplevla.suites.base import Suite
from simplevla.suites.registry import make_suite

CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True)
class SimulatorCost:
    """Of one environment."""

    step: float
    """An env step without pictures."""
    observe: float
    """All cameras and the state, once per decision."""
    reset: float
    """Without its observation."""


@dataclass(frozen=True, kw_only=True)
class PolicyCost:
    """Of one batch: `batch + row * B`."""

    batch: float
    row: float


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a rollout consisted of."""

    env_steps: int
    decisions: int
    episodes: int


def rollout_seconds(
    counts: Counts,
    simulator: SimulatorCost,
    policy: PolicyCost,
    handling: float,
    workers: int,
    rows: float,
    cores: int = CORES,
) -> float:
    """Wall time of a rollout; the last two terms of `max` say which side holds the other up where cores are left.

    Args:
        handling: per decision, in the policy's process: copies, messages, bookkeeping.
        rows: of a usual policy batch.
    """
    simulation = (
        counts.env_steps * simulator.step + counts.decisions * simulator.observe + counts.episodes * simulator.reset
    )
    inference = counts.decisions * (policy.row + policy.batch / rows + handling)
    return max((simulation + inference) / cores, simulation / min(workers, cores), inference)


def median_seconds(action: Callable[[], object], repetitions: int) -> float:
    times = []
    for _ in range(repetitions):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def measure_simulator(config: SuiteConfig, plans: Sequence[Plan]) -> SimulatorCost:
    """In this process, alone: what a policy did, each chunk executed in two parts, of one action and of the others, so that
    steps and pictures can be told apart."""
    suite = make_suite(config)
    environment = suite.make_environment()
    times: dict[str, list[float]] = {"one": [], "others": [], "reset": []}

    def timed(name: str, action: Callable[[], object]) -> None:
        started = time.perf_counter()
        action()
        times[name].append(time.perf_counter() - started)

    length = 0
    for task, state, chunks in plans:
        environment.reset(suite.task(task), state)
        timed("reset", lambda task=task, state=state: environment.reset(suite.task(task), state))
        for chunk in chunks[:-1]:
            length = len(chunk)
            timed("one", lambda chunk=chunk: environment.step_chunk(chunk[:1]).observation)
            timed("others", lambda chunk=chunk: environment.step_chunk(chunk[1:]).observation)
    environment.close()
    one, others, reset = (float(np.mean(values)) for values in times.values())
    step = (others - one) / (length - 2)
    return SimulatorCost(step=step, observe=one - step, reset=reset - (one - step))


def observations(policy: Policy, suite: Suite, rows: int) -> ObservationBatch:
    """Noise of the right shapes: the time doesn't depend on what is seen."""
    random = np.random.default_rng(0)
    return ObservationBatch(
        images={
            camera: torch.from_numpy(random.integers(0, 255, (rows, *suite.spec.cameras[camera], 3), dtype=np.uint8))
            for camera in policy.cameras
        },
        state=torch.zeros(rows, policy.state_dim),
        instructions=[suite.tasks[row % len(suite.tasks)].instruction for row in range(rows)],
    )


def measure_policy(policy: Policy, config: SuiteConfig, rows: int) -> PolicyCost:
    """From batches of 1 and of `rows`, on one thread, since the simulators have the other cores."""
    suite = make_suite(config)
    sampling, times = Sampling(), {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for size in (1, rows):
        batch = observations(policy, suite, size)
        generators = [np.random.default_rng(row) for row in range(size)]
        policy.act(batch, sampling, generators)
        times[size] = median_seconds(
            lambda batch=batch, generators=generators: policy.act(batch, sampling, generators), 15
        )
    torch.set_num_threads(threads)
    row = (times[rows] - times[1]) / (rows - 1)
    return PolicyCost(batch=times[1] - row, row=row)


def usual_rows(rollout: RolloutConfig, workers: int, one_per_process: bool) -> float:
    """Half of the slots act at a time."""
    return max(1.0, workers * (1 if one_per_process else rollout.slots_per_worker) / 2)
