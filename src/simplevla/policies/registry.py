"""The policies that there are: adding one is its folder and a line here."""

import difflib
from collections.abc import Callable

from simplevla.errors import UserError
from simplevla.policies import openvla_oft, smolvla, tinyvla
from simplevla.policies.base import Policy

ARCHITECTURES: dict[str, Callable[[], type[Policy]]] = {
    "tinyvla": tinyvla.policy_class,
    "openvla_oft": openvla_oft.policy_class,
    "smolvla": smolvla.policy_class,
}
"""The `architecture` in a policy's config.json -> its class, whose modules are imported when it is asked for."""


def with_preset(preset: str) -> type[Policy]:
    """The class that makes new policies of the size `preset`.

    Raises:
        UserError: there is none, with near names.
    """
    known = {name: policy() for policy in ARCHITECTURES.values() for name in policy().presets}
    if preset not in known:
        near = difflib.get_close_matches(preset, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"{preset!r} is neither a folder nor a preset; expected a saved policy's folder or one of {', '.join(known)}.{hint}"
        )
    return known[preset]


def listed() -> list[str]:
    """A line for each architecture and preset; one without presets begins with a published checkpoint."""
    return [
        f"{name} {preset}" for name, policy in ARCHITECTURES.items() for preset in policy().presets or ("(import)",)
    ]
