"""Routers, which choose an adapter for a task, and a policy that uses a different adapter in each row."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from simplevla.adapters.bank import AdapterBank, bank_of
from simplevla.adapters.embedding import embed
from simplevla.config import TrainConfig
from simplevla.errors import UserError
from simplevla.policies.base import ActionSample, ObservationBatch, Policy, Sampling

ROUTED = "routed"
"""Value of `--adapter` that lets the nearest one act on each instruction."""


class Router(Protocol):
    """Maps an instruction to an adapter's name; None is the base, chosen on purpose.

    Raises:
        UserError: nothing is known for this instruction.
    """

    def __call__(self, instruction: str) -> str | None: ...


class TaskRouter:
    """Routes by the exact instruction: the task is known.

    Args:
        routes: instruction -> adapter, or None for the base.
    """

    def __init__(self, routes: Mapping[str, str | None]) -> None:
        self.routes = dict(routes)

    @classmethod
    def of(cls, bank: AdapterBank, base_for: Sequence[str] = ()) -> "TaskRouter":
        """Every adapter for the instructions it was added for, the base for those in `base_for`.

        Raises:
            UserError: an instruction belongs to two.
        """
        routes: dict[str, str | None] = dict.fromkeys(base_for)
        for name in bank.names:
            for instruction in bank.entry(name).instructions:
                if instruction in routes:
                    other = routes[instruction] or "the base"
                    raise UserError(
                        f"the task {instruction!r} belongs to adapter {name!r} and to {other}; remove one, or give "
                        "TaskRouter its routes"
                    )
                routes[instruction] = name
        return cls(routes)

    def __call__(self, instruction: str) -> str | None:
        if instruction not in self.routes:
            known = ", ".join(map(repr, list(self.routes)[:5])) or "none"
            raise UserError(
                f"no adapter for the task {instruction!r}; known tasks: {known}"
                f"{' and more' if len(self.routes) > 5 else ''}. Add one, route it to the base, or use NearestRouter"
            )
        return self.routes[instruction]


class NearestRouter:
    """Routes by the nearest prototype: the task may be worded in another way, or be a new one.

    An instruction that is an adapter's own goes to it, and of several to the one that was added last.

    Args:
        names: the adapters to choose from; all that have instructions if None.
        least: cosine that the nearest one must exceed.

    Raises:
        UserError: an adapter has no instructions, or there is none to choose from.
    """

    def __init__(self, bank: AdapterBank, names: Sequence[str] | None = None, least: float = 0.0) -> None:
        if names is None:
            names = [name for name in bank.names if bank.entry(name).prototype is not None]
        vectors = {name: bank.entry(name).prototype for name in names}
        without = [name for name, vector in vectors.items() if vector is None]
        if without or not vectors:
            raise UserError(
                f"adapters without instructions can't be routed to: {', '.join(without) or 'there are no others'}; "
                "give them some with add_instructions"
            )
        self.names = list(vectors)
        self.least = least
        self._prototypes = np.stack([vector for vector in vectors.values() if vector is not None])
        self._own = {text: name for name in names for text in bank.entry(name).instructions}

    def __call__(self, instruction: str) -> str | None:
        if instruction in self._own:
            return self._own[instruction]
        cosines = self._prototypes @ embed(instruction)
        best = int(cosines.argmax())
        if not cosines[best] > self.least:
            raise UserError(
                f"no adapter for the task {instruction!r}: the nearest, {self.names[best]!r}, has cosine "
                f"{cosines[best]:.2f}; expected more than {self.least}"
            )
        return self.names[best]


@dataclass(frozen=True, kw_only=True)
class RoutingAccuracy:
    """A router's accuracy: the number of tasks for which it chose the right adapter."""

    correct: int
    n: int
    mistakes: tuple[tuple[str, str | None, str | None], ...]
    """(instruction, expected, chosen); None where the router refused, or for the base."""


def routing_accuracy(router: Router, pairs: Sequence[tuple[str, str | None]]) -> RoutingAccuracy:
    """Tries `router` on pairs (instruction, right adapter), paraphrases among them; a refusal counts as a mistake."""
    mistakes = []
    for instruction, expected in pairs:
        try:
            chosen, refused = router(instruction), False
        except ValueError:
            chosen, refused = None, True
        if refused or chosen != expected:
            mistakes.append((instruction, expected, chosen))
    return RoutingAccuracy(correct=len(pairs) - len(mistakes), n=len(pairs), mistakes=tuple(mistakes))


