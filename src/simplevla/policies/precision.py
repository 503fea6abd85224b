"""The precision that a policy multiplies in: its own, or bfloat16 by autocast over parameters that stay float32."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from simplevla.errors import UserError


def in_own_precision(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method of a policy, its products computed in the policy's `precision`.

    Nothing is changed where that is float32, or where the weights themselves are of half precision.
    """

    @wraps(method)
    def computed(policy: Any, *args: Any, **kwargs: Any) -> Any:
        weight = next(policy.parameters(), None)
        if policy.precision == "float32" or weight is None or weight.dtype != torch.float32:
            return method(policy, *args, **kwargs)
        with torch.autocast(weight.device.type, torch.bfloat16, cache_enabled=policy.caches_casts):
            return method(policy, *args, **kwargs)

    return computed


def require_bfloat16(device: torch.device) -> None:
    """Refuses a device that doesn't multiply in bfloat16.

    Raises:
        UserError: it doesn't.
    """
    ones = torch.ones(2, 2, device=device)
    try:
        with torch.autocast(device.type, torch.bfloat16):
            reason = f"products are {(ones @ ones).dtype}"
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
    if reason != f"products are {torch.bfloat16}":
        raise UserError(f"precision is bfloat16, which {device} doesn't compute in ({reason}); leave it at float32")
