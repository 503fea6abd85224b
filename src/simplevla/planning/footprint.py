"""Footprint of a policy's batch without its numbers: the most bytes that are alive at a time.

The policy's own code runs on PyTorch's meta device, where tensors have shapes and no data, so nothing is typed in here.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from simplevla.errors import UserError
from simplevla.policies.base import ObservationBatch, Policy, Sampling
from simplevla.suites.base import SuiteSpec

MOST_PIXELS = 2**29
"""Pixels of a batch, which is really made; as floating-point numbers they take 6 GB."""
CONDITIONS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)


class Counter(TorchDispatchMode):
    """Counts the bytes that are alive while it is active, without those of the policy's parameters and buffers.

    What meets a tensor on the meta device goes there too, and a condition on a value that isn't there is taken as true
    (the one in the policies' code asks whether no instruction is padded).
    """

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.alive = self.peak = 0
        owned = (*policy.parameters(), *policy.buffers())
        self._known: dict[int, Any] = {id(tensor.untyped_storage()): None for tensor in owned}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        devices: set[str] = set()
        _each((args, kwargs), lambda x: devices.add(x.device.type))
        if "meta" in devices:
            if func in CONDITIONS:
                return True
            args, kwargs = _each((args, kwargs), lambda x: x.to("meta"))
        out = func(*args, **kwargs)
        _each(out, lambda x: self._follow(x.untyped_storage()))
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        # A storage has one Python object for as long as a tensor uses it.
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return

        def freed(_: object) -> None:
            self.alive -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, freed)
        self.alive += size
        self.peak = max(self.peak, self.alive)


def _each(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Arguments or results of an operator, with `change` made to each tensor in them."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)([_each(x, change) for x in value])
    return {name: _each(x, change) for name, x in value.items()} if isinstance(value, dict) else value


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

    # No TorchFunctionMode: it isn't active while a backward pass computes checkpointed layers again.
    torch.nn.functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = plain


def update_footprint(policy: Policy, spec: SuiteSpec, instruction: str, rows: int, checkpointing: bool) -> int:
    """Most bytes alive in a micro-batch of `rows` decisions, forward and backward, without parameters and buffers.

    The gradient of each parameter counts until it is complete. `policy` is on the meta device.
    """
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
    return counter.peak


def rollout_footprint(policy: Policy, spec: SuiteSpec, instruction: str, rows: int) -> int:
    """Most bytes alive in a batch of `rows` decisions as in a rollout, without parameters and buffers."""
    policy.eval()
    batch = _observations(policy, spec, instruction, rows)
    with torch.no_grad(), _fused_attention(), Counter(policy) as counter:
        if policy.scores_from_trace:
            policy(batch)
        # Scoring does what sampling does, with tokens or a chain that are there.
        policy.score(batch, policy.empty_trace(rows), Sampling())
    return counter.peak


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