class RoutedPolicy(Policy):
    """The bank's policy, each row of a batch with the adapter that `router` chooses for its instruction.

    The rows of one adapter run as one batch. So a mixed batch gives bit for bit what the same rows give adapter by
    adapter, which adding the adapters' contributions inside one large batch doesn't: the last bits of a matrix product
    depend on its size. Which adapter is active otherwise, and what may be trained, stays as it is.
    """

    def __init__(self, bank: AdapterBank, router: Router) -> None:
        super().__init__()
        policy = bank.policy
        self.policy = policy
        self.bank = bank
        self.router = router
        self.cameras, self.state_dim, self.statistics = policy.cameras, policy.state_dim, policy.statistics
        self.chunk_length, self.action_dim = policy.chunk_length, policy.action_dim
        self.trained_on = policy.trained_on

    @property
    def units(self) -> int:  # type: ignore[override]
        return self.policy.units

    @property
    def scores_from_trace(self) -> bool:  # type: ignore[override]
        return self.policy.scores_from_trace

    @property
    def shares_observations(self) -> bool:  # type: ignore[override]
        return self.policy.shares_observations

    @property
    def unit_action_index(self) -> np.ndarray:
        return self.policy.unit_action_index

    @property
    def known_instruction(self) -> str:
        return next(text for name in self.bank.names for text in self.bank.entry(name).instructions)

    @property
    def unused_settings(self) -> Mapping[str, str]:  # type: ignore[override]
        return self.policy.unused_settings

    @property
    def unit_discount(self) -> np.ndarray:
        return self.policy.unit_discount

    @property
    def unit_clip_scale(self) -> np.ndarray:
        return self.policy.unit_clip_scale

    def prepare_for_rl(self, config: TrainConfig) -> None:
        super().prepare_for_rl(config)
        self.policy.prepare_for_rl(config)

    def empty_trace(self, rows: int) -> Tensor:
        return self.policy.empty_trace(rows)

    def act(
        self, batch: ObservationBatch, sampling: Sampling, generators: Sequence[np.random.Generator]
    ) -> ActionSample:
        groups = self._groups(batch)
        samples = []
        for name, rows in groups.items():
            with self.bank.selected(name):
                samples.append(self.policy.act(batch.take(rows), sampling, [generators[row] for row in rows]))
        order = _places(groups)
        return ActionSample(
            actions=np.concatenate([sample.actions for sample in samples])[order.numpy()],
            logprobs=_in_order([sample.logprobs for sample in samples], order),
            trace=_in_order([sample.trace for sample in samples], order),
        )

    def score(self, batch: ObservationBatch, trace: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
        groups = self._groups(batch)
        scores = []
        for name, rows in groups.items():
            with self.bank.selected(name):
                scores.append(self.policy.score(batch.take(rows), trace[rows], sampling))
        order = _places(groups)
        return _in_order([x for x, _ in scores], order), _in_order([x for _, x in scores], order)

    def imitation_loss(self, batch: ObservationBatch, actions: Tensor, mask: Tensor) -> Tensor:
        raise UserError("a routed policy only acts and scores; activate an adapter and train the bank's policy")

    def save_alone(self, folder: Path) -> None:
        self.bank.save(folder)

    def _groups(self, batch: ObservationBatch) -> dict[str | None, list[int]]:
        """Adapter -> its decisions, in the order of its first one."""
        chosen = {instruction: self.router(instruction) for instruction in dict.fromkeys(batch.instructions)}
        groups: dict[str | None, list[int]] = {}
        for decision, row in enumerate(batch.observed()):
            groups.setdefault(chosen[batch.instructions[row]], []).append(decision)
        return groups


def acting_with(policy: Policy, adapter: str) -> Policy:
    """The policy with another one of its adapters, or with each instruction's nearest.

    Args:
        adapter: its name, or `routed`; empty: the one that acts as the policy was saved.

    Raises:
        UserError: there is no such adapter, or none that has instructions.
    """
    if not adapter:
        return policy
    if policy.adapter_bank is None:
        raise UserError(
            f"adapter is {adapter!r}, and the policy has none; leave it out, or give it some: simplevla adapters add"
        )
    bank = bank_of(policy)
    if adapter == ROUTED and ROUTED not in bank.names:
        return RoutedPolicy(bank, NearestRouter(bank))
    bank.activate(adapter, training=False)
    return policy


def warn_of_idle_adapters(policy: Policy, instructions: Sequence[str] | None = None) -> None:
    """Warns where an instruction belongs to an adapter that doesn't act.

    Args:
        instructions: that the policy will get; None: any.
    """
    bank = policy.adapter_bank
    if not isinstance(bank, AdapterBank):
        return
    own = bank.entry(bank.active).instructions if bank.active else ()
    if bank.active and not own:
        # Said to be for no task, it is for any.
        return
    for name in bank.names:
        texts = [text for text in bank.entry(name).instructions if instructions is None or text in instructions]
        idle = [text for text in texts if text not in own]
        if not idle:
            continue
        acts = f"adapter {bank.active!r} acts" if bank.active else "the base acts, without adapters,"
        warnings.warn(
            f"{acts} on {idle[0]!r}, an instruction of adapter {name!r}; --adapter {name} lets that one act, and --adapter {ROUTED} "
            "the nearest for each instruction",
            stacklevel=2,
        )
        return


def _places(groups: Mapping[str | None, list[int]]) -> Tensor:
    """Index of each row of the batch in the concatenation of the groups' rows."""
    return torch.tensor([row for rows in groups.values() for row in rows]).argsort()


def _in_order(parts: list[Tensor], order: Tensor) -> Tensor:
    joined = torch.cat(parts)
    return joined[order.to(joined.device)]
