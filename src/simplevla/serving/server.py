"""A policy behind a websocket: who is let in, how much is read, and how it ends."""

import asyncio
import base64
import binascii
import contextlib
import hmac
import logging
import signal
import socket
from collections.abc import AsyncIterator
from http import HTTPStatus

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from simplevla.errors import UserError
from simplevla.policies.base import Policy
from simplevla.serving import openpi, vla_eval
from simplevla.serving.batching import Batcher, warm_up
from simplevla.serving.settings import ServeConfig

HEALTH = "/healthz"
READERS = {"openpi": openpi.make_reader, "vla-eval": vla_eval.make_reader}
TALKS = {"openpi": openpi.talk, "vla-eval": vla_eval.talk}
SILENCE_S = 600.0
"""Seconds without an answer to a ping after which a client counts as gone: a simulator may be building its scene."""
MEGABYTE = 2**20


def bound(config: ServeConfig) -> socket.socket:
    """A socket at the config's address; nobody is let in before somebody listens there.

    Raises:
        UserError: there is no such address here, or the port is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        own = socket.socket(family, kind, protocol)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind(address)
    except OSError as error:
        raise UserError(
            f"can't serve at host {config.host!r}, port {config.port}: {error.strerror or error}. Choose another by --port "
            "or --host; --port 0 takes a free one"
        ) from None
    return own


@contextlib.asynccontextmanager
async def running(
    policy: Policy, config: ServeConfig, token: str | None = None, at: socket.socket | None = None
) -> AsyncIterator[int]:
    """Serves the policy, once it is warm, until the context is left; gives the port.

    Args:
        token: what clients must have in their `Authorization` header; None lets everybody in.
        at: as `bound` made it; None makes one.

    Raises:
        UserError: keys that don't fit the policy, a policy that can't act, or an address that can't be had.
    """
    reader = READERS[config.protocol](policy, config)
    at = at or bound(config)
    await asyncio.to_thread(warm_up, policy)
    batcher = Batcher(policy)

    async def talk(connection: ServerConnection) -> None:
        # A client may go at any time, also in the middle of its message.
        with contextlib.suppress(ConnectionClosed):
            await TALKS[config.protocol](connection, policy, reader, batcher)

    def admit(connection: ServerConnection, request: Request) -> Response | None:
        if request.path == HEALTH:
            return connection.respond(HTTPStatus.OK, "OK\n")
        if token is not None and not has_token(request.headers.get_all("Authorization"), token):
            return connection.respond(
                HTTPStatus.UNAUTHORIZED, "no token, or a wrong one; expected the header Authorization: Api-Key TOKEN\n"
            )
        return None

    # The library would log a traceback for every client that goes in the middle.
    quiet = logging.getLogger("simplevla.serving")
    quiet.setLevel(logging.CRITICAL)
    answering = asyncio.create_task(batcher.run())
    try:
        async with serve(
            talk,
            sock=at,
            process_request=admit,
            # No page that a browser shows may talk to a robot.
            origins=[None],
            max_size=config.max_message_mb * MEGABYTE,
            # One message waits while another is answered.
            max_queue=1,
            compression=None,
            ping_timeout=SILENCE_S,
            logger=quiet,
        ):
            yield at.getsockname()[1]
    finally:
        answering.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await answering


def has_token(headers: list[str], token: str) -> bool:
    """True if the `Authorization` header has the token.

    Api-Key (openpi-client), Bearer, and the password of Basic are read; ws://any:TOKEN@host is the last of these.
    """
    scheme, _, given = (headers[0] if len(headers) == 1 else "").partition(" ")
    if scheme.lower() == "basic":
        with contextlib.suppress(binascii.Error, UnicodeDecodeError):
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
    elif scheme.lower() not in ("api-key", "bearer"):
        return False
    return hmac.compare_digest(given.encode(errors="replace"), token.encode())


async def serve_until_stopped(policy: Policy, config: ServeConfig, token: str | None, at: socket.socket) -> None:
    """Serves until SIGINT or SIGTERM; says where, and when it is ready.

    Raises:
        UserError: as `running`.
    """
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(policy, config, token, at) as port:
        keys = READERS[config.protocol](policy, config).keys
        address = f"[{config.host}]:{port}" if ":" in config.host else f"{config.host}:{port}"
        print(
            f"serving at ws://{address} ({config.protocol}), health at http://{address}{HEALTH}\n"
            f"clients send {', '.join(keys.values())}; Ctrl-C ends",
            flush=True,
        )
        await stop.wait()
    print("stopped")
