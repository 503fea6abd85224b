"""Bad clients and bad settings of a policy server: one clear error each, and the server lives on."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError

import small_tinyvla
from fake_policy import FakePolicy
from served import asked, client, seen, served
from simplevla import cli
from simplevla.errors import UserError
from simplevla.policies.base import ActionSample, ObservationBatch, Sampling
from simplevla.serving.encoding import pack
from simplevla.serving.reading import Reader


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with served(FakePolicy(), max_message_mb=1) as port:
        yield port


def encoded(**fields: Any) -> bytes:
    return msgpack.packb({"front": {b"__ndarray__": True, **{key.encode(): value for key, value in fields.items()}}})


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        ("hello", "got text, 'hello'; expected a binary message in msgpack"),
        (b"", "got 0 bytes that aren't msgpack"),
        (b"\xc1\xc1\xc1", "got 3 bytes that aren't msgpack"),
        (b"\x91" * 5000 + b"\x01", "that aren't msgpack"),
        (msgpack.packb([1, 2]), "got a message of type list; expected a map"),
        (msgpack.packb({1: 2}), "that aren't msgpack"),
        (msgpack.packb({}), "the observation lacks front, state, prompt"),
        (pack({key: value for key, value in seen().items() if key != "front"}), "the observation lacks front; it has"),
        (pack({**seen(), "frnt": 1}), "unknown key 'frnt'; expected front, state, prompt. Leave it out, or start"),
        (pack({**seen(), "front": np.zeros((8, 8, 3), np.float32)}), "front is float32 [8, 8, 3]; expected uint8"),
        (pack({**seen(), "front": np.zeros((3, 8, 8), np.uint8)}), "front is uint8 [3, 8, 8]; expected uint8"),
        (pack({**seen(), "front": np.zeros((0, 8, 3), np.uint8)}), "front has 0 x 8 pixels; expected sides of 1 to"),
        (pack({**seen(), "front": "picture"}), "front is 'picture'; expected an array"),
        (pack({**seen(), "state": np.zeros(4)}), "state is float64 [4]; expected 3 numbers"),
        (pack({**seen(), "state": np.array([0, np.nan, 0])}), "state has NaN or infinity at [1]; expected numbers"),
        (pack({**seen(), "state": np.array([0, 1e300, 0])}), "state has NaN or infinity at [1]; expected numbers"),
        (pack({**seen(), "state": None}), "state is None; expected an array of 3 numbers"),
        (pack({**seen(), "prompt": 3}), "prompt is 3; expected text"),
        (pack({**seen(), "prompt": "x" * 1001}), "prompt has 1001 characters; expected at most 1000"),
        (encoded(data=b"", dtype="|O8", shape=[0]), "an array has dtype '|O8'; expected numbers"),
        (encoded(data=b"", dtype="nonsense", shape=[0]), "an array has dtype 'nonsense', which NumPy doesn't know"),
        (encoded(data=b"", dtype=3, shape=[0]), "an array has dtype 3; expected one of NumPy's"),
        (encoded(data=b"123", dtype="|u1", shape=[2, 2]), "an array of '|u1' and shape [2, 2] has 3 bytes; expected 4"),
        (
            encoded(data=b"12345", dtype="|u1", shape=[2, 2]),
            "an array of '|u1' and shape [2, 2] has 5 bytes; expected 4",
        ),
        (encoded(data=b"", dtype="|u1", shape=[2**40, 2**40]), "has 0 bytes; expected 1208925819614629174706176"),
        (encoded(data=b"", dtype="|u1", shape=[-1]), "an array has shape [-1]; expected a list of whole numbers"),
        (encoded(dtype="|u1", shape=[1]), "has no bytes; expected 1"),
    ],
)
def test_a_bad_message_is_one_line_and_the_next_is_answered(port: int, frame: str | bytes, error: str) -> None:
    with client(port) as connection:
        connection.send(frame)
        said = connection.recv(10)
        assert isinstance(said, str)
        assert error in said
        assert "\n" not in said
        assert asked(connection, seen()).shape == (4, 2)


def test_a_message_that_is_too_large_ends_its_own_connection_alone(port: int) -> None:
    with client(port) as other:
        with client(port) as connection:
            connection.send(bytes(2**20 + 1))
            with pytest.raises(ConnectionClosedError, match="frame with 1048577 bytes exceeds limit of 1048576 bytes"):
                connection.recv(10)
        assert asked(other, seen()).shape == (4, 2)


def test_clients_that_leave_in_the_middle_or_say_nothing_hold_nobody_up(
    port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with client(port) as silent, client(port) as other:
        for sent in (b"", b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n"):
            with socket.create_connection(("127.0.0.1", port)) as raw:
                raw.sendall(sent)
        for _ in range(3):
            with client(port) as leaving:
                leaving.send(pack(seen()))
                # No closing handshake: the cable is pulled.
                leaving.socket.shutdown(socket.SHUT_RDWR)
        with client(port) as partly:
            # The head of a frame of 200 bytes, and then only three of them.
            partly.socket.sendall(b"\x82\xfe\x00\xc8" + bytes(7))
            partly.socket.shutdown(socket.SHUT_RDWR)
        assert asked(other, seen()).shape == (4, 2)
        assert asked(silent, seen()).shape == (4, 2)
    time.sleep(0.1)
    assert "Traceback" not in capfd.readouterr().err


class FaultyPolicy(FakePolicy):
    """Fails at the instruction `fail`, gives NaN at `nan`, and no rows at `none`."""

    def act(
        self, batch: ObservationBatch, sampling: Sampling, generators: Sequence[np.random.Generator]
    ) -> ActionSample:
        if "fail" in batch.instructions:
            raise RuntimeError("broken")
        sample = super().act(batch, sampling, generators)
        sample.actions[[told == "nan" for told in batch.instructions]] = np.nan
        return replace(sample, actions=sample.actions[:0]) if "none" in batch.instructions else sample


def test_a_fault_of_the_policy_is_told_and_logged(capfd: pytest.CaptureFixture[str]) -> None:
    with served(FaultyPolicy()) as port, client(port) as connection:
        for prompt, error in (
            ("fail", "a fault of the server: RuntimeError: broken"),
            ("nan", "actions are NaN"),
            ("none", "the policy's actions have shape (0, 4, 2); expected (1, 4, 2)"),
        ):
            connection.send(pack(seen(prompt=prompt)))
            assert error in str(connection.recv(10))
        assert asked(connection, seen()).shape == (4, 2)
    assert capfd.readouterr().err.count("RuntimeError: broken") == 1


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        (("front",), "keys has 'front'; expected OURS=THEIRS with OURS one of front, state, prompt"),
        (("wrist=image",), "keys has 'wrist=image'; expected OURS=THEIRS"),
        (("front=state",), "expected another one for each"),
    ],
)
def test_wrong_keys(keys: tuple[str, ...], error: str) -> None:
    with pytest.raises(UserError, match=error):
        Reader(FakePolicy(), keys, {})


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of `simplevla serve` with these arguments."""
    assert cli.main(["serve", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_other_machines_need_a_token(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIMPLEVLA_TOKEN", raising=False)
    for host in ("0.0.0.0", "", "::", "192.0.2.1"):
        line = error_of(capsys, "nowhere", "--host", host)
        assert f"host is {host!r}, where other machines may come in, and there is no token" in line
    monkeypatch.setenv("SIMPLEVLA_TOKEN", "short")
    assert "SIMPLEVLA_TOKEN has 5 characters; expected at least 16" in error_of(capsys, "nowhere")


def test_a_port_in_use_and_a_host_that_is_not_ours(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, port: int
) -> None:
    line = error_of(capsys, "nowhere", "--port", str(port))
    assert f"can't serve at host '127.0.0.1', port {port}: Address already in use. Choose another by --port" in line
    monkeypatch.setenv("SIMPLEVLA_TOKEN", "a token of more than sixteen letters")
    line = error_of(capsys, "nowhere", "--host", "192.0.2.1")
    assert "can't serve at host '192.0.2.1', port 8000: Cannot assign requested address" in line
    assert "ServeConfig.port is 70000; expected at most 65535" in error_of(capsys, "nowhere", "--port", "70000")


def test_a_missing_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith(("simplevla.serving.", "websockets"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "websockets", None)
    assert "serve needs websockets: pip install 'simplevla[serve]'" in error_of(capsys, "nowhere")


def test_no_policy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "holds no policy" in error_of(capsys, str(tmp_path), "--port", "0")


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    policy = small_tinyvla.make()
    policy.save(tmp_path / "policy")
    command = [sys.executable, "-m", "simplevla.cli", "serve", str(tmp_path / "policy"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        try:
            assert first.startswith("serving at ws://127.0.0.1:"), first + process.stderr.read()
            with client(int(first.split(":")[2].split()[0])) as connection:
                message = seen(cameras=small_tinyvla.CAMERAS, size=32, prompt="press it")
                assert asked(connection, message).shape == (3, 2)
                process.send_signal(signal.SIGINT)
                with pytest.raises(ConnectionClosed, match="1001"):
                    connection.recv(30)
            assert process.wait(60) == 0
            assert process.stdout.read().endswith("stopped\n")
        finally:
            process.kill()
