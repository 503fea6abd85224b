"""The LIBERO environment: official states and physics, two cameras, pictures only where a policy looks."""

import math
from collections.abc import Callable

import mujoco
import numpy as np

from simplevla.errors import UserError
from simplevla.suites.base import Environment, execute
from simplevla.suites.libero import catalog
from simplevla.suites.libero.camera import CAMERAS, VIDEO_SIZE, Camera
from simplevla.suites.libero.lite import simplify_xml
from simplevla.suites.libero.simulation import Simulation
from simplevla.types import ChunkResult, Observation, Task

SCENES_KEPT = {"stock": 1, "lite": 10}
"""Scenes that stay built when the task changes: a stock one takes about 1 GB and 5 s, a lite one 40 MB and 0.3 s."""

REWRITE: dict[str, Callable[[str], str] | None] = {"stock": None, "lite": simplify_xml}
"""Visual mode -> what it does to a scene's XML."""


class LiberoEnvironment(Environment):
    """Any task of one suite. `simulation` is the current task's scene, for experts and for steps without pictures."""

    simulation: Simulation
    task: Task

    def __init__(self, suite: str, visuals: str, image_size: int, stepping: str = "stock") -> None:
        self.suite, self._visuals, self._image_size, self._stepping = suite, visuals, image_size, stepping
        self._scenes: dict[str, tuple[Simulation, Camera]] = {}
        self._states: dict[str, np.ndarray] = {}
        self._watched = False

    def reset(self, task: Task, initial_state: int) -> Observation:
        """Official initial state number `initial_state`, after the settling steps.

        Raises:
            UserError: no such initial state.
        """
        if not 0 <= initial_state < catalog.INITIAL_STATES:
            raise UserError(
                f"initial state {initial_state} of {task.name!r}; LIBERO has 0 to {catalog.INITIAL_STATES - 1}"
            )
        self.task = task
        self.simulation, self._camera = self._scene(task)
        self.simulation.contacts.watched = self._watched
        self.simulation.reset(self._states[task.name][initial_state])
        return self._observe()

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Executes float [h, 7] actions in [-1, 1]; values beyond are clipped by the simulator's controller.

        Raises:
            UserError: wrong shape, or a number that isn't finite.
        """
        executed, success = execute(self.simulation.step, actions, 7, "LIBERO")
        return ChunkResult(observation=self._observe, executed=executed, success=success)

    def render(self) -> np.ndarray:
        """The fixed view at the video size."""
        return self._camera.picture(CAMERAS["fixed"], VIDEO_SIZE)

    def watch(self) -> None:
        self._watched = True

    def events(self) -> tuple[str, ...]:
        return self.simulation.contacts.events()

    def close(self) -> None:
        for _, camera in self._scenes.values():
            camera.close()
        self._scenes.clear()

    def _scene(self, task: Task) -> tuple[Simulation, Camera]:
        """The task's scene, built if need be; the one unused for longest makes room."""
        scene = self._scenes.pop(task.name, None)
        if scene is None:
            while len(self._scenes) >= SCENES_KEPT[self._visuals]:
                _, camera = self._scenes.pop(next(iter(self._scenes)))
                camera.close()
            simulation = Simulation(
                catalog.problem_file(self.suite, task.name), REWRITE[self._visuals], fast=self._stepping == "fast"
            )
            scene = simulation, Camera(simulation.model, simulation.data, max(self._image_size, VIDEO_SIZE))
            self._states[task.name] = catalog.load_initial_states(self.suite, task.name)
        self._scenes[task.name] = scene
        return scene

    def _observe(self) -> Observation:
        simulation = self.simulation
        # The integrator leaves positions of bodies and cameras one physics step behind; these two catch up.
        mujoco.mj_kinematics(simulation.model, simulation.data)
        mujoco.mj_camlight(simulation.model, simulation.data)
        images = {name: self._camera.picture(camera, self._image_size) for name, camera in CAMERAS.items()}
        state = np.concatenate([simulation.hand_position, axis_angle(simulation.hand_quaternion), simulation.fingers])
        return Observation(images=images, state=state.astype(np.float32))


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Rotation vector (rad) of a unit quaternion (w, x, y, z), continuous through a half turn.

    >>> axis_angle(np.array([math.sqrt(0.5), 0.0, 0.0, math.sqrt(0.5)])).round(4).tolist()
    [0.0, 0.0, 1.5708]
    """
    w = min(max(float(quaternion[0]), -1.0), 1.0)
    length = math.sqrt(1.0 - w * w)
    if length < 1e-9:
        return np.zeros(3)
    return quaternion[1:] * (2.0 * math.acos(w) / length)
