"""Upload of a policy to the hub."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from simplevla.commands.help import read_arguments


@dataclass(frozen=True, kw_only=True)
class PushArguments:
    """Uploads a policy to the Hugging Face hub.

    The page's text says what the policy is, what trained it, and its success by the evaluations that lie beside it.
    """

    policy: tyro.conf.Positional[Path]
    """Folder of a saved policy."""
    repository: tyro.conf.Positional[str]
    """OWNER/NAME; it is made if there is none."""
    private: bool = False
    """Makes a repository that only its owners see."""
    license: str = "unknown"
    """The weights' licence, by its identifier on the hub, such as apache-2.0."""


def push_command(arguments: list[str]) -> int:
    parsed = read_arguments(PushArguments, "push", arguments)

    from simplevla import hub
    from simplevla.adapters.load import load_policy
    from simplevla.evaluation.card import model_card

    # Loaded whole: a damaged policy isn't shared.
    card = model_card(load_policy(parsed.policy), parsed.policy, parsed.repository, parsed.license)
    print(f"the policy is {hub.upload(parsed.policy, parsed.repository, card, parsed.private)}")
    return 0
