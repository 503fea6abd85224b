"""SmolVLA (arXiv 2506.01844): a small vision-language model, and an action expert that follows a learned velocity."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simplevla.policies.smolvla.policy import SmolVLA


def policy_class() -> "type[SmolVLA]":
    """The policy, whose libraries take seconds to import."""
    from simplevla.policies.smolvla.policy import SmolVLA

    return SmolVLA
