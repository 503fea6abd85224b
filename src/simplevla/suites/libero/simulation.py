"""One robosuite scene: built without images, reset and stepped with the same physics at a third of the cost."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from simplevla.errors import UserError
from simplevla.suites.contacts import Contacts
from simplevla.suites.libero.controller import Arm, arm_torques

logging.getLogger("robosuite_logs").disabled = True

import robosuite  # noqa: E402  (the line above must come first: robosuite logs at import)
from libero.libero.envs import TASK_MAPPING  # noqa: E402
from libero.libero.envs.bddl_utils import get_problem_info  # noqa: E402
from robosuite.utils.errors import RandomizationError  # noqa: E402

FULL_MASS_READS_DATA = tuple(map(int, mujoco.__version__.split(".")[:2])) >= (3, 4)
"""`mj_fullM` changed its arguments in MuJoCo 3.4."""
CONTROL_HZ = 20
SUBSTEPS = 25
"""Physics steps of 2 ms in one env step."""
SEED = 0
"""Fixtures move with the seed; the official evaluation uses 0."""
SETTLING_ACTION = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)
SETTLING_STEPS = 10
"""No-op steps in which objects fall after a state is set; not counted as env steps, as in OpenVLA-OFT's evaluation."""


class Simulation:
    """A scene of one task. Actions: 6-D end-effector pose delta and gripper (-1 opens, +1 closes), each in [-1, 1]."""

    def __init__(self, problem: Path, rewrite: Callable[[str], str] | None = None, fast: bool = False) -> None:
        """Builds the scene of the BDDL file `problem`; `rewrite` may change its MuJoCo XML (visuals only).

        With `fast`, contact forces are solved once per physics step instead of three times; see `step`.
        """
        self._fast = fast
        base = TASK_MAPPING[get_problem_info(str(problem))["problem_name"]]

        class Scene(base):  # type: ignore[misc, valid-type]
            def _initialize_sim(self, xml_string: str | None = None) -> None:
                xml = xml_string or self.model.get_xml()
                super()._initialize_sim(xml_string=rewrite(xml) if rewrite else xml)

            def _assert_problem_name(self) -> None:
                assert self.parsed_problem["problem_name"] == base.__name__.lower()

        self.scene: Any = Scene(
            str(problem),
            robots=["Panda"],
            controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
            initialization_noise=None,
            use_camera_obs=False,
            has_offscreen_renderer=False,
            control_freq=CONTROL_HZ,
            ignore_done=True,
            hard_reset=False,
        )
        # robosuite would compute its observations 25 times per env step.
        self.scene._observables = {}
        self.model: mujoco.MjModel = self.scene.sim.model._model
        self.data: mujoco.MjData = self.scene.sim.data._data
        self._bind_robot()
        fingers = self._gripper.important_geoms
        self.contacts = Contacts(self.model, self.data, (tuple(fingers["left_finger"]), tuple(fingers["right_finger"])))

    def _bind_robot(self) -> None:
        """Looks up what `step` needs; robosuite makes a new controller at every reset."""
        robot = self.scene.robots[0]
        self._gripper = robot.gripper
        self._controller = controller = robot.controller
        controller.update = lambda force=False: None
        self._site = self.model.site(controller.eef_name).id
        self._hand = self.model.body(robot.robot_model.eef_name).id
        self._finger_qpos = np.asarray(robot._ref_gripper_joint_pos_indexes)
        fingers = _as_slice(robot._ref_joint_gripper_actuator_indexes)
        low, high = self.model.actuator_ctrlrange[fingers].T
        self._finger_bias, self._finger_weight = 0.5 * (high + low), 0.5 * (high - low)
        self._jacobian = np.zeros((6, self.model.nv))
        self._mass = np.zeros((self.model.nv, self.model.nv))
        # Views of arrays that stay where they are, made once and not in each physics step.
        data, dofs = self.data, _as_slice(controller.qvel_index)
        self._arm_control = data.ctrl[_as_slice(robot._ref_joint_actuator_indexes)]
        self._finger_control, self._arm_bias = data.ctrl[fingers], data.qfrc_bias[dofs]
        self._arm_jacobian, self._arm_mass = self._jacobian[:, dofs], self._mass[dofs, dofs]
        self._arm = Arm(
            (data.site_xpos[self._site], data.site_xmat[self._site].reshape(3, 3)),
            self._arm_jacobian.copy(),
            self._arm_mass.copy(),
            (data.qpos[_as_slice(controller.qpos_index)], data.qvel[dofs]),
        )
        self._arm_at_first: Arm | None = Arm(
            (controller.ee_pos, controller.ee_ori_mat),
            controller.J_full,
            np.ascontiguousarray(controller.mass_matrix),
            (controller.joint_pos, controller.joint_vel),
        )

    def reset(self, state: np.ndarray) -> None:
        """Sets the whole simulator state float64 [1 + nq + nv], then lets the objects settle.

        Raises:
            UserError: the state doesn't fit this scene.
        """
        size = 1 + self.model.nq + self.model.nv
        if state.shape != (size,):
            raise UserError(f"initial state has shape {state.shape}; this scene needs ({size},)")
        self.scene.robots[0].gripper.current_action = np.zeros(2)
        np.random.seed(SEED)
        while True:
            try:
                self.scene.reset()
                break
            except RandomizationError:
                continue
        self.scene.sim.set_state_from_flattened(state)
        mujoco.mj_forward(self.model, self.data)
        self.scene._check_success()
        self.scene._post_process()
        self._bind_robot()
        for _ in range(SETTLING_STEPS):
            self.step(SETTLING_ACTION)
        self.contacts.begin()

    def step(self, action: np.ndarray) -> bool:
        """One env step of 50 ms; True if the task is solved after it.

        Equal up to rounding to robosuite's own step, which recomputes positions and velocities three times per physics
        step. Only its constraint solver profits from that (each pass starts warm from the last), so only the solver is
        repeated here. A new controller computes its first torques from the arm's pose before the initial state was set;
        robosuite does so, and recorded demonstrations carry the effect.

        In `fast` stepping the solver isn't repeated: it starts from the last physics step's forces and runs once. The
        motion then departs from stock's by fractions of a millimetre (docs/results/libero_stepping.md).
        """
        model, data, controller, gripper = self.model, self.data, self._controller, self._gripper
        gains, rest = (controller.kp, controller.kd), controller.initial_joint
        closing = gripper.speed * np.array([-1.0, 1.0]) * np.sign(action[6:])
        fingers = np.clip(gripper.current_action + np.arange(1, SUBSTEPS + 1)[:, None] * closing, -1.0, 1.0)
        finger_control = self._finger_bias + self._finger_weight * fingers
        for substep in range(SUBSTEPS):
            mujoco.mj_step1(model, data)
            for _ in range(0 if self._fast else 1 if self._arm_at_first else 2):
                mujoco.mj_forwardSkip(model, data, mujoco.mjtStage.mjSTAGE_VEL, True)
            arm, self._arm_at_first = self._arm_at_first or self._read_arm(), None
            if substep == 0:
                controller.ee_pos, controller.ee_ori_mat = arm.hand
                controller.set_goal(action[:6])
                goal = (controller.goal_pos, controller.goal_ori)
            # MuJoCo limits them to what the actuators can, which are robosuite's limits.
            self._arm_control[:] = arm_torques(arm, goal, gains, self._arm_bias, rest)
            self._finger_control[:] = finger_control[substep]
            mujoco.mj_step2(model, data)
            if self.contacts.watched:
                self.contacts.look()
        gripper.current_action = fingers[-1]
        self.scene._post_process()
        return bool(self.scene._check_success())

    @property
    def hand_position(self) -> np.ndarray:
        """[3] m, between the fingertips, in the world frame."""
        return self.data.site_xpos[self._site].copy()

    @property
    def hand_rotation(self) -> np.ndarray:
        """[3, 3] of the frame that the controller turns; its y axis is the one along which the fingers move."""
        return self.data.site_xmat[self._site].reshape(3, 3).copy()

    @property
    def hand_quaternion(self) -> np.ndarray:
        """[4] (w, x, y, z) of the hand's body, the rotation that LIBERO reports."""
        return self.data.xquat[self._hand].copy()

    @property
    def fingers(self) -> np.ndarray:
        """[2] m, joint positions: about (0.04, -0.04) open, (0, 0) closed."""
        return self.data.qpos[self._finger_qpos]

    @property
    def gripper_command(self) -> float:
        """Command to the fingers, -1 (open) to 1 (closed); it moves by 0.25 per env step."""
        return float(self._gripper.current_action[-1])

    @property
    def nominal_hand_rotation(self) -> np.ndarray:
        """[3, 3] of the hand as the robot starts: pointing down."""
        return self._controller.initial_ee_ori_mat

    @property
    def goals(self) -> list[list[str]]:
        """The task's predicates, for example `["on", "bowl", "plate"]`; all must hold."""
        return self.scene.parsed_problem["goal_state"]

    @property
    def robot_root(self) -> int:
        """Root body of the robot."""
        return int(self.model.body_rootid[self._hand])

    @property
    def finger_bodies(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the bodies of the left and of the right finger."""
        left = ("gripper0_leftfinger", "gripper0_finger_joint1_tip")
        return left, ("gripper0_rightfinger", "gripper0_finger_joint2_tip")

    def body_of(self, name: str) -> int:
        """Root body of an object or fixture, or of the one that the region `name` belongs to."""
        region = self.scene.object_sites_dict.get(name)
        owner = region.parent_name if region is not None else name
        return int(self.model.body_rootid[self.scene.obj_body_id[owner]])

    def region_site(self, name: str) -> int | None:
        """The site of a region, or None if `name` is an object."""
        return self.model.site(name).id if name in self.scene.object_sites_dict else None

    def _read_arm(self) -> Arm:
        """The arm at the current position and velocity, in arrays that the next call overwrites."""
        model, data, jacobian = self.model, self.data, self._jacobian
        mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], self._site)
        if FULL_MASS_READS_DATA:
            mujoco.mj_fullM(model, data, self._mass)
        else:
            mujoco.mj_fullM(model, self._mass, data.qM)
        self._arm.jacobian[:], self._arm.mass[:] = self._arm_jacobian, self._arm_mass
        return self._arm


def _as_slice(indices: Sequence[int]) -> slice:
    """Neighbouring indices as a slice."""
    start = int(indices[0])
    assert list(indices) == list(range(start, start + len(indices)))
    return slice(start, start + len(indices))
