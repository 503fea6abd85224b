"""The protocol of the evaluation harness vla-eval: one action for each observation, out of chunks that are kept here.

Frames are msgpack with arrays: a map of type, payload, number and time. Source: `protocol` and `connection` in PyPI's
vla-eval 0.8.0.
"""

import asyncio
import io
import time
from collections import deque
from typing import Any

import numpy as np
from PIL import Image
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from simplevla import __version__
from simplevla.errors import UserError, brief
from simplevla.policies.base import Policy
from simplevla.serving.batching import Batcher
from simplevla.serving.encoding import pack, unpack
from simplevla.serving.faults import complaint
from simplevla.serving.reading import LARGEST_SIDE, Reader
from simplevla.serving.settings import ServeConfig
from simplevla.types import Observation

PROTOCOL_VERSION = 1
KINDS = ("hello", "episode_start", "observation", "episode_end", "error")
IMAGES = "images"
FORMATS = ("PNG", "JPEG")


def make_reader(policy: Policy, config: ServeConfig) -> Reader:
    """Reads what benchmarks of the harness send; what else they send is left alone.

    Raises:
        UserError: keys that don't fit the policy, or `ignore_keys`.
    """
    if config.ignore_keys:
        raise UserError("ignore_keys has no effect with vla-eval, where all unknown keys are left alone; leave it out")
    usual = {camera: f"{IMAGES}/{camera}" for camera in policy.cameras}
    return Reader(policy, config.keys, {**usual, "state": "states", "prompt": "task_description"}, None)


def hello(policy: Policy) -> dict[str, Any]:
    """The answer to a client's `hello`, with what its benchmark should send.

    The last two are LIBERO's: fixtures as the official evaluation places them, and robosuite's own axis angles.
    """
    wanted = {"send_state": True, "send_wrist_image": len(policy.cameras) > 1, "env_seed": 0, "quat_no_antipodal": True}
    return {
        "harness_version": f"simplevla {__version__}",
        "protocol_version": PROTOCOL_VERSION,
        "model_server": "simplevla",
        "capabilities": {},
        "observation_params": wanted,
    }


async def talk(connection: ServerConnection, policy: Policy, reader: Reader, batcher: Batcher) -> None:
    """Answers one client until it goes; the policy looks again when all actions of its last chunk are given away."""
    actions: deque[np.ndarray] = deque()
    decisions = 0

    async def say(kind: str, payload: dict[str, Any], number: int) -> None:
        message = {"type": kind, "payload": payload, "seq": number, "timestamp": time.time()}
        await connection.send(pack(message, text_keys=True))

    async for frame in connection:
        number = 0
        try:
            kind, payload, number = _parts(unpack(frame))
            if kind == "hello":
                await say("hello", hello(policy), number)
            elif kind == "episode_start":
                actions.clear()
                decisions = 0
            elif kind == "observation":
                if not actions:
                    # Pictures are decoded beside the loop that hears the other clients.
                    actions.extend(await batcher.decide(*await asyncio.to_thread(_read, payload, reader), decisions))
                    decisions += 1
                await say("action", {"actions": actions.popleft()}, number)
        except ConnectionClosed:
            return
        except Exception as error:
            await say("error", {"error": complaint(error)}, number)


def _parts(message: dict[str, Any]) -> tuple[str, dict[str, Any], int]:
    """Type, payload and number of a message.

    Raises:
        UserError: one of them is missing, or isn't one.
    """
    kind, payload, number = message.get("type"), message.get("payload"), message.get("seq")
    if kind not in KINDS or not isinstance(payload, dict) or type(number) is not int:
        raise UserError(
            f"got a message of type {brief(kind)} with keys {brief(list(message))}; expected a map of type (one of "
            f"{', '.join(KINDS)}), payload, seq and timestamp"
        )
    return kind, payload, number


def _read(payload: dict[str, Any], reader: Reader) -> tuple[Observation, str]:
    images = payload.get(IMAGES)
    if isinstance(images, dict):
        wanted = {name: value for name, value in images.items() if f"{IMAGES}/{name}" in reader.keys.values()}
        payload = {**payload, IMAGES: {name: _decoded(name, value) for name, value in wanted.items()}}
    return reader.read(payload)


def _decoded(name: str, value: Any) -> Any:
    """The pixels of a PNG or JPEG file; anything else as it is."""
    if not (isinstance(value, dict) and "__image__" in value and isinstance(value.get("data"), bytes)):
        return value
    try:
        with Image.open(io.BytesIO(value["data"]), formats=FORMATS) as picture:
            if max(picture.size) > LARGEST_SIDE:
                raise UserError(f"{IMAGES}/{name} has {picture.width} x {picture.height} pixels; too many")
            return np.asarray(picture)
    except UserError:
        raise
    except Exception as error:  # whatever a broken file brings about
        raise UserError(
            f"{IMAGES}/{name} is no picture in {' or '.join(FORMATS)} ({error}); send one, or an array"
        ) from None
