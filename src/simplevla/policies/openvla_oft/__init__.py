"""OpenVLA-OFT (arXiv 2502.19645): a Llama with two vision towers that gives all tokens of a chunk at once."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simplevla.policies.openvla_oft.policy import OpenVLAOFT


def policy_class() -> "type[OpenVLAOFT]":
    """The policy, whose libraries take seconds to import."""
    from simplevla.policies.openvla_oft.policy import OpenVLAOFT

    return OpenVLAOFT
