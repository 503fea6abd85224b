"""Scene of one task: Meta-World's own environment class, physics and success, with layouts that follow from a seed."""

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

from simplevla.suites.contacts import Contacts

CONTROL_HZ = 80.0
"""5 physics steps of 2.5 ms in one env step."""
STATE_SIZE = 4
"""The full observation starts with the hand's position (m) and the gripper's opening (0 to 1, of 10 cm)."""


class Simulation:
    """Actions: displacement of the hand's set point in cm and the fingers' effort, each in [-1, 1]."""

    full_state: np.ndarray
    """float64 [39], the benchmark's observation with object poses and goal; for experts only."""

    def __init__(self, task_name: str) -> None:
        self.task_name = task_name
        self.env = env = ALL_V3_ENVIRONMENTS[task_name]()
        self.model: mujoco.MjModel = env.model
        self.data: mujoco.MjData = env.data
        # What the benchmark's set_task does, without its pickled task: layouts may be drawn, and the goal is part of the
        # full observation, whose cached bounds follow from that.
        env._set_task_called = True
        env._partially_observable = False
        env.__dict__.pop("sawyer_observation_space", None)
        env.seeded_rand_vec = True
        self._layouts: dict[int, np.ndarray] = {}
        self.contacts = Contacts(self.model, self.data, (("leftpad_geom",), ("rightpad_geom",)))

    def reset(self, initial_state: int) -> None:
        """Layout (positions of objects and goal) that the benchmark draws first when seeded with `initial_state`."""
        env = self.env
        if initial_state not in self._layouts:
            env.seed(initial_state)
            env._freeze_rand_vec = False
            env.reset_model()
            self._layouts[initial_state] = env._last_rand_vec
        env._last_rand_vec = self._layouts[initial_state].copy()
        env._freeze_rand_vec = True
        self.full_state, _ = env.reset()
        # The reset moves bodies and markers last; this brings pictures up to date and leaves the dynamics alone.
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        self.contacts.begin()

    def step(self, action: np.ndarray) -> bool:
        """One env step of 12.5 ms; True if the benchmark's `success` says that the task is solved."""
        self.full_state, _, _, _, info = self.env.step(action)
        return bool(info["success"])

    @property
    def proprioception(self) -> np.ndarray:
        """float32 [4]: the hand's x, y, z in m and the gripper's opening, 0 to 1."""
        return self.full_state[:STATE_SIZE].astype(np.float32)
