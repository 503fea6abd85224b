"""Loading of a policy with its adapters from a folder."""

from pathlib import Path

from simplevla import hub
from simplevla.adapters.bank import AdapterBank, restore_bank
from simplevla.adapters.files import BANK
from simplevla.errors import UserError
from simplevla.policies.base import Policy
from simplevla.policies.load import architecture, move_to_device


def load_policy(folder: Path | str, device: str = "cpu") -> Policy:
    """The policy saved in `folder`, on `device`, ready to act; with its adapters, if it was saved with any.

    Args:
        folder: on this machine, or `hf://OWNER/NAME[@REVISION][/FOLDER]` on the hub.

    Raises:
        UserError: there is no policy, or one of an unknown architecture, its files don't fit each other, or there is no
            such device here, or no such policy on the hub.
    """
    folder = hub.local_folder(folder, "model")
    policy = architecture(folder).load(folder)
    if (folder / BANK).is_file():
        restore_bank(policy, folder)
    elif (folder / BANK).parent.is_dir():
        raise UserError(
            f"{folder / BANK} is missing, though there are adapters beside it: without it nobody knows which one acts. Copy it too, or "
            "take the adapters' folder away to use the base alone"
        )
    move_to_device(policy, device)
    return policy


def load_bank(folder: Path | str) -> AdapterBank:
    """The policy in `folder` with its adapters; a policy saved without any gets an empty bank.

    Raises:
        UserError: as `load_policy` and `AdapterBank.load`.
    """
    policy = load_policy(folder)
    bank = policy.adapter_bank
    assert bank is None or isinstance(bank, AdapterBank)
    return bank or AdapterBank(policy)
