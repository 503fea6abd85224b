"""Learning rate of a run that names none: one known to train a policy of its size, or an error that suggests one."""

from dataclasses import replace
from typing import Literal

from simplevla.config import OptimizerConfig
from simplevla.errors import UserError
from simplevla.policies.base import Policy

SMALL, LARGE = 10_000_000, 1_000_000_000
"""Parameters: up to the first a policy is like `nano`, from the second on like published ones of 1.3 and 7 billion."""

SFT_SMALL = 1e-3
"""Recipe `tabletop_nano`."""
SFT_WHOLE, SFT_ADAPTER = 2e-5, 2e-4
"""All parameters of a pretrained policy (OpenVLA, arXiv 2406.09246), or its LoRA (TinyVLA, arXiv 2409.12514)."""
RL_SMALL_TOKENS, RL_SMALL_DENOISING, RL_SMALL_ADAPTER = 1.5e-4, 5e-5, 1e-3
"""Recipes `tabletop_nano`, `tabletop_nano_diffusion` and `tabletop_continual`."""
RL_LARGE_WHOLE, RL_LARGE_ADAPTER = 5e-6, 2e-5
"""SimpleVLA-RL (arXiv 2509.09674), and LoRA under GRPO (arXiv 2603.11653)."""


def with_learning_rate(optimizer: OptimizerConfig, policy: Policy, stage: Literal["sft", "rl"]) -> OptimizerConfig:
    """`optimizer` with a learning rate: its own if it has one, else the one that follows the policy.

    Raises:
        UserError: for RL of a policy of whose size nothing is known, it must be given.
    """
    if optimizer.lr is not None:
        return optimizer
    size = sum(p.numel() for p in policy.parameters())
    # A frozen backbone alone is no adapter, and an adapter that is merged into the base is none either.
    frozen = 2 * sum(p.numel() for p in policy.parameters() if p.requires_grad) < size
    adapter = frozen and policy.adapter_bank is not None and bool(policy.adapter_bank.names)
    return replace(optimizer, lr=_sft(size, adapter) if stage == "sft" else _rl(size, adapter, policy))


def _sft(size: int, adapter: bool) -> float:
    if size <= SMALL:
        return SFT_SMALL
    return SFT_ADAPTER if adapter else SFT_WHOLE


def _rl(size: int, adapter: bool, policy: Policy) -> float:
    if size <= SMALL:
        # Only tokens have a temperature; diffusion and flow heads have noise of their own.
        denoising = "sampling.temperature" in policy.unused_settings
        return RL_SMALL_ADAPTER if adapter else RL_SMALL_DENOISING if denoising else RL_SMALL_TOKENS
    if size >= LARGE and (not policy.trained_on or policy.trained_on[0].stage in ("published", "unknown")):
        return RL_LARGE_ADAPTER if adapter else RL_LARGE_WHOLE
    raise UserError(
        f"no learning rate is given, and for RL of {'an adapter of ' if adapter else ''}a policy of {size / 1e6:.0f} million parameters "
        f"none is known. Give --optimizer.lr; tried are {RL_SMALL_TOKENS:g} (adapters {RL_SMALL_ADAPTER:g}) below {SMALL / 1e6:.0f} million "
        f"parameters, {RL_LARGE_WHOLE:g} (adapters {RL_LARGE_ADAPTER:g}) for pretrained ones of billions. Begin low, and watch approx_kl"
    )
