"""A suite around a stock package: two tasks of Gymnasium-Robotics' Fetch arm; docs/add_a_suite.md explains it."""

import importlib.metadata
import os

import gymnasium
import gymnasium_robotics
import numpy as np

from simplevla.config import SuiteConfig
from simplevla.suites.base import Expert, Suite, SuiteSpec
from simplevla.suites.gymnasium import GymnasiumSuite
from simplevla.types import Observation, Task

os.environ.setdefault("MUJOCO_GL", "egl")
gymnasium.register_envs(gymnasium_robotics)

ENVIRONMENTS = {"reach": "FetchReach-v4", "push": "FetchPush-v4"}
REASON = "the environment's own time limit"
TASKS = (
    Task(name="reach", instruction="move the gripper to the red ball", horizon=50, horizon_reason=REASON),
    Task(name="push", instruction="push the black cube onto the red ball", horizon=50, horizon_reason=REASON),
)
SOLVED_AT_RESET = {"reach": {48, 52, 99, 107}, "push": {10, 54, 78, 79, 84, 126, 129, 156}}
"""Seeds whose goal is within the 5 cm tolerance from the start (Gymnasium-Robotics 1.4.2); the checker found them."""
CAMERA = {"distance": 1.3, "azimuth": 132.0, "elevation": -30.0, "lookat": np.array([1.3, 0.75, 0.5])}


def make(config: SuiteConfig) -> Suite:
    """The factory that `simplevla ... fetch_suite:make` names."""
    size = config.image_size or 96

    def make_env(task: Task) -> gymnasium.Env:
        return gymnasium.make(
            ENVIRONMENTS[task.name],
            render_mode="rgb_array",
            width=size,
            height=size,
            default_camera_config=CAMERA,
            max_episode_steps=-1,
        )

    def observe(env: gymnasium.Env, obs: dict[str, np.ndarray]) -> Observation:
        # The gripper alone: the ball and the cube are to be seen in the image.
        return Observation(images={"fixed": env.render()}, state=obs["observation"][:3].astype(np.float32))

    return GymnasiumSuite(
        name="fetch",
        spec=SuiteSpec(
            cameras={"fixed": (size, size)},
            state_names=("gripper_x_m", "gripper_y_m", "gripper_z_m"),
            action_names=("delta_x_5cm", "delta_y_5cm", "delta_z_5cm", "gripper_open"),
            action_low=(-1.0,) * 4,
            action_high=(1.0,) * 4,
            control_hz=25.0,
        ),
        tasks=TASKS,
        make_env=make_env,
        observe=observe,
        success_key="is_success",
        train_states=100,
        test_states=50,
        skip_seeds=SOLVED_AT_RESET,
        make_expert=FetchExpert,
        protocol={
            "gymnasium_robotics": importlib.metadata.version("gymnasium-robotics"),
            "mujoco": importlib.metadata.version("mujoco"),
            "renderer": os.environ["MUJOCO_GL"],
            "image_size": size,
        },
    )


class FetchExpert(Expert):
    """Reaches straight for the goal; pushes from behind the cube. Only demonstrations need an expert."""

    def __init__(self, env: gymnasium.Env, task: Task) -> None:
        self._env, self._task = env.unwrapped, task

    def reset(self) -> None:
        return None

    def action(self) -> np.ndarray:
        obs = self._env._get_obs()
        hand, goal = obs["observation"][:3], obs["desired_goal"]
        target = goal if self._task.name == "reach" else self._push_target(hand, obs["achieved_goal"], goal)
        delta = np.clip((target - hand) / 0.05, -1.0, 1.0)
        return np.array([*delta, 0.0], np.float32)

    @staticmethod
    def _push_target(hand: np.ndarray, cube: np.ndarray, goal: np.ndarray) -> np.ndarray:
        way = goal[:2] - cube[:2]
        way = way / np.linalg.norm(way)
        offset = hand[:2] - cube[:2]
        along = offset @ way
        across = np.linalg.norm(offset - along * way)
        behind = cube[:2] - 0.075 * way
        if along < -0.02 and across < 0.015 and hand[2] < cube[2] + 0.03:
            return np.array([*(cube[:2] - 0.01 * way), cube[2]])
        if np.linalg.norm(hand[:2] - behind) < 0.015:
            return np.array([*behind, cube[2]])
        high = cube[2] + 0.08
        return np.array([*(behind if hand[2] > cube[2] + 0.055 else hand[:2]), high])
