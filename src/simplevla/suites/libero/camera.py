"""Off-screen pictures of a scene, upright, on the software or hardware renderer that MUJOCO_GL names."""

import atexit

import mujoco
import numpy as np

from simplevla.suites.offscreen import make_context

CAMERAS = {"fixed": "agentview", "wrist": "robot0_eye_in_hand"}
"""Our camera name -> the simulator's."""
VISUAL_GROUP, HIDDEN_GROUP = 1, 0
"""robosuite puts visual shapes into the first and collision shapes, which aren't drawn, into the second."""
VIDEO_SIZE = 256
"""Side in pixels of the pictures for people."""


class Camera:
    """A rendering context of its own for one model; made current before each picture, so that several can coexist."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, largest: int) -> None:
        """Pictures of up to `largest` pixels a side."""
        self._model, self._data = model, data
        model.vis.global_.offwidth = model.vis.global_.offheight = largest
        self._gl = make_context(largest)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        self._options = mujoco.MjvOption()
        self._options.geomgroup[HIDDEN_GROUP] = 0
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._perturbation = mujoco.MjvPerturb()
        self._shown = np.flatnonzero(model.geom_group == VISUAL_GROUP)
        flat = np.isin(model.geom_type[self._shown], (mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX))
        material = model.geom_matid[self._shown]
        self._mirrors = self._shown[flat & (material >= 0) & (model.mat_reflectance[material] > 0)]
        self._shadows = bool(model.light_castshadow.any())
        atexit.register(self.close)

    def picture(self, camera: str, size: int) -> np.ndarray:
        """uint8 [size, size, 3] from the simulator's camera `camera`.

        robosuite's picture turned by 180 degrees, as every policy published for LIBERO expects it: upright, and
        mirrored left to right, since robosuite stores rows bottom up.
        """
        self._gl.make_current()
        self._view.fixedcamid = self._model.camera(camera).id
        hidden = self._outside(self._view.fixedcamid)
        self._model.geom_group[hidden] = HIDDEN_GROUP
        mujoco.mjv_updateScene(
            self._model,
            self._data,
            self._options,
            self._perturbation,
            self._view,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        self._model.geom_group[hidden] = VISUAL_GROUP
        viewport = mujoco.MjrRect(0, 0, size, size)
        pixels = np.empty((size, size, 3), np.uint8)
        mujoco.mjr_render(viewport, self._scene, self._context)
        mujoco.mjr_readPixels(pixels, None, viewport, self._context)
        return np.ascontiguousarray(pixels[::-1, ::-1])

    def _outside(self, camera: int) -> np.ndarray:
        """Visual shapes whose bounding sphere lies outside the camera's view: beyond one of its four sides or behind.

        Leaving them out changes no pixel, and a wrist camera sees a third of the triangles. There are none where a
        shadow or a mirror could bring them back into the picture.
        """
        model, data, shown = self._model, self._data, self._shown
        place = (data.geom_xpos[shown] - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)
        depth, half = -place[:, 2], np.deg2rad(model.cam_fovy[camera]) / 2
        beyond = np.abs(place[:, :2]).max(axis=1) * np.cos(half) - depth * np.sin(half)
        radius = model.geom_rbound[shown]
        # Planes have no bounding sphere: their radius is 0.
        outside = shown[(radius > 0) & ((beyond > radius) | (-depth > radius))]
        return outside if not self._shadows and np.isin(self._mirrors, outside).all() else outside[:0]

    def close(self) -> None:
        """Frees the context; a second call does nothing."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None
            atexit.unregister(self.close)
