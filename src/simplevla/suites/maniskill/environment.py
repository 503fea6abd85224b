"""The ManiSkill environment: any of the tasks, two cameras, pictures only where a policy looks."""

import numpy as np

from simplevla.errors import UserError
from simplevla.suites.base import Environment, execute
from simplevla.suites.maniskill import catalog
from simplevla.suites.maniskill.simulation import CAMERAS, Simulation, render_device
from simplevla.types import ChunkResult, Observation, Task

ACTION_SIZE = 7
STATES = catalog.TRAIN_STATES + catalog.TEST_STATES


class ManiskillEnvironment(Environment):
    """Any of the seven tasks; a scene of each is kept once it is built."""

    def __init__(self, image_size: int, visuals: str) -> None:
        """Builds no scene yet.

        Raises:
            UserError: nothing can draw.
        """
        render_device()
        self._image_size, self._visuals = image_size, visuals
        self._scenes: dict[str, Simulation] = {}
        self.simulation: Simulation | None = None
        """The current task's scene, for experts."""

    def reset(self, task: Task, initial_state: int) -> Observation:
        """The task's scene of the seed `initial_state`, rendered.

        Raises:
            UserError: no such task or initial state; nothing can draw.
        """
        if task.name not in catalog.INSTRUCTIONS:
            raise UserError(f"ManiSkill has no task {task.name!r} here; its tasks: {', '.join(catalog.INSTRUCTIONS)}")
        if not 0 <= initial_state < STATES:
            raise UserError(f"initial state {initial_state} of {task.name!r}; ManiSkill has 0 to {STATES - 1}")
        if task.name not in self._scenes:
            self._scenes[task.name] = Simulation(task.name, self._image_size, self._visuals)
        self.simulation = self._scenes[task.name]
        self.simulation.reset(initial_state)
        return self._observe()

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Executes float [h, 7] actions in [-1, 1]; values beyond are clipped by the benchmark.

        Raises:
            UserError: wrong shape, or a number that isn't finite.
        """
        executed, success = execute(self._current.step, actions, ACTION_SIZE, "ManiSkill")
        return ChunkResult(observation=self._observe, executed=executed, success=success)

    def render(self) -> np.ndarray:
        return self._current.video_picture()

    def events(self) -> tuple[str, ...]:
        return self._current.events()

    def close(self) -> None:
        for scene in self._scenes.values():
            scene.close()
        self._scenes, self.simulation = {}, None

    @property
    def _current(self) -> Simulation:
        assert self.simulation is not None, "reset first"
        return self.simulation

    def _observe(self) -> Observation:
        scene = self._current
        scene.update_pictures()
        images = {name: scene.picture(camera) for name, camera in CAMERAS.items()}
        return Observation(images=images, state=scene.proprioception)
