"""A policy server: openpi's own client, batches, keys, token, health."""

import base64
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

import small_tinyvla
from fake_policy import FakePolicy
from served import asked, client, seen, served
from simplevla.config import Head
from simplevla.policies.base import ActionSample, ObservationBatch, Policy, Sampling
from simplevla.serving.batching import LARGEST, Question, answer_all
from simplevla.serving.encoding import pack, unpack
from simplevla.types import Observation

TOKEN = "a token of more than sixteen letters"


class SlowPolicy(FakePolicy):
    """Waits in every forward pass until it is let go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def act(
        self, batch: ObservationBatch, sampling: Sampling, generators: Sequence[np.random.Generator]
    ) -> ActionSample:
        self.go_on.wait(30)
        return super().act(batch, sampling, generators)


def alone(policy: Policy, message: dict[str, Any], number: int = 0) -> np.ndarray:
    """The policy's answer, asked directly."""
    images = {camera: message[camera] for camera in policy.cameras}
    batch = ObservationBatch.stacked([Observation(images=images, state=message["state"])], [message["prompt"]])
    return policy.act(batch, Sampling(greedy=True), [np.random.default_rng(number)]).actions[0]


@pytest.fixture(scope="module")
def fake() -> Iterator[tuple[FakePolicy, int]]:
    policy = FakePolicy()
    with served(policy) as port:
        yield policy, port


def test_openpis_own_client_gets_metadata_and_the_policys_chunk(fake: tuple[FakePolicy, int]) -> None:
    openpi = pytest.importorskip("openpi_client.websocket_client_policy", reason="openpi-client isn't installed")
    policy, port = fake
    robot = openpi.WebsocketClientPolicy("127.0.0.1", port)
    told = robot.get_server_metadata()
    assert told["keys"] == {"front": "front", "state": "state", "prompt": "prompt"}
    assert (told["state_dim"], told["action_horizon"], told["action_dim"]) == (3, 4, 2)
    for seed in range(3):
        answer = robot.infer(seen(seed))
        assert answer["actions"].dtype == np.float32
        np.testing.assert_array_equal(answer["actions"], alone(policy, seen(seed)))
        assert answer["server_timing"]["infer_ms"] > 0
    with pytest.raises(RuntimeError, match=r"the observation lacks front"):
        robot.infer({"state": np.zeros(3), "prompt": "reach"})
    # Goes on after an error.
    np.testing.assert_array_equal(robot.infer(seen())["actions"], alone(policy, seen()))


def test_arrays_are_encoded_as_openpi_client_does() -> None:
    theirs = pytest.importorskip("openpi_client.msgpack_numpy", reason="openpi-client isn't installed")
    message = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": {"c": np.zeros((0, 3), np.uint8)}, "d": "text"}
    for found in (unpack(theirs.packb(message)), theirs.unpackb(pack(message))):
        np.testing.assert_array_equal(found["a"], message["a"])
        assert found["b"]["c"].shape == (0, 3)
        assert found["d"] == "text"
    assert unpack(theirs.packb({"n": np.float32(1.5)}))["n"] == np.float32(1.5)


@pytest.mark.parametrize("sizes", [(8, 8), (8, 12)])
def test_clients_that_wait_share_the_next_forward_pass_and_get_their_own_answers(sizes: tuple[int, int]) -> None:
    """Those with pictures of one size share it."""
    policy = SlowPolicy()
    policy.go_on.set()
    with served(policy) as port, ThreadPoolExecutor(8) as threads:
        policy.go_on.clear()
        policy.batch_sizes.clear()

        def ask(seed: int) -> np.ndarray:
            with client(port) as connection:
                return asked(connection, seen(seed, size=sizes[seed % 2]))

        answers = [threads.submit(ask, seed) for seed in range(8)]
        time.sleep(0.5)
        policy.go_on.set()
        found = [answer.result(30) for answer in answers]
        assert len(policy.batch_sizes) < 8
        assert sum(policy.batch_sizes) == 8
    for seed, actions in enumerate(found):
        np.testing.assert_array_equal(actions, alone(policy, seen(seed, size=sizes[seed % 2])))
    assert len({actions.tobytes() for actions in found}) > 1


