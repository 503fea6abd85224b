"""Off-screen pictures of a scene, upright, on the software or hardware renderer that MUJOCO_GL names."""

import atexit
import os

import mujoco
import numpy as np

CAMERAS = {"fixed": "agentview", "wrist": "robot0_eye_in_hand"}
"""Our camera name -> the simulator's."""
VIDEO_SIZE = 256
"""Side in pixels of the pictures for people."""


def renderer_name() -> str:
    """`egl` unless MUJOCO_GL says `osmesa`.

    Raises:
        ValueError: MUJOCO_GL names a renderer that needs a screen.
    """
    name = os.environ.get("MUJOCO_GL") or "egl"
    if name not in ("egl", "osmesa"):
        raise ValueError(f"MUJOCO_GL is {name!r}; LIBERO renders off-screen: set MUJOCO_GL=egl or MUJOCO_GL=osmesa")
    return name


class Camera:
    """A rendering context of its own for one model; made current before each picture, so that several can coexist."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, largest: int) -> None:
        """Pictures of up to `largest` pixels a side."""
        if renderer_name() == "osmesa":
            from mujoco.osmesa import GLContext
        else:
            from mujoco.egl import GLContext
        self._model, self._data = model, data
        model.vis.global_.offwidth = model.vis.global_.offheight = largest
        self._gl = GLContext(largest, largest)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # robosuite puts collision shapes here and visual ones in group 1
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._perturbation = mujoco.MjvPerturb()
        atexit.register(self.close)

    def picture(self, camera: str, size: int) -> np.ndarray:
        """uint8 [size, size, 3] from the simulator's camera `camera`.

        robosuite's picture turned by 180 degrees, as every policy published for LIBERO expects it: upright, and
        mirrored left to right, since robosuite stores rows bottom up.
        """
        self._gl.make_current()
        self._view.fixedcamid = self._model.camera(camera).id
        mujoco.mjv_updateScene(
            self._model,
            self._data,
            self._options,
            self._perturbation,
            self._view,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        viewport = mujoco.MjrRect(0, 0, size, size)
        pixels = np.empty((size, size, 3), np.uint8)
        mujoco.mjr_render(viewport, self._scene, self._context)
        mujoco.mjr_readPixels(pixels, None, viewport, self._context)
        return np.ascontiguousarray(pixels[::-1, ::-1])

    def close(self) -> None:
        """Free the context; a second call does nothing."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None
            atexit.unregister(self.close)
