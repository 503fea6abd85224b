"""Choice of the renderer that draws without a screen, and its context."""

import os
from typing import Any

from simplevla.errors import UserError


def renderer_name() -> str:
    """`egl` unless MUJOCO_GL says `osmesa`.

    Raises:
        UserError: MUJOCO_GL names a renderer that needs a screen.
    """
    name = os.environ.get("MUJOCO_GL") or "egl"
    if name not in ("egl", "osmesa"):
        raise UserError(f"MUJOCO_GL is {name!r}; this suite renders off-screen: set MUJOCO_GL=egl or MUJOCO_GL=osmesa")
    return name


def make_context(largest: int) -> Any:
    """A rendering context for pictures of up to `largest` pixels a side."""
    if renderer_name() == "osmesa":
        from mujoco.osmesa import GLContext
    else:
        from mujoco.egl import GLContext
    return GLContext(largest, largest)
