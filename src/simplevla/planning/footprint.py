"""Footprint of a policy's micro-batch without its numbers: most bytes alive at a time, and floating-point operations.

The policy's own code runs on PyTorch's meta device, where tensors have shapes and no data, so nothing is typed in here.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from simplevla.errors import UserError
from simplevla.policies.base import ObservationBatch, Policy, Sampling
from simplevla.suites.base import SuiteSpec

MOST_PIXELS = 2**29
"""Pixels of a batch, which is really made; as floating-point numbers they take 6 GB."""
CONDITIONS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes and floating-point operations of a batch of B rows."""

    peak_bytes: int
    """Most bytes alive at a time, without parameters and buffers.

    In a backward pass the gradient of each parameter counts until it is complete."""
    flops: int
    """Floating-point operations of matrix products, convolutions and attention; a multiply-add counts as two."""


class Counter(TorchDispatchMode):
    """Counts what is computed and what is alive while it is active.

    What meets a tensor on the meta device goes there too, and a condition on a value that isn't there is taken as true
    (the one in the policies' code asks whether no instruction is padded).
    """

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.alive = self.peak = self.flops = 0
        owned = (*policy.parameters(), *policy.buffers())
        self._known: dict[int, Any] = {tensor.untyped_storage()._cdata: None for tensor in owned}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        on_meta = [x.device.type == "meta" for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(on_meta):
            if func in CONDITIONS:
                return True
            if not all(on_meta):
                args, kwargs = tree_map_only(Tensor, lambda x: x.to("meta"), (args, kwargs))
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._follow(x.untyped_storage())
        return out

    def _follow(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def freed(_: object) -> None:
            self.alive -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, freed)
        self.alive += size
        self.peak = max(self.peak, self.alive)


def update_footprint(policy: Policy, spec: SuiteSpec, instruction: str, rows: int, checkpointing: bool) -> Footprint:
    """Traces forward and backward pass of a micro-batch of `rows` decisions; `policy` is on the meta device."""
    policy.eval()
    if checkpointing:
        policy.checkpoint_activations()
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    # As a learner that adds it to the sum over micro-batches, or sends it to other ranks.
    hooks = [p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None)) for p in trained]
    with _fused_attention(), Counter(policy) as counter:
        logprobs, _ = policy.score(_observations(policy, spec, instruction, rows), policy.empty_trace(rows), Sampling())
        torch.autograd.backward(logprobs.sum())
    for hook in hooks:
        hook.remove()
    policy.eval()
    return Footprint(peak_bytes=counter.peak, flops=counter.flops)


def rollout_footprint(policy: Policy, spec: SuiteSpec, instruction: str, rows: int) -> Footprint:
    """Traces a batch of `rows` decisions as in a rollout."""
    policy.eval()
    batch = _observations(policy, spec, instruction, rows)
    with torch.no_grad(), _fused_attention(), Counter(policy) as counter:
        if policy.scores_from_trace:
            policy(batch)
        # Scoring does what sampling does, with tokens or a chain that are there.
        policy.score(batch, policy.empty_trace(rows), Sampling())
    return Footprint(peak_bytes=counter.peak, flops=counter.flops)


class _Unmoved(ObservationBatch):
    """Stays on the CPU, since pictures are prepared there; what follows goes to the meta device by itself."""

    def to(self, device: torch.device) -> "ObservationBatch":
        return self


def _observations(policy: Policy, spec: SuiteSpec, instruction: str, rows: int) -> ObservationBatch:
    pixels = rows * sum(height * width for height, width in (spec.cameras[name] for name in policy.cameras))
    if pixels > MOST_PIXELS:
        raise UserError(
            f"a batch of {rows} decisions has {pixels} pixels; expected at most {MOST_PIXELS}. Give fewer simulators (slots_per_worker, "
            "workers), smaller microbatch_decisions, or a smaller image_size"
        )
    return _Unmoved(
        images={name: torch.zeros(rows, *spec.cameras[name], 3, dtype=torch.uint8) for name in policy.cameras},
        state=torch.zeros(rows, policy.state_dim),
        instructions=[instruction] * rows,
    )


def trace_bytes(policy: Policy) -> int:
    """Bytes of the sampled trace of one decision."""
    return policy.empty_trace(1).nbytes


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention as GPUs and CPUs compute it, without its weight matrix; the meta device would use the plain formula."""
    plain = torch.nn.functional.scaled_dot_product_attention

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if query.device.type != "meta":
            return plain(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        bias = None if attn_mask is None else attn_mask.expand(*query.shape[:-1], key.shape[-2])
        fused = torch.ops.aten._scaled_dot_product_efficient_attention
        out: Tensor = fused(query, key, value, bias, True, dropout_p, is_causal, scale=scale)[0]
        return out

    torch.nn.functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = plain
