"""Group-relative advantages (GRPO without a critic)."""

from torch import Tensor

from simplevla.errors import UserError


def group_relative_advantages(rewards_GN: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Group-relative advantages of all siblings: `(R - mean) / (std + epsilon)`, float32 [G, N].

    GRPO's advantage (arXiv 2402.03300), with the unbiased std (divides by N - 1) as in SimpleVLA-RL's code. A group of
    equal rewards gets zeros.

    >>> import torch
    >>> group_relative_advantages(torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 0]]))[0, :2].round(decimals=3).tolist()
    [2.4749999046325684, -0.3540000021457672]

    Raises:
        UserError: if a group has fewer than two siblings, since a lone episode has nothing to be compared with.
    """
    if rewards_GN.ndim != 2 or rewards_GN.shape[1] < 2:
        raise UserError(
            f"rewards have shape {tuple(rewards_GN.shape)}; expected [groups, siblings] with at least 2 siblings. "
            "Raise group_size to 2 or more (the paper uses 8)."
        )
    mean = rewards_GN.mean(dim=1, keepdim=True)
    std = rewards_GN.std(dim=1, keepdim=True, unbiased=True)
    return (rewards_GN - mean) / (std + epsilon)
