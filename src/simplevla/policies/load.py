"""The class of a saved policy, and the checks that a policy fits what it is to be used with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from simplevla.errors import UserError, brief
from simplevla.policies.base import Policy
from simplevla.policies.registry import ARCHITECTURES
from simplevla.storage import read_json


class Shapes(Protocol):
    """Shapes of observations and actions, as specs of suites and policies name them."""

    @property
    def cameras(self) -> Mapping[str, tuple[int, int]] | Sequence[str]: ...

    @property
    def state_names(self) -> Sequence[str]: ...

    @property
    def action_names(self) -> Sequence[str]: ...


def architecture(folder: Path) -> type[Policy]:
    """The class of the policy saved in `folder`.

    Raises:
        UserError: there is no policy, or one of an unknown architecture.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(
            f"{folder} holds no policy: it has no config.json. Expected a folder that `simplevla sft` or `simplevla "
            "train` wrote, such as runs/NAME/policy"
        )
    name = read_json(file).get("architecture")
    if name is None and (folder / "policy" / "config.json").is_file():
        raise UserError(f"{folder} is the folder of a run; its policy is {folder / 'policy'}")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise UserError(
            f"{file} is of architecture {brief(name)}; this version loads {', '.join(map(repr, ARCHITECTURES))}"
        )
    return ARCHITECTURES[name]()


def check_fits_suite(policy: Policy, spec: Shapes) -> None:
    """Compares the policy's cameras, state and action dimensions with a suite's spec (images may have any size).

    Raises:
        UserError: listing everything that differs.
    """
    check_fits(policy, list(spec.cameras), len(spec.state_names), len(spec.action_names), "the suite")


def check_fits(
    policy: Policy,
    cameras: Sequence[str],
    state_dim: int,
    action_dim: int,
    owner: str,
    remedy: str = "Train one on its demonstrations.",
) -> None:
    """Checks as `check_fits_suite`, for anything with cameras, states and actions; `owner` names it in the error."""
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
        raise UserError(f"this policy doesn't fit {owner}: {'; '.join(problems)}. {remedy}")


def move_to_device(policy: Policy, device: str) -> None:
    """Moves the policy to `device`, a name such as `cpu`, `cuda` or `cuda:1`.

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
