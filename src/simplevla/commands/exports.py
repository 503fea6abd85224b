"""Policies for elsewhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from simplevla.commands.help import read_arguments


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Writes a SmolVLA as a folder that LeRobot loads, and acts from as the policy does here."""

    what: tyro.conf.Positional[Literal["lerobot"]]
    """Whose folder it is to be."""
    policy: tyro.conf.Positional[str]
    """Folder of a saved policy, an imported one or what was trained from it; or hf://OWNER/NAME on the hub."""
    out: tyro.conf.Positional[Path]
    """New folder for it."""


def export_command(arguments: list[str]) -> int:
    parsed = read_arguments(ExportArguments, "export", arguments)

    from simplevla.adapters.load import load_policy
    from simplevla.policies.smolvla.published import export_lerobot

    print(f"LeRobot's folder is {parsed.out}, with {export_lerobot(load_policy(parsed.policy), parsed.out)} tensors")
    return 0
