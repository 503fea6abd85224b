"""A policy server in a thread of the test's process, and clients of it."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from websockets.sync.client import ClientConnection, connect

from simplevla.policies.base import Policy
from simplevla.serving.encoding import pack, unpack
from simplevla.serving.server import running
from simplevla.serving.settings import ServeConfig


@contextmanager
def served(policy: Policy, token: str | None = None, **settings: Any) -> Iterator[int]:
    """Serves the policy on a free port, which it gives."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = running(policy, ServeConfig(port=0, **settings), token)
    try:
        port = asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(60)
        try:
            yield port
        finally:
            asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def client(port: int, **options: Any) -> Iterator[ClientConnection]:
    """A connection whose metadata have been read."""
    with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, **options) as connection:
        connection.recv()
        yield connection


def asked(connection: ClientConnection, message: dict[str, Any]) -> np.ndarray:
    """The actions that the server answers with."""
    connection.send(pack(message))
    return unpack(connection.recv())["actions"]


def seen(seed: int = 0, cameras: tuple[str, ...] = ("front",), size: int = 8, prompt: str = "reach") -> dict[str, Any]:
    """An observation as a client sends it."""
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 256, (size, size, 3), np.uint8) for camera in cameras}
    return {**images, "state": rng.normal(size=3).astype(np.float32), "prompt": prompt}