@pytest.mark.parametrize("head", ["tokens", "diffusion", "flow"])
def test_an_answer_depends_on_the_clients_own_questions_alone(head: Head) -> None:
    policy = small_tinyvla.make(head=head).eval()
    messages = [
        seen(number, small_tinyvla.CAMERAS, 32 + 16 * (number % 2), small_tinyvla.INSTRUCTIONS[number % 3])
        for number in range(4)
    ]
    # One of another picture size, and one whose instruction the policy refuses.
    messages[3]["prompt"] = "xyz " * 200
    questions = [
        Question(
            observation=Observation(images={c: m[c] for c in policy.cameras}, state=m["state"]),
            instruction=m["prompt"],
            number=number,
            answer=None,  # type: ignore[arg-type]
        )
        for number, m in enumerate(messages)
    ]
    together = answer_all(policy, [questions[0], questions[2], questions[3]])
    assert "tokens; this policy takes" in str(together[2])
    for number, answer in zip((0, 2), together[:2], strict=True):
        np.testing.assert_allclose(answer, alone(policy, messages[number], number), atol=1e-5)
    with served(policy) as port, client(port) as connection:
        for number in (0, 1):
            np.testing.assert_allclose(
                asked(connection, messages[number]), alone(policy, messages[number], number), atol=1e-5
            )


def test_keys_of_another_client_and_keys_without_use(fake: tuple[FakePolicy, int]) -> None:
    policy, _ = fake
    keys = ("front=observation/image", "state=observation/state")
    message = {
        "observation": {"image": seen()["front"], "state": seen()["state"]},
        "observation/wrist_image": seen()["front"],
        "prompt": "reach",
    }
    with served(policy, keys=keys, ignore_keys=("observation/wrist_image",)) as port, client(port) as connection:
        np.testing.assert_array_equal(asked(connection, message), alone(policy, seen()))


def test_the_policy_is_warm_before_anybody_is_let_in() -> None:
    policy, ports = SlowPolicy(), []

    def run() -> None:
        with served(policy) as port:
            ports.append(port)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.3)
    assert ports == []
    policy.go_on.set()
    thread.join(30)
    assert policy.batch_sizes == [1, LARGEST]
    assert len(ports) == 1


def test_health_needs_no_token_and_everything_else_does() -> None:
    with served(FakePolicy(), token=TOKEN) as port:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
            assert (answer.status, answer.read()) == (200, b"OK\n")
        basic = base64.b64encode(f"any:{TOKEN}".encode()).decode()
        for header in (f"Api-Key {TOKEN}", f"Bearer {TOKEN}", f"Basic {basic}"):
            with client(port, additional_headers={"Authorization": header}) as connection:
                assert asked(connection, seen()).shape == (4, 2)
        for headers in (
            {},
            {"Authorization": f"Api-Key {TOKEN}x"},
            {"Authorization": TOKEN},
            {"Authorization": "Basic !"},
        ):
            with pytest.raises(InvalidStatus) as caught:
                connect(f"ws://127.0.0.1:{port}", additional_headers=headers)
            assert caught.value.response.status_code == 401
            assert b"expected the header Authorization: Api-Key TOKEN" in (caught.value.response.body or b"")


def test_openpis_own_client_brings_its_token() -> None:
    openpi = pytest.importorskip("openpi_client.websocket_client_policy", reason="openpi-client isn't installed")
    with served(FakePolicy(), token=TOKEN) as port:
        robot = openpi.WebsocketClientPolicy("127.0.0.1", port, api_key=TOKEN)
        assert robot.infer(seen())["actions"].shape == (4, 2)


def test_a_page_in_a_browser_is_refused(fake: tuple[FakePolicy, int]) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{fake[1]}", origin="http://example.org")  # type: ignore[arg-type]


def test_acts_greedily(fake: tuple[FakePolicy, int]) -> None:
    with client(fake[1]) as connection:
        answers = {asked(connection, seen()).tobytes() for _ in range(5)}
    assert len(answers) == 1
