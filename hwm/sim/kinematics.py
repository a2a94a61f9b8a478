"""Arm inverse kinematics of the simulated humanoid: damped least squares on the grip point."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hwm.sim.graphics import import_mujoco

if TYPE_CHECKING:
    from hwm.sim.simulator import HumanoidSim

ARM_SLICES = (slice(6, 13), slice(13, 20))
"""Actions of the left and of the right arm."""


class ArmSolver:
    """Finds the seven joint angles that bring a hand's grip point to a place in the world."""

    def __init__(self, sim: HumanoidSim) -> None:
        self.sim = sim
        self._mujoco = import_mujoco(rendering=False)
        self._data = self._mujoco.MjData(sim.model)
        self._jacobian = np.zeros((3, sim.model.nv))

    def solve(
        self, hand: int, target: np.ndarray, joints: np.ndarray, iterations: int = 40
    ) -> tuple[np.ndarray, float]:
        """Joint angles (21,) with the arm of ``hand`` changed, and the distance left to ``target``.

        The body is taken to be where ``joints`` puts it, the base where it is now.
        """
        sim, mujoco, data = self.sim, self._mujoco, self._data
        arm = ARM_SLICES[hand]
        columns = sim.joint_dof[arm]
        low, high = sim.action_limits[arm].T
        home = sim.home[arm]
        joints = joints.copy()
        data.qpos[:] = sim.data.qpos
        gap = np.inf
        for _ in range(iterations):
            data.qpos[sim.joint_qpos] = joints
            mujoco.mj_kinematics(sim.model, data)
            mujoco.mj_comPos(sim.model, data)
            grip = sim.grip_position(hand, data)
            error = target - grip
            gap = float(np.linalg.norm(error))
            if gap < 0.008:
                break
            mujoco.mj_jac(sim.model, data, self._jacobian, None, grip, sim.hand_bodies[hand])
            jacobian = self._jacobian[:, columns]
            inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + 2e-3 * np.eye(3))
            rest = (np.eye(7) - inverse @ jacobian) @ (0.05 * (home - joints[arm]))
            joints[arm] = np.clip(joints[arm] + inverse @ error.clip(-0.1, 0.1) + rest, low, high)
        return joints, gap
