"""Scene of one task: ManiSkill's own environment class, physics and success, on the CPU; pictures on request."""

import logging
from typing import Any, NamedTuple

import gymnasium
import mani_skill.envs  # registers the tasks
import numpy as np
import sapien
from mani_skill.envs import sapien_env
from mani_skill.utils.logging_utils import logger

from simplevla.errors import UserError
from simplevla.suites.maniskill.controller import Controller

# It warns of the wrist camera's robot and of its own objects' poses, for each scene.
logger.setLevel(logging.ERROR)
assert mani_skill.envs

CAMERAS = {"fixed": "base_camera", "wrist": "hand_camera"}
"""Our name -> ManiSkill's."""
VIDEO_SIZE = 256
LIFTED_M = 0.01
"""Height above the one at the start from which a thing counts as lifted."""
DOWN = np.diag([1.0, -1.0, -1.0])
"""Rotation of the hand at the start, about: it points down, and its fingers move along the world's y axis."""

IN_REGION = {"PushCube-v1": "obj", "PullCube-v1": "obj", "PokeCube-v1": "cube"}
"""Task -> what must lie in the goal region, among other things. Before it does, the benchmark needn't be asked."""
NEARLY_M = 1e-4
"""Distance beyond the goal's radius at which it is asked all the same, so that rounding decides nothing."""

_parse_backend = sapien_env.parse_sim_and_render_backend


class Pose(NamedTuple):
    """Position [3], m, and rotation [3, 3] in the world frame."""

    position: np.ndarray
    rotation: np.ndarray


def render_device() -> sapien.Device:
    """The first device that can draw: a GPU, or the processor with a Vulkan driver for it.

    Raises:
        UserError: there is none.
    """
    for name in ("cuda", "pci:0"):
        try:
            device = sapien.Device(name)
        except RuntimeError:
            continue
        if device.can_render():
            return device
    raise UserError(
        "ManiSkill's pictures need a Vulkan driver, and SAPIEN found none. Without a GPU install Mesa's lavapipe, 24.3 or newer "
        "(Debian: scripts/system_packages.sh vulkan). With one, a container needs NVIDIA_DRIVER_CAPABILITIES=graphics,compute,utility"
    )


