"""Off-screen pictures of Meta-World's scenes, upright, in three visual modes."""

import atexit
import copy

import mujoco
import numpy as np

from simplevla.suites.metaworld.lite import shrink_textures, simplify_meshes
from simplevla.suites.metaworld.simulation import Simulation
from simplevla.suites.offscreen import make_context

CAMERAS = {"fixed": "corner4", "wrist": "gripperPOV"}
"""Our camera name -> the benchmark's. corner4 is its near front view: the whole work space fills the picture."""
UPSIDE_DOWN = {"corner4"}
"""Cameras that the benchmark mounted upside down; their pictures are turned by 180 degrees."""
VISUALS = ("fast", "stock", "lite")
"""Visual modes. `fast`: no multisampling, shadows, reflections; `lite`: also fewer faces and smaller textures.

Pixels differ, so results name the mode; the physics is the same in all.
"""
VIDEO_SIZE = 256
"""Side in pixels of the pictures for people."""


class Renderer:
    """One rendering context for a process; each task's meshes and textures are uploaded into it once."""

    def __init__(self, visuals: str, largest: int) -> None:
        """Pictures of up to `largest` pixels a side."""
        self._visuals, self._largest = visuals, largest
        self._gl = make_context(largest)
        self._uploaded: dict[str, tuple[mujoco.MjrContext, mujoco.MjvScene]] = {}
        self._options, self._perturbation = mujoco.MjvOption(), mujoco.MjvPerturb()
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        # Left to the interpreter's end, the context is freed too late and complains.
        atexit.register(self.close)

    def picture(self, simulation: Simulation, camera: str, size: int) -> np.ndarray:
        """uint8 [size, size, 3], upright, from the benchmark's camera `camera`. Goal markers are drawn."""
        self._gl.make_current()
        context, scene = self._upload(simulation)
        self._view.fixedcamid = simulation.model.camera(camera).id
        mujoco.mjv_updateScene(
            simulation.model,
            simulation.data,
            self._options,
            self._perturbation,
            self._view,
            mujoco.mjtCatBit.mjCAT_ALL,
            scene,
        )
        viewport = mujoco.MjrRect(0, 0, size, size)
        pixels = np.empty((size, size, 3), np.uint8)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
        mujoco.mjr_render(viewport, scene, context)
        mujoco.mjr_readPixels(pixels, None, viewport, context)
        # Rows come bottom up, so a picture that is upside down needs only its columns reversed.
        return np.ascontiguousarray(pixels[:, ::-1] if camera in UPSIDE_DOWN else pixels[::-1])

    def close(self) -> None:
        """Frees the context; call it once."""
        atexit.unregister(self.close)
        self._gl.make_current()
        for context, _ in self._uploaded.values():
            context.free()
        self._uploaded.clear()
        self._gl.free()

    def _upload(self, simulation: Simulation) -> tuple[mujoco.MjrContext, mujoco.MjvScene]:
        if simulation.task_name not in self._uploaded:
            # A copy, so that nothing here can reach the physics.
            model = copy.deepcopy(simulation.model)
            model.vis.global_.offwidth = model.vis.global_.offheight = self._largest
            scene = mujoco.MjvScene(model, maxgeom=1000)
            if self._visuals != "stock":
                model.vis.quality.offsamples = 0
                model.vis.quality.shadowsize = 0
                scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
                scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
            if self._visuals == "lite":
                simplify_meshes(model)
                shrink_textures(model)
            context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
            self._uploaded[simulation.task_name] = context, scene
        return self._uploaded[simulation.task_name]
