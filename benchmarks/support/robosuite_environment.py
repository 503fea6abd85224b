"""LIBERO as the published code drives it: LIBERO's own `OffScreenRenderEnv`, which renders both cameras at every env step."""

import numpy as np

from simplevla.suites.base import Environment
from simplevla.suites.libero import catalog
from simplevla.suites.libero.camera import CAMERAS
from simplevla.suites.libero.environment import axis_angle
from simplevla.suites.libero.simulation import SEED, SETTLING_ACTION, SETTLING_STEPS
from simplevla.types import ChunkResult, Observation, Task


class RobosuiteEnvironment(Environment):
    """Physics and pixels are those of our `stock` mode (tests/sim/test_libero_suite.py), cost is the original's."""

    def __init__(self, suite: str, image_size: int) -> None:
        self.suite, self.image_size = suite, image_size
        self.env = None

    def reset(self, task: Task, initial_state: int) -> Observation:
        from libero.libero.envs import OffScreenRenderEnv

        self.close()
        self.env = OffScreenRenderEnv(
            bddl_file_name=str(catalog.problem_file(self.suite, task.name)),
            camera_heights=self.image_size,
            camera_widths=self.image_size,
        )
        self.env.seed(SEED)
        self.env.reset()
        self.env.set_init_state(catalog.load_initial_states(self.suite, task.name)[initial_state])
        for _ in range(SETTLING_STEPS):
            seen, *_ = self.env.step(SETTLING_ACTION)
        return _observation(seen)

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        executed, success = 0, False
        while executed < len(actions) and not success:
            seen, _, success, _ = self.env.step(actions[executed])
            executed += 1
        return ChunkResult(observation=_observation(seen), executed=executed, success=bool(success))

    def render(self) -> np.ndarray:
        raise NotImplementedError("a benchmark films nothing")

    def close(self) -> None:
        if self.env is not None:
            self.env.close()
            self.env = None


def _observation(seen: dict) -> Observation:
    x, y, z, w = seen["robot0_eef_quat"]
    state = [seen["robot0_eef_pos"], axis_angle(np.array([w, x, y, z])), seen["robot0_gripper_qpos"]]
    images = {name: np.ascontiguousarray(seen[f"{camera}_image"][::-1, ::-1]) for name, camera in CAMERAS.items()}
    return Observation(images=images, state=np.concatenate(state).astype(np.float32))
