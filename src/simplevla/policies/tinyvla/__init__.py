"""TinyVLA (arXiv 2409.12514): a small vision-language model with a token, diffusion or flow head."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simplevla.policies.tinyvla.policy import TinyVLA


def policy_class() -> "type[TinyVLA]":
    """The policy, whose libraries take seconds to import."""
    from simplevla.policies.tinyvla.policy import TinyVLA

    return TinyVLA
