"""A client's message as an observation and an instruction, every part of it checked."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from simplevla.errors import UserError, brief
from simplevla.policies.base import Policy
from simplevla.types import Observation

LONGEST_INSTRUCTION = 1000
"""Characters of an instruction."""
LARGEST_SIDE = 8192
"""Pixels of an image's side."""


class Reader:
    """Reads what a policy looks at out of messages, by the keys that clients have for it.

    Args:
        policy: the one that will act.
        keys: client's key of each camera of the policy, of `state` and of `prompt`, where it is another than `usual`.
        usual: the protocol's own key of each.
        ignored: keys without use; None ignores all that aren't known.

    Raises:
        UserError: a key that isn't OURS=THEIRS, that the policy hasn't, or that stands for two.
    """

    def __init__(
        self, policy: Policy, keys: tuple[str, ...], usual: Mapping[str, str], ignored: tuple[str, ...] | None = ()
    ) -> None:
        self.cameras, self.state_dim, self.ignored = policy.cameras, policy.state_dim, ignored
        self.keys = {ours: usual.get(ours, ours) for ours in (*policy.cameras, "state", "prompt")}
        for pair in keys:
            ours, equals, theirs = pair.partition("=")
            if not equals or not theirs or ours not in self.keys:
                raise UserError(f"keys has {pair!r}; expected OURS=THEIRS with OURS one of {', '.join(self.keys)}")
            self.keys[ours] = theirs
        if len(set(self.keys.values())) < len(self.keys):
            raise UserError(f"keys are {self.keys}; expected another one for each")

    def read(self, message: Mapping[str, Any]) -> tuple[Observation, str]:
        """The observation and the instruction of a message; a map inside of it has keys `OUTER/INNER`.

        Raises:
            UserError: a key is missing or unknown, or a value isn't what the policy takes.
        """
        flat: dict[str, Any] = {}
        for key, value in message.items():
            flat |= (
                {f"{key}/{inner}": part for inner, part in value.items()} if isinstance(value, dict) else {key: value}
            )
        expected = f"expected {', '.join(self.keys.values())}"
        missing = [key for key in self.keys.values() if key not in flat]
        if missing:
            raise UserError(f"the observation lacks {', '.join(missing)}; it has {brief(list(flat))}; {expected}")
        if self.ignored is not None:
            unknown = flat.keys() - set(self.keys.values()) - set(self.ignored)
            if unknown:
                raise UserError(
                    f"the observation has the unknown key {brief(min(unknown))}; {expected}. Leave it out, or start the "
                    "server with --ignore-keys and its name"
                )
        images = {camera: _image(self.keys[camera], flat[self.keys[camera]]) for camera in self.cameras}
        state = _state(self.keys["state"], flat[self.keys["state"]], self.state_dim)
        return Observation(images=images, state=state), _instruction(self.keys["prompt"], flat[self.keys["prompt"]])


def _image(key: str, value: Any) -> np.ndarray:
    if not isinstance(value, np.ndarray):
        raise UserError(f"{key} is {brief(value)}; expected an array, uint8 [height, width, 3], RGB")
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
        raise UserError(f"{key} is {value.dtype} {list(value.shape)}; expected uint8 [height, width, 3], RGB")
    if not all(1 <= side <= LARGEST_SIDE for side in value.shape[:2]):
        raise UserError(f"{key} has {value.shape[0]} x {value.shape[1]} pixels; expected sides of 1 to {LARGEST_SIDE}")
    return value


def _state(key: str, value: Any, size: int) -> np.ndarray:
    """The state as float32; a list of numbers will do."""
    if isinstance(value, list) and all(type(number) in (int, float) for number in value):
        value = np.array(value, np.float64)
    if not isinstance(value, np.ndarray):
        raise UserError(f"{key} is {brief(value)}; expected an array of {size} numbers")
    if value.dtype.kind not in "iuf" or value.shape != (size,):
        raise UserError(f"{key} is {value.dtype} {list(value.shape)}; expected {size} numbers, float32 [{size}]")
    with np.errstate(over="ignore"):
        state = value.astype(np.float32)
    if not np.isfinite(state).all():
        raise UserError(
            f"{key} has NaN or infinity at {np.flatnonzero(~np.isfinite(state)).tolist()}; expected numbers"
        )
    return state


def _instruction(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{key} is {brief(value)}; expected text, the instruction")
    if len(value) > LONGEST_INSTRUCTION:
        raise UserError(f"{key} has {len(value)} characters; expected at most {LONGEST_INSTRUCTION}")
    return value