class Simulation:
    """One scene.

    Actions: displacement of the hand in units of 0.1 m, its rotation in units of -0.1 rad, and the fingers (-1 closes,
    +1 opens), each in [-1, 1].
    """

    def __init__(self, task_name: str, image_size: int, visuals: str) -> None:
        """Builds the scene; `visuals` is `stock` or `lite`.

        Raises:
            UserError: nothing can draw.
        """
        self.task_name = task_name
        device = render_device()

        def backend(sim_backend: str, _: str) -> Any:
            """ManiSkill 3.0.1 can't read the name of a device that isn't a CUDA one."""
            parsed = _parse_backend(sim_backend, "none")
            parsed.render_device = device
            return parsed

        sapien_env.parse_sim_and_render_backend = backend
        made = gymnasium.make(
            task_name,
            obs_mode="none",
            reward_mode="none",
            control_mode="pd_ee_delta_pose",
            robot_uids="panda_wristcam",
            render_mode="rgb_array",
            sim_backend="physx_cpu",
            sensor_configs={"width": image_size, "height": image_size, "shader_pack": "minimal"},
            human_render_camera_configs={"width": VIDEO_SIZE, "height": VIDEO_SIZE},
        )
        self.env: Any = made.unwrapped
        # The wrist camera's robot, from the pose in which the benchmark's usual robot starts.
        self.env.robot_uids = "panda"
        self.env.reset(seed=0)
        # The goal is in the picture: the benchmark hides one that no object shows, and tells it beside the picture.
        for goal in self.env._hidden_objects:
            goal.show_visual()
        self.env._hidden_objects = []
        if visuals == "lite":
            from simplevla.suites.maniskill.lite import lighten

            lighten(self.env.scene.sub_scenes[0])
        self._controller = Controller(self.env.agent)
        self._evaluate = self.env.evaluate
        if task_name in IN_REGION:
            self._unsolved = self._evaluate()["success"] & False
            self.env.evaluate = self._evaluate_in_region
        self._things = {name: actor for name, actor in self.env.scene.actors.items() if actor.px_body_type == "dynamic"}

    def reset(self, seed: int) -> None:
        """The scene that the benchmark draws from `seed`."""
        self.env.reset(seed=seed)
        self._start = {name: float(actor.pose.p[0, 2]) for name, actor in self._things.items()}

    def step(self, action: np.ndarray) -> bool:
        """One env step of 50 ms; True if the benchmark says that the task is solved."""
        self._controller.act(action)
        info = self.env.step(None)[-1]
        return bool(info["success"])

    def _evaluate_in_region(self) -> dict[str, Any]:
        """The benchmark's own judgement, which takes longer than PokeCube's physics."""
        thing, goal = (getattr(self.env, name)._objs[0].pose.p for name in (IN_REGION[self.task_name], "goal_region"))
        outside = np.linalg.norm((thing - goal)[:2]) > self.env.goal_radius + NEARLY_M
        return {"success": self._unsolved} if outside else self._evaluate()

    def pose(self, thing: str) -> Pose:
        """Pose of the actor that the environment has under the attribute `thing`."""
        return _pose(getattr(self.env, thing))

    @property
    def hand(self) -> Pose:
        """Pose between the fingertips: z points out of the hand, y is the axis along which the fingers move."""
        return _pose(self.env.agent.tcp)

    @property
    def opening(self) -> float:
        """Distance of the fingers, m: 0.08 when open."""
        return float(self.env.agent.robot.qpos[0, -2:].sum())

    def grasps(self, thing: str) -> bool:
        """True if both fingers press on the actor `thing`, by the benchmark's own test."""
        return bool(self.env.agent.is_grasping(getattr(self.env, thing)))

    @property
    def proprioception(self) -> np.ndarray:
        """float32 [7]: position of the hand, m, its rotation from pointing down, rad, and the opening, m."""
        hand = self.hand
        return np.concatenate(
            [hand.position, rotation_vector(hand.rotation @ DOWN.T), [self.opening]], dtype=np.float32
        )

    def events(self) -> tuple[str, ...]:
        """`touches THING` (a finger does), `grasps THING` (both do) and `lifts THING`."""
        agent, found = self.env.agent, []
        for name, actor in self._things.items():
            forces = [
                np.linalg.norm(self.env.scene.get_pairwise_contact_forces(finger, actor))
                for finger in (agent.finger1_link, agent.finger2_link)
            ]
            lifted = float(actor.pose.p[0, 2]) > self._start[name] + LIFTED_M
            holds = {"touches": max(forces) > 0, "grasps": bool(agent.is_grasping(actor)), "lifts": lifted}
            found += [f"{verb} {name}" for verb, true in holds.items() if true]
        return tuple(found)

    def picture(self, camera: str) -> np.ndarray:
        """uint8 [size, size, 3] of one of ManiSkill's sensor cameras."""
        sensor = self.env._sensors[camera]
        sensor.capture()
        seen = sensor.get_obs(rgb=True, depth=False, segmentation=False, position=False)
        return np.asarray(seen["rgb"][0])

    def update_pictures(self) -> None:
        """Brings the renderer's scene up to date, once for all cameras."""
        self.env.scene.update_render(update_sensors=True, update_human_render_cameras=False)

    def video_picture(self) -> np.ndarray:
        """uint8 [256, 256, 3] for people."""
        return np.asarray(self.env.render_rgb_array()[0])

    def close(self) -> None:
        """Frees the scene."""
        self.env.close()


def _pose(entity: Any) -> Pose:
    w, x, y, z = np.asarray(entity.pose.q[0], np.float64)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    return Pose(np.asarray(entity.pose.p[0], np.float64), rotation)


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle [3], rad, of a rotation [3, 3] by less than half a turn."""
    twice_sine = np.array(
        [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
    )
    length = np.linalg.norm(twice_sine)
    angle = np.arctan2(length, np.trace(rotation) - 1.0)
    return twice_sine * (angle / length if length > 1e-9 else 0.5)
