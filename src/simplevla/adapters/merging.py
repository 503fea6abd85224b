"""Several LoRA adapters into one, one into the base, and how much that changes what the policy does."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from simplevla.adapters.bank import AdapterBank
from simplevla.errors import UserError
from simplevla.policies.base import ObservationBatch, Sampling


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference between two ways to compute a policy, on some observations."""

    logprobs: float
    """Nats: largest absolute difference of a unit's log-probability, of what the first one does greedily."""
    actions: float
    """Largest absolute difference of a greedy action, in standard deviations of the action. A token head's jumps by a
    whole bin where two bins are equally likely."""
    observations: int

    @property
    def largest(self) -> float:
        """The larger of both differences; infinite if one isn't finite."""
        both = (self.logprobs, self.actions)
        return max(both) if all(math.isfinite(x) for x in both) else math.inf


def difference(bank: AdapterBank, first: str | None, second: str | None, observations: ObservationBatch) -> Difference:
    """Compares two adapters, or an adapter and the base (None), on `observations`; leaves the policy in eval mode."""
    with bank.selected(first):
        before = _Behaviour.of(bank, observations)
    with bank.selected(second):
        return before.compare(_Behaviour.of(bank, observations, before.trace))


@torch.no_grad()
def merge(
    bank: AdapterBank,
    names: Sequence[str],
    weights: Sequence[float],
    into: str,
    *,
    kind: Literal["linear", "svd"] = "linear",
    rank: int | None = None,
) -> float:
    """Adds the LoRA adapter `into` whose weight change is `sum_i weights[i] * (alpha_i / rank_i) B_i A_i`.

    linear: that sum exactly, by putting the factors side by side; its rank is the sum of the ranks. svd: its best
    approximation of rank `rank` in the Frobenius norm (Eckart and Young). The sum is of the changes B A, not of A and
    B apart, whose product would mix the adapters. The parents stay as they are.

    Returns:
        The largest relative error over the modules: norm of what svd left out by norm of the whole; 0 for linear.

    Raises:
        UserError: unknown adapters, a bottleneck, different modules, weights that don't fit, or a taken name.
    """
    entries = [bank.entry(name) for name in names]
    if not names or len(weights) != len(names) or len(set(names)) != len(names):
        raise UserError(
            f"got {len(names)} adapters and {len(weights)} weights; expected one weight for each, each once"
        )
    if not all(math.isfinite(weight) for weight in weights):
        raise UserError(f"weights are {list(weights)}; expected finite numbers")
    if kind not in ("linear", "svd") or (kind == "svd") != (rank is not None) or (rank is not None and rank < 1):
        raise UserError(f"kind is {kind!r} with rank {rank}; expected 'linear' without a rank, or 'svd' with one")
    for name, entry in zip(names, entries, strict=True):
        _require_lora(name, entry.config.kind, "merged")
        if entry.modules != entries[0].modules:
            differing = sorted(set(entry.modules) ^ set(entries[0].modules))
            raise UserError(f"adapters {names[0]!r} and {name!r} change different modules ({', '.join(differing[:3])})")
    total = rank if rank is not None else sum(entry.config.rank for entry in entries)
    merged: dict[str, Tensor] = {}
    errors = []
    for module in entries[0].modules:
        downs, ups = [], []
        for name, entry, weight in zip(names, entries, weights, strict=True):
            parameters = bank.parameters(name)
            downs.append(parameters[f"{module}.lora_A.weight"].double())
            ups.append(
                parameters[f"{module}.lora_B.weight"].double() * (weight * entry.config.alpha / entry.config.rank)
            )
        down, up = torch.cat(downs, dim=0), torch.cat(ups, dim=1)
        if kind == "svd":
            down, up, error = _truncate(down, up, total)
            errors.append(error)
        merged[f"{module}.lora_A.weight"], merged[f"{module}.lora_B.weight"] = down, up
    config = dataclasses.replace(entries[0].config, rank=total, alpha=float(total), dropout=0.0)
    bank.add(into, config, instructions=[text for entry in entries for text in entry.instructions])
    for key, parameter in bank.parameters(into).items():
        parameter.copy_(merged[key])
    return max(errors, default=0.0)


