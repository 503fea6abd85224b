"""Loading of a policy with its adapters from a folder."""

from pathlib import Path

from simplevla.adapters.bank import AdapterBank, BankState, restore_bank
from simplevla.adapters.config import AdapterConfig
from simplevla.adapters.files import BANK, read_card
from simplevla.errors import UserError
from simplevla.policies.base import Policy
from simplevla.policies.load import architecture
from simplevla.storage import read_as


def load_policy(folder: Path | str) -> Policy:
    """The policy saved in `folder`, on the CPU, ready to act; with its adapters, if it was saved with any.

    Raises:
        UserError: there is no policy, or one of an unknown architecture, or its files don't fit each other.
    """
    folder = Path(folder)
    policy = architecture(folder).load(folder)
    if (folder / BANK).is_file():
        restore_bank(policy, folder)
    elif (folder / BANK).parent.is_dir():
        raise UserError(
            f"{folder / BANK} is missing, though there are adapters beside it: without it nobody knows which one acts. Copy it too, or "
            "take the adapters' folder away to use the base alone"
        )
    return policy


def load_unfilled(folder: Path) -> Policy:
    """A saved policy without its weights, with the adapter that was being trained, if there was one.

    Raises:
        UserError: there is no policy in `folder`, or one of an unknown architecture.
    """
    policy = architecture(folder).load_unfilled(folder)
    if (folder / BANK).is_file() and (active := read_as(folder / BANK, BankState).active) is not None:
        add_trained_adapter(policy, read_card(folder / BANK.parent / active).config)
    return policy


def add_trained_adapter(policy: Policy, config: AdapterConfig) -> None:
    """Gives `policy` one adapter, which alone is trained."""
    bank = AdapterBank(policy)
    bank.add("planned", config)
    bank.activate("planned", training=True)


def load_bank(folder: Path) -> AdapterBank:
    """The policy in `folder` with its adapters; a policy saved without any gets an empty bank.

    Raises:
        UserError: as `load_policy` and `AdapterBank.load`.
    """
    policy = load_policy(folder)
    bank = policy.adapter_bank
    assert bank is None or isinstance(bank, AdapterBank)
    return bank or AdapterBank(policy)
