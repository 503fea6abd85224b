"""Settings of a policy server, checked before anything is loaded."""

import ipaddress
from typing import Annotated, Literal

from annotated_types import Ge, Le

from simplevla.checked import Positive, dataclass
from simplevla.errors import UserError

Port = Annotated[int, Ge(0), Le(65535)]
SHORTEST_TOKEN = 16
"""Characters of a token that nobody guesses."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The address of a policy server, its protocol, and what clients may send."""

    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own needs a token, in the variable SIMPLEVLA_TOKEN."""
    port: Port = 8000
    """Port to listen on; 0 takes a free one."""
    protocol: Literal["openpi", "vla-eval"] = "openpi"
    """Protocol of the clients: openpi-client, or the evaluation harness vla-eval."""
    keys: tuple[str, ...] = ()
    """OURS=THEIRS for each key that clients call otherwise, such as fixed=observation/image. OURS is a camera of the
    policy, `state` or `prompt`."""
    ignore_keys: tuple[str, ...] = ()
    """Keys that clients send and the policy has no use for; others are an error."""
    max_message_mb: Positive = 16
    """Largest message in megabytes; a client that sends a larger one is disconnected."""


def require_token(host: str, token: str | None) -> None:
    """Refuses to let other machines in without a token, or with one that is easily guessed.

    Raises:
        UserError: there is none and `host` isn't this machine, or it is too short.
    """
    if token is None and not _is_this_machine(host):
        raise UserError(
            f"host is {host!r}, where other machines may come in, and there is no token; set one "
            '(export SIMPLEVLA_TOKEN="$(openssl rand -hex 16)"), or leave --host out to serve this machine alone'
        )
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        raise UserError(
            f"SIMPLEVLA_TOKEN has {len(token)} characters; expected at least {SHORTEST_TOKEN}, all of them printable "
            "ASCII. `openssl rand -hex 16` makes one"
        )


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
