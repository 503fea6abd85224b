"""The benchmark's controller `pd_ee_delta_pose` for one arm, without batches of one: the same targets in less time."""

from typing import Any

import numpy as np
import sapien

REACH_M, TURN_RAD = 0.1, -0.1
"""Displacement and rotation of an action of 1; the benchmark's rotations have that sign."""
CLOSED_M, OPEN_M = -0.01, 0.04
"""Targets of each finger; below 0 it still presses on something thin."""
ITERATIONS = 100


class Controller:
    """Inverse kinematics from where the hand is, and targets for the drives of nine joints."""

    def __init__(self, agent: Any) -> None:
        arm, fingers = (agent.controller.controllers[name] for name in ("arm", "gripper"))
        kinematics = arm.kinematics
        self._robot, self._model = arm.articulation._objs[0], kinematics.pmodel
        self._root, self._hand = (link._objs[0] for link in (arm.root_link, kinematics.end_link))
        self._hand_index, self._free = kinematics.end_link_idx, kinematics.qmask.numpy()
        self._known, self._moved = (
            indices.numpy()
            for indices in (kinematics.pmodel_active_joint_indices, kinematics.pmodel_controlled_joint_indices)
        )
        self._joints, self._fingers = ([joint._objs[0] for joint in part.joints] for part in (arm, fingers))

    def act(self, action: np.ndarray) -> None:
        """Sets the drives' targets for float [7]; the arm is told to stay where inverse kinematics finds no answer."""
        move, turn, fingers = np.clip(action[:3], -1, 1) * REACH_M, action[3:6], float(np.clip(action[6], -1, 1))
        turn = turn * (TURN_RAD / max(1.0, float(np.linalg.norm(turn))))
        hand = self._root.entity_pose.inv() * self._hand.entity_pose
        goal = sapien.Pose(hand.p + move, (_turned(turn) * hand).q)
        positions = self._robot.qpos[self._known]
        found, success, _ = self._model.compute_inverse_kinematics(
            self._hand_index, goal, initial_qpos=positions, active_qmask=self._free, max_iterations=ITERATIONS
        )
        for joint, target in zip(self._joints, (found if success else positions)[self._moved], strict=True):
            joint.set_drive_target(target)
        for finger in self._fingers:
            finger.set_drive_target(CLOSED_M + (fingers + 1) / 2 * (OPEN_M - CLOSED_M))


def _turned(angles: np.ndarray) -> sapien.Pose:
    """Rotation by three angles, rad, about x, then about the turned y and z."""
    turned = sapien.Pose()
    for axis, angle in enumerate(angles / 2):
        quaternion = np.zeros(4)
        quaternion[[0, 1 + axis]] = np.cos(angle), np.sin(angle)
        turned = turned * sapien.Pose(q=quaternion)
    return turned
