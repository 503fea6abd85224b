"""A policy for robots and for evaluations elsewhere."""

import asyncio
import os
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from simplevla.commands.arguments import UNPREFIXED
from simplevla.commands.help import read_arguments
from simplevla.config import Precision
from simplevla.errors import UserError
from simplevla.serving.settings import ServeConfig, require_token

TOKEN = "SIMPLEVLA_TOKEN"


@dataclass(frozen=True, kw_only=True)
class ServeArguments:
    """Serves a policy over a websocket: an observation in, a chunk of actions out. Acts greedily.

    Clients speak openpi's protocol, as PyPI's openpi-client does. See docs/deploy.md.
    """

    policy: tyro.conf.Positional[str]
    """Folder of a saved policy, for example RUN/policy, or hf://OWNER/NAME on the hub."""
    config: Annotated[ServeConfig, UNPREFIXED] = field(default_factory=ServeConfig)
    adapter: str = ""
    """Adapter of the policy that acts: its name, or `routed` for the one nearest to each instruction; empty: the one
    that was active when it was saved."""
    device: str = "cpu"
    """Device on which the policy computes."""
    precision: Precision = "float32"
    """Precision of the policy's products, as in `simplevla train`."""


def serve_command(arguments: list[str]) -> int:
    parsed = read_arguments(ServeArguments, "serve", arguments)
    token = os.environ.get(TOKEN)
    require_token(parsed.config.host, token)
    try:
        from simplevla.serving.server import bound, serve_until_stopped
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("websockets", "msgpack"):
            raise
        raise UserError(f"serve needs {missing}: pip install 'simplevla[serve]'") from None
    from simplevla.adapters.load import load_policy
    from simplevla.adapters.routing import acting_with, warn_of_idle_adapters

    # Taken first: a large policy loads for minutes.
    with bound(parsed.config) as at:
        policy = load_policy(parsed.policy, parsed.device)
        policy.compute_in(parsed.precision)
        policy = acting_with(policy, parsed.adapter)
        warn_of_idle_adapters(policy)
        asyncio.run(serve_until_stopped(policy, parsed.config, token, at))
    return 0
