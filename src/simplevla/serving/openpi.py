"""The protocol of openpi's policy server: metadata first, then an observation in and a chunk of actions out.

Frames are msgpack with arrays; a text frame is an error. Source: `websocket_client_policy` in PyPI's openpi-client
0.1.2.
"""

import time
from typing import Any

from websockets.asyncio.server import ServerConnection

from simplevla import __version__
from simplevla.policies.base import Policy
from simplevla.serving.batching import Batcher
from simplevla.serving.encoding import pack, unpack
from simplevla.serving.faults import complaint
from simplevla.serving.reading import Reader
from simplevla.serving.settings import ServeConfig


def make_reader(policy: Policy, config: ServeConfig) -> Reader:
    """Reads cameras by their names, `state` and `prompt`, or what `config` has for them.

    Raises:
        UserError: keys that don't fit the policy.
    """
    return Reader(policy, config.keys, {}, config.ignore_keys)


def metadata(policy: Policy, reader: Reader) -> dict[str, Any]:
    """The keys that a client must send, the shape of an answer, and what is known of the policy's training."""
    stages = policy.trained_on[::-1]
    sizes = next((stage.cameras for stage in stages if stage.cameras), {})
    return {
        "server": f"simplevla {__version__}",
        "keys": reader.keys,
        "image_sizes": {camera: list(sizes[camera]) for camera in policy.cameras if camera in sizes},
        "state_dim": policy.state_dim,
        "state_names": next((list(stage.state_names) for stage in stages if stage.state_names), []),
        "action_horizon": policy.chunk_length,
        "action_dim": policy.action_dim,
        "action_names": next((list(stage.action_names) for stage in stages if stage.action_names), []),
        "control_hz": next((stage.control_hz for stage in stages if stage.control_hz is not None), None),
        "instructions": sorted({instruction for stage in stages for instruction in stage.instructions}),
    }


async def talk(connection: ServerConnection, policy: Policy, reader: Reader, batcher: Batcher) -> None:
    """Answers one client until it goes: `actions` float32 [H, A], or a text that says what was wrong."""
    await connection.send(pack(metadata(policy, reader)))
    decisions = 0
    async for frame in connection:
        began = time.perf_counter()
        try:
            actions = await batcher.decide(*reader.read(unpack(frame)), decisions)
        except Exception as error:
            await connection.send(complaint(error))
            continue
        decisions += 1
        timing = {"infer_ms": 1000 * (time.perf_counter() - began)}
        await connection.send(pack({"actions": actions, "server_timing": timing}))
