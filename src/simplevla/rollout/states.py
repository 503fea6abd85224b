"""Choice of the initial states that an update's groups start from."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from simplevla.config import SamplingConfig
from simplevla.errors import UserError
from simplevla.suites.base import Suite
from simplevla.types import Task

DECAY = 0.8
"""Factor of the weight of an outcome per later update: it tells of an older policy."""
TASK_WEIGHT = 4.0
"""Number of episodes that the task's success rate counts as in the estimate for one of its states."""


class StateSampler:
    """Yields (task, initial state) from the train states without end: each pair once per epoch, tasks interleaved.

    An epoch is made of rounds in which each task that has states left comes once. The order of tasks in a round and of
    states in a task are permutations that follow from `seed` and the number of the epoch.
    """

    def __init__(self, suite: Suite, seed: int) -> None:
        self._states = [(task, suite.initial_states(task, "train")) for task in suite.tasks]
        self._size = sum(len(states) for _, states in self._states)
        if self._size == 0:
            raise UserError(f"suite {suite.name!r} has no train initial states; expected at least one for a task")
        self._seed = seed
        self._go_to(epoch=0, position=0)

    def __iter__(self) -> "StateSampler":
        return self

    def __next__(self) -> tuple[Task, int]:
        if self._position == self._size:
            self._go_to(epoch=self._epoch + 1, position=0)
        self._position += 1
        return self._order[self._position - 1]

    def begin(self, update: int, group_size: int) -> None:
        """Called before the rollouts of an update."""

    def observe(self, outcomes: Sequence[tuple[Task, int, Sequence[float]]]) -> None:
        """Receives (task, initial state, rewards) of an update's groups, in the order in which they were asked for."""

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain JSON."""
        return {"epoch": self._epoch, "position": self._position, "size": self._size, "seed": self._seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken.

        Raises:
            UserError: it was taken with another seed or over another number of train states.
        """
        for name, mine in (("size", self._size), ("seed", self._seed)):
            if state[name] != mine:
                raise UserError(
                    f"the saved sampler has {name} {state[name]}, this one {mine}; "
                    "resume with the same suite, tasks and seed"
                )
        if not 0 <= state["position"] <= self._size:
            raise UserError(f"the saved sampler is at position {state['position']}; expected 0 to {self._size}")
        self._go_to(state["epoch"], state["position"])

    def _go_to(self, epoch: int, position: int) -> None:
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence((self._seed, epoch))))
        queues = [(task, random.permutation(states).tolist()) for task, states in self._states]
        self._order: list[tuple[Task, int]] = []
        while any(states for _, states in queues):
            for index in random.permutation(len(queues)):
                task, states = queues[index]
                if states:
                    self._order.append((task, states.pop()))
        self._epoch, self._position = epoch, position


class PosteriorSampler(StateSampler):
    """Prefers states whose group is likely to have both outcomes, so that fewer are sampled in vain.

    A state's chance of success p has the posterior Beta(1 + TASK_WEIGHT * rate + solved, 1 + TASK_WEIGHT * (1 - rate) +
    failed), with the task's success rate and the state's outcomes, both decayed. Before each update one p is drawn per
    state (Thompson sampling, which explores what is uncertain), and states come in the order of 1 - p^N - (1 - p)^N,
    the probability that N siblings have both outcomes.
    """

    def __init__(self, suite: Suite, seed: int) -> None:
        super().__init__(suite, seed)
        self._pairs = sorted(self._order, key=lambda pair: (pair[0].name, pair[1]))
        self._row = {(task.name, state): row for row, (task, state) in enumerate(self._pairs)}
        names = [task.name for task, _ in self._pairs]
        self._task_of = np.unique(names, return_inverse=True)[1]
        self._counts = np.zeros((len(self._pairs), 2))
        """Decayed numbers of solved and of failed episodes per state."""

    def begin(self, update: int, group_size: int) -> None:
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence((self._seed, update))))
        by_task = np.stack([np.bincount(self._task_of, self._counts[:, i]) for i in (0, 1)], axis=1)
        rate = ((1 + by_task) / (2 + by_task.sum(1, keepdims=True)))[self._task_of]
        solved, failed = (1 + TASK_WEIGHT * rate + self._counts).T
        p = random.beta(solved, failed)
        mixed = 1 - p**group_size - (1 - p) ** group_size
        self._order = [self._pairs[row] for row in np.argsort(-mixed)]
        self._position = 0

    def observe(self, outcomes: Sequence[tuple[Task, int, Sequence[float]]]) -> None:
        self._counts *= DECAY
        for task, state, rewards in outcomes:
            solved = sum(rewards)
            self._counts[self._row[task.name, state]] += (solved, len(rewards) - solved)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "counts": self._counts.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._counts = np.array(state["counts"])


def make_sampler(suite: Suite, config: SamplingConfig, seed: int) -> StateSampler:
    """The sampler that `config.state_order` names."""
    return PosteriorSampler(suite, seed) if config.state_order == "posterior" else StateSampler(suite, seed)
