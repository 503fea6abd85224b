"""A worker that replays recorded episodes and measures its own CPU time. No torch here: as many start at once as there are workers."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from simplevla.config import SuiteConfig
from simplevla.suites.base import Environment, Suite
from simplevla.suites.registry import make_suite

if TYPE_CHECKING:
    from benchmarks.support.half_trained import Plan

Times = dict[str, list[float]]
"""CPU seconds of the first action of a chunk with its picture (`one`), of its other actions with theirs (`others`), `reset`."""


def replay(line: Connection, config: SuiteConfig, plans: "Sequence[Plan]", slots: int) -> None:
    """A worker's body: its environments take turns, a chunk each, until it is told to stop; every one has run an episode then."""
    suite = make_suite(config)
    times: Times = {"one": [], "others": [], "reset": []}
    played = [
        play(suite, suite.make_environment(), islice(cycle(plans), slot % len(plans), None), times)
        for slot in range(slots)
    ]
    for each in played:
        next(each)
    line.send("ready")
    # What was measured before all were there was measured alone.
    for values in times.values():
        values.clear()
    while not (line.poll() and times["reset"]):
        for each in played:
            next(each)
    line.send(times)


def play(suite: Suite, environment: Environment, plans: "Iterator[Plan]", times: Times) -> Iterator[None]:
    """One environment; stops after each chunk, which is executed in two parts, of one action and of the others, so that steps
    and pictures can be told apart."""

    def timed(name: str, action: Callable[[], object]) -> None:
        started = time.process_time()
        action()
        times[name].append(time.process_time() - started)

    for name, state, chunks in plans:
        task = suite.task(name)
        # The first reset may build another scene.
        environment.reset(task, state)
        timed("reset", lambda task=task, state=state: environment.reset(task, state))
        whole = [chunk for chunk in chunks[:-1] if len(chunk) == len(chunks[0])]
        for chunk in whole:
            timed("one", lambda chunk=chunk: environment.step_chunk(chunk[:1]).observation)
            timed("others", lambda chunk=chunk: environment.step_chunk(chunk[1:]).observation)
            yield
        if not whole:
            yield
