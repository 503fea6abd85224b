"""From a folder to a policy, and the checks that a policy fits what it is to be used with."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

import torch

from simplevla.errors import UserError, brief
from simplevla.policies.base import Policy
from simplevla.storage import read_json

ARCHITECTURES: dict[str, tuple[str, str]] = {
    "tinyvla": ("simplevla.policies.tinyvla.policy", "TinyVLA"),
    "openvla_oft": ("simplevla.policies.openvla_oft.policy", "OpenVLAOFT"),
}
"""The `architecture` in a policy's config.json -> (module, class); the class has `load(folder)`."""

BANK = Path("adapters") / "bank.json"
"""In the folder of a policy that was saved with adapters."""


class Shapes(Protocol):
    """What a policy must know of the observations and actions that it meets; suites' and policies' specs have it."""

    @property
    def cameras(self) -> Mapping[str, tuple[int, int]] | Sequence[str]: ...

    @property
    def state_names(self) -> Sequence[str]: ...

    @property
    def action_names(self) -> Sequence[str]: ...


def load_policy(folder: Path | str) -> Policy:
    """The policy saved in `folder`, on the CPU, ready to act; with its adapters, if it was saved with any.

    Raises:
        UserError: there is no policy, or one of an unknown architecture, or its files don't fit each other.
    """
    folder = Path(folder)
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(
            f"{folder} holds no policy: it has no config.json. Expected a folder that `simplevla sft` or `simplevla "
            "train` wrote, such as runs/NAME/policy"
        )
    architecture = read_json(file).get("architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise UserError(
            f"{file} is of architecture {brief(architecture)}; this version loads {', '.join(map(repr, ARCHITECTURES))}"
        )
    module, name = ARCHITECTURES[architecture]
    policy = cast(Policy, getattr(importlib.import_module(module), name).load(folder))
    if (folder / BANK).is_file():
        importlib.import_module("simplevla.adapters.bank").restore_bank(policy, folder)
    elif (folder / BANK).parent.is_dir():
        raise UserError(
            f"{folder / BANK} is missing, though there are adapters beside it: without it nobody knows which one acts. Copy it too, or "
            "take the adapters' folder away to use the base alone"
        )
    return policy


def check_fits_suite(policy: Policy, spec: Shapes) -> None:
    """Compare the policy's cameras, state and action dimensions with a suite's spec (images may have any size).

    Raises:
        UserError: listing everything that differs.
    """
    check_fits(policy, list(spec.cameras), len(spec.state_names), len(spec.action_names), "the suite")


def check_fits(policy: Policy, cameras: Sequence[str], state_dim: int, action_dim: int, owner: str) -> None:
    """As `check_fits_suite`, for anything that has cameras, states and actions; `owner` names it in the message."""
    problems = []
    missing = [camera for camera in policy.cameras if camera not in cameras]
    if missing:
        problems.append(
            f"the policy looks through {', '.join(missing)}, {owner} has {', '.join(cameras) or 'no camera'}"
        )
    if policy.state_dim != state_dim:
        problems.append(f"the policy takes {policy.state_dim} state dimensions, {owner} has {state_dim}")
    if policy.action_dim != action_dim:
        problems.append(f"the policy gives {policy.action_dim} action dimensions, {owner} has {action_dim}")
    if problems:
        raise UserError(f"this policy doesn't fit {owner}: {'; '.join(problems)}. Train one on its demonstrations.")


def place(policy: Policy, device: str) -> None:
    """Move the policy to `device`, a name such as `cpu`, `cuda` or `cuda:1`.

    Raises:
        UserError: there is no such device here.
    """
    try:
        # A device without numbers, as `meta` is, gives none back.
        torch.zeros(1, device=torch.device(device)).item()
        policy.to(torch.device(device))
    except (AssertionError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"device is {device!r}, which PyTorch {torch.__version__} can't use here ({reason}); give --device cpu, or install "
            "PyTorch for this machine's GPU"
        ) from None