@torch.no_grad()
def fold(bank: AdapterBank, name: str, observations: ObservationBatch, tolerance: float = 1e-3) -> Difference:
    """Adds the LoRA adapter `name` to the base weights and removes it: the base then does what it did.

    Compares both on `observations` and takes everything back where they differ: merging LoRA into a policy gave two
    users 0 % success (moojink/openvla-oft, issues 137 and 151). Leaves the policy in eval mode, with the base active.

    Args:
        tolerance: for `Difference.largest`. Rounding alone gave about 1e-6 on a nano policy in float32.

    Raises:
        UserError: no such adapter, a bottleneck, other adapters are there, which belong to the base as it was, or the
            difference is too large. Nothing is changed then.
    """
    entry = bank.entry(name)
    _require_lora(name, entry.config.kind, "folded into the base")
    others = [other for other in bank.names if other != name]
    if others:
        raise UserError(
            f"adapters {', '.join(others)} were trained on the base without {name!r} and would not fit it any more; "
            "save the bank, then remove them"
        )
    with bank.selected(name):
        before = _Behaviour.of(bank, observations)
    weights = {module: bank.base_layer(module).get_parameter("weight") for module in entry.modules}
    originals = {module: weight.clone() for module, weight in weights.items()}
    for module, weight in weights.items():
        weight.copy_(weight.double() + bank.carrier(name, module).get_delta_weight(name).double())
    with bank.selected(None):
        found = before.compare(_Behaviour.of(bank, observations, before.trace))
    if not found.largest <= tolerance:
        for module, weight in weights.items():
            weight.copy_(originals[module])
        raise UserError(
            f"folding {name!r} into the base changes log-probabilities by {found.logprobs:.2e} nats and actions by "
            f"{found.actions:.2e} standard deviations on {found.observations} observations; the tolerance is {tolerance:.0e}. The base is "
            "as it was. Keep the adapter unfolded, or fold in float32"
        )
    bank.remove(name)
    return found


@dataclass(frozen=True)
class _Behaviour:
    actions: np.ndarray
    trace: Tensor
    logprobs: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, bank: AdapterBank, observations: ObservationBatch, trace: Tensor | None = None) -> "_Behaviour":
        """Greedy actions, and log-probabilities of `trace` or, without one, of those actions."""
        policy = bank.policy.eval()
        observations = observations.to(next(policy.parameters()).device)
        generators = [np.random.default_rng(row) for row in range(len(observations))]
        sample = policy.act(observations, Sampling(greedy=True), generators)
        trace = sample.trace if trace is None else trace
        std = np.array(policy.statistics.action["std"])
        # A constant dimension has none.
        actions = sample.actions / np.where(std > 0, std, 1.0)
        return cls(actions, trace, policy.score(observations, trace, Sampling())[0])

    def compare(self, other: "_Behaviour") -> Difference:
        assert torch.equal(self.trace, other.trace), "both score what the first one did"
        return Difference(
            logprobs=float((self.logprobs - other.logprobs).abs().max()),
            actions=float(np.abs(self.actions - other.actions).max()),
            observations=len(self.actions),
        )


def _require_lora(name: str, kind: str, done: str) -> None:
    if kind != "lora":
        raise UserError(f"adapter {name!r} is a {kind}, which is nonlinear; only LoRA adapters can be {done}")


def _truncate(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Best approximation B A of rank `rank` for up @ down; returns (A, B, relative error), shapes kept but the rank."""
    shape_down, shape_up = down.shape[1:], up.shape[2:]
    # Of the small matrix between two orthogonal ones, so that no weight-sized product is decomposed.
    left, inner_left = torch.linalg.qr(up.flatten(1))
    right, inner_right = torch.linalg.qr(down.flatten(1).T)
    u, s, vh = torch.linalg.svd(inner_left @ inner_right.T, full_matrices=False)
    whole = float(s.norm())
    error = float(s[rank:].norm()) / whole if whole else 0.0
    root = s[:rank].sqrt()
    a = root[:, None] * (vh[:rank] @ right.T)
    b = (left @ u[:, :rank]) * root
    # A layer smaller than the rank leaves the rest zero.
    a = torch.cat([a, a.new_zeros(rank - len(a), a.shape[1])])
    b = torch.cat([b, b.new_zeros(len(b), rank - b.shape[1])], dim=1)
    return a.reshape(rank, *shape_down), b.reshape(len(b), rank, *shape_up), error
