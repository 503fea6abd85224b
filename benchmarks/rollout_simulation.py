"""A rollout as a discrete-event simulation (SimPy): the schedule of src/simplevla/rollout/scheduler.py, with costs instead of work.

Seconds. Workers serve their slots one after another; slots form two halves, a turn waits for all of its half, then the policy acts for
it; a free slot takes the next episode. Cores are shared out fairly, in slices.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy

from simplevla.planning.cost import Actor, Handling, PolicyCost, SimulatorCost

SLICE_S = 0.003
"""Of a core, before the next process has its turn: Linux's base slice."""

AHEAD = 4
"""As in distributed/engine.py."""

Chunks = list[int]
"""An episode: env steps executed in each decision's chunk."""


def chunks_of(env_steps: int, decisions: int, chunk_length: int) -> Chunks:
    """All whole but the last."""
    return [*[chunk_length] * (decisions - 1), env_steps - chunk_length * (decisions - 1)]


@dataclass(frozen=True, kw_only=True)
class Costs:
    simulator: SimulatorCost
    policy: PolicyCost
    handling: Handling


@dataclass
class Groups:
    """Dynamic sampling as in rollout/collect.py: a group is started only while kept + in flight < wanted."""

    wanted: int
    size: int
    draw: Callable[[], Chunks]
    """The next episode."""
    mixed: Callable[[], bool]
    """Whether a group that has ended trains."""
    kept: int = 0
    sampled: int = 0
    open: dict[int, int] = field(default_factory=dict)
    """Group -> episodes that haven't ended."""
    queue: list[tuple[int, Chunks]] = field(default_factory=list)

    def take(self) -> tuple[int, Chunks] | None:
        if not self.queue:
            if self.kept + len(self.open) >= self.wanted:
                return None
            self.open[self.sampled] = self.size
            self.queue = [(self.sampled, self.draw()) for _ in range(self.size)][::-1]
            self.sampled += 1
        return self.queue.pop()

    def ended(self, group: int) -> None:
        self.open[group] -= 1
        if not self.open[group]:
            del self.open[group]
            self.kept += self.mixed()


@dataclass(eq=False)
class _Slot:
    worker: int
    half: int
    group: int = 0
    left: Chunks | None = None
    """None: free."""
    finishing: bool = False
    answered: Any = None


class _Machine:
    """Cores that processes share."""

    def __init__(self, environment: simpy.Environment, actor: Actor, slice_s: float) -> None:
        self.environment, self.slice_s = environment, slice_s
        self.cores = simpy.Resource(environment, actor.cores)
        self.crowded = actor.workers + 1 > actor.cores

    def work(self, seconds: float) -> Iterator[Any]:
        if not self.crowded:
            yield self.environment.timeout(seconds)
            return
        while seconds > 1e-12:
            with self.cores.request() as core:
                yield core
                turn = min(seconds, self.slice_s)
                yield self.environment.timeout(turn)
                seconds -= turn


class _Dealer:
    """Gives episodes to the emptiest actor, as distributed/engine.py: a few more than it has slots, if there are several."""

    def __init__(self, environment: simpy.Environment, groups: Groups, actors: int, slots: int) -> None:
        self.environment, self.groups = environment, groups
        self.room = slots + (AHEAD if actors > 1 else 0)
        self.inboxes: list[deque[tuple[int, Chunks]]] = [deque() for _ in range(actors)]
        self.outstanding = [0] * actors
        self.changed = environment.event()
        self._deal()

    def _deal(self) -> None:
        while min(self.outstanding) < self.room and (taken := self.groups.take()) is not None:
            emptiest = self.outstanding.index(min(self.outstanding))
            self.outstanding[emptiest] += 1
            self.inboxes[emptiest].append(taken)

    def ended(self, actor: int, group: int) -> None:
        self.outstanding[actor] -= 1
        self.groups.ended(group)
        self._deal()
        self.changed.succeed()
        self.changed = self.environment.event()


def simulate(actor: Actor, costs: Costs, groups: Groups, actors: int = 1, slice_s: float = SLICE_S) -> float:
    """Seconds until all episodes have ended."""
    environment = simpy.Environment()
    dealer = _Dealer(environment, groups, actors, actor.slots)
    done = [environment.process(_run(environment, actor, costs, dealer, number, slice_s)) for number in range(actors)]
    environment.run(until=environment.all_of(done))
    return float(environment.now)


def _run(
    environment: simpy.Environment, actor: Actor, costs: Costs, dealer: _Dealer, number: int, slice_s: float
) -> Iterator[Any]:
    """One rollout actor: its policy process, which also starts the workers."""
    machine = _Machine(environment, actor, slice_s)
    commands = [simpy.Store(environment) for _ in range(actor.workers)]
    for store in commands:
        environment.process(_work(machine, store))
    slots = [
        _Slot(worker=worker, half=(index + worker) % 2)
        for index in range(actor.slots // actor.workers)
        for worker in range(actor.workers)
    ]
    simulator, handling = costs.simulator, costs.handling

    def send(slot: _Slot, seconds: float) -> None:
        slot.answered = environment.event()
        commands[slot.worker].put((seconds, slot.answered))

    def fill() -> None:
        """As the engine: where the fewest others run."""
        free = [slot for slot in slots if slot.left is None]
        load: dict[tuple[str, int], int] = {}
        for slot in slots:
            for place in (("worker", slot.worker), ("half", slot.half)):
                load[place] = load.get(place, 0) + (slot.left is not None)
        while free and dealer.inboxes[number]:
            group, chunks = dealer.inboxes[number].popleft()
            slot = min(free, key=lambda slot: (load["worker", slot.worker], load["half", slot.half]))
            free.remove(slot)
            load["worker", slot.worker] += 1
            load["half", slot.half] += 1
            slot.group, slot.left, slot.finishing = group, list(chunks), False
            send(slot, simulator.reset + simulator.observe)

    fill()
    half = 0
    while any(dealer.outstanding):
        if all(slot.left is None for slot in slots):
            yield dealer.changed
            fill()
            continue
        turn = [slot for slot in slots if slot.half == half and slot.left is not None]
        for slot in turn:
            yield slot.answered
        finished = [slot for slot in turn if slot.finishing]
        for slot in finished:
            slot.left = None
            dealer.ended(number, slot.group)
        if finished:
            fill()
        ready = [slot for slot in turn if slot not in finished]
        if ready:
            acting = costs.policy.batch + costs.policy.row * len(ready)
            handled = handling.policy * len(ready)
            if actor.on_gpu:
                yield environment.timeout(acting)
                yield from machine.work(handled)
            else:
                yield from machine.work(acting + handled)
            for slot in ready:
                assert slot.left
                steps = slot.left.pop(0)
                slot.finishing = not slot.left
                seen = 0.0 if slot.finishing else simulator.observe
                send(slot, steps * simulator.step + seen + handling.worker)
        half = 1 - half


def _work(machine: _Machine, commands: simpy.Store) -> Iterator[Any]:
    """A worker: one command after another."""
    while True:
        seconds, answered = yield commands.get()
        yield from machine.work(seconds)
        answered.succeed()


def listed(episodes: Sequence[Chunks]) -> Groups:
    """Exactly these episodes, all of them wanted from the beginning."""
    queue = list(reversed(episodes))
    groups = Groups(wanted=1, size=len(queue), draw=queue.pop, mixed=lambda: True)
    return groups
