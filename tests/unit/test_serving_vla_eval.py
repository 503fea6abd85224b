"""The evaluation harness vla-eval as a client: its own connection, an action per step, pictures as files."""

from typing import Any

import numpy as np
import pytest
from websockets.sync.client import connect

import small_tinyvla
from fake_policy import FakePolicy
from served import seen, served
from simplevla.errors import UserError
from simplevla.serving.encoding import pack, unpack
from simplevla.types import Observation

WIDE = {"cameras": small_tinyvla.CAMERAS, "size": 32, "prompt": "press it"}


def as_benchmark(message: dict[str, Any]) -> dict[str, Any]:
    """An observation as a benchmark of the harness has it, with what nobody asked for."""
    images = {camera: message[camera] for camera in small_tinyvla.CAMERAS}
    return {
        "images": {**images, "third": message["front"]},
        "states": message["state"].astype(np.float64),
        "controller_states": np.zeros(8),
        "task_description": message["prompt"],
    }


def test_the_harness_own_connection_gets_the_chunk_one_action_at_a_time() -> None:
    anyio = pytest.importorskip("anyio")
    connection = pytest.importorskip("vla_eval.connection", reason="vla-eval isn't installed")
    policy = small_tinyvla.make().eval()

    async def play(port: int) -> tuple[dict[str, Any], list[np.ndarray]]:
        async with connection.Connection(f"ws://127.0.0.1:{port}") as harness:
            await harness.start_episode({"task": {"name": "press it"}})
            # Three actions a chunk: observations 0 and 3 are looked at, and after the new episode number 4.
            first = [(await harness.act(as_benchmark(seen(number, **WIDE))))["actions"] for number in range(4)]
            await harness.end_episode({"metrics": {"success": False}})
            await harness.start_episode({"task": {"name": "press it"}})
            return harness.server_info, [*first, (await harness.act(as_benchmark(seen(4, **WIDE))))["actions"]]

    with served(policy, protocol="vla-eval") as port:
        info, actions = anyio.run(play, port)
    assert info["protocol_version"] == 1
    assert info["observation_params"]["send_state"]
    chunks = [policy.act_on(*_directly(seen(number, **WIDE))) for number in (0, 3, 4)]
    np.testing.assert_allclose(np.stack(actions), np.stack([*chunks[0], chunks[1][0], chunks[2][0]]), atol=1e-5)


def _directly(message: dict[str, Any]) -> tuple[Observation, str]:
    images = {camera: message[camera] for camera in small_tinyvla.CAMERAS}
    return Observation(images=images, state=message["state"]), message["prompt"]


def sent(**fields: Any) -> bytes:
    return pack({"type": "observation", "payload": {}, "seq": 7, "timestamp": 0.0, **fields}, text_keys=True)


@pytest.mark.parametrize(
    ("frame", "error", "number"),
    [
        (b"\xc1", "aren't msgpack", 0),
        (
            pack({"front": 1}),
            "got a message of type None with keys ['front']; expected a map of type (one of hello,",
            0,
        ),
        (sent(type="dance"), "got a message of type 'dance'", 0),
        (sent(), "the observation lacks images/front, states, task_description", 7),
        (
            sent(payload={"images": {"front": {"__image__": True, "format": "png", "data": b"x"}}}),
            "images/front is no picture in PNG or JPEG",
            7,
        ),
    ],
)
def test_a_bad_message_is_an_error_with_its_number_and_the_next_is_answered(
    frame: bytes, error: str, number: int
) -> None:
    good = {"images": {"front": seen()["front"]}, "states": seen()["state"], "task_description": "reach"}
    with (
        served(FakePolicy(), protocol="vla-eval") as port,
        connect(f"ws://127.0.0.1:{port}", compression=None) as connection,
    ):
        connection.send(frame)
        answer = unpack(connection.recv(10))
        assert (answer["type"], answer["seq"]) == ("error", number)
        assert error in answer["payload"]["error"]
        connection.send(sent(payload=good))
        answer = unpack(connection.recv(10))
        assert (answer["type"], answer["payload"]["actions"].shape) == ("action", (2,))


def test_keys_without_use_are_never_an_error_so_naming_them_is() -> None:
    with (
        pytest.raises(UserError, match="ignore_keys has no effect with vla-eval"),
        served(FakePolicy(), protocol="vla-eval", ignore_keys=("a",)),
    ):
        pass
