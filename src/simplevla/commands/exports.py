"""Policies for elsewhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from simplevla.commands.help import read_arguments
from simplevla.errors import UserError

if TYPE_CHECKING:
    from simplevla.policies.smolvla.policy import SmolVLA

LOOKS = 4
"""Observations on which a folded adapter is compared with what it was."""


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Writes a SmolVLA as a folder that LeRobot loads, and acts from as the policy does here."""

    what: tyro.conf.Positional[Literal["lerobot"]]
    """Whose folder it is to be."""
    policy: tyro.conf.Positional[str]
    """Folder of a saved policy, an imported one or what was trained from it; or hf://OWNER/NAME on the hub."""
    out: tyro.conf.Positional[Path]
    """New folder for it."""
    adapter: str | None = None
    """LoRA that is added to the weights; None: the only one, if there is one. LeRobot's folder has no adapters."""


def export_command(arguments: list[str]) -> int:
    parsed = read_arguments(ExportArguments, "export", arguments)

    from simplevla.adapters.load import load_policy
    from simplevla.policies.smolvla.policy import SmolVLA
    from simplevla.policies.smolvla.published import export_lerobot

    policy = load_policy(parsed.policy)
    folded = _fold(policy, parsed.adapter) if isinstance(policy, SmolVLA) else None
    tensors = export_lerobot(policy, parsed.out)
    added = f"; the adapter {folded} is added to its weights" if folded else ""
    print(f"LeRobot's folder is {parsed.out}, with {tensors} tensors{added}")
    return 0


def _fold(policy: "SmolVLA", adapter: str | None) -> str | None:
    """Adds the adapter to the policy's weights and returns its name; what it does is compared on pictures of noise."""
    import torch

    from simplevla.adapters.bank import bank_of
    from simplevla.adapters.merging import fold
    from simplevla.policies.base import ObservationBatch

    names = policy.adapter_bank.names if policy.adapter_bank else []
    if adapter is not None and adapter not in names:
        raise UserError(f"--adapter is {adapter!r}; the policy has the adapters {', '.join(names) or 'none'}")
    if adapter is None and len(names) > 1:
        raise UserError(f"the policy has the adapters {', '.join(names)}; name the one to export with --adapter")
    if not names:
        return None
    bank, name = bank_of(policy), adapter or names[0]
    for other in names:
        if other != name:
            bank.remove(other)
    random, side = torch.Generator().manual_seed(0), policy.config.image_size
    shape = (LOOKS, side, side, 3)
    pictures = {camera: torch.randint(0, 256, shape, generator=random, dtype=torch.uint8) for camera in policy.cameras}
    instruction = next(iter(bank.entry(name).instructions), "move")
    state = policy.state_mean[: policy.config.state_dim].expand(LOOKS, -1)
    fold(bank, name, ObservationBatch(images=pictures, state=state, instructions=[instruction] * LOOKS))
    return name
