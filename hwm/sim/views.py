"""What could be seen from anywhere in the simulator's world: for finding out which place a picture shows.

Shape suffixes: N places, S side of a picture, 3 colours or coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from hwm.sim import robot
from hwm.sim.twin import FINER, Twin, shrink
from hwm.sim.worlds import HEAD

FACES = ((0.0, 0.0), (90.0, 0.0), (180.0, 0.0), (270.0, 0.0), (0.0, -90.0))
"""Azimuth and elevation in degrees of the sides of `surroundings`: all around, and the floor."""

AWAY = (100.0, 100.0)
"""Where the robot is out of sight."""


class Views:
    """Pictures of a twin's world as it is now, whose state they leave as it was."""

    def __init__(self, twin: Twin) -> None:
        self.sim, self.size = twin.sim, twin.size
        self._mujoco = self.sim._mujoco
        self._bare = self._mujoco.MjvOption()
        self._bare.geomgroup[:] = self.sim._view.geomgroup
        self._bare.geomgroup[2] = 0  # the robot's meshes, which take the longest
        self._bare.sitegroup[:] = 0

    def seen_from(self, poses_N3: np.ndarray) -> np.ndarray:
        """What the robot would see with its base at these poses (x, y, yaw), all else alike; (N, S, S, 3) uint8."""
        with self._kept():
            return np.stack([self._seen(pose) for pose in np.asarray(poses_N3, np.float64)])

    def _seen(self, pose: np.ndarray) -> np.ndarray:
        self.sim.place(pose[:2], float(pose[2]))
        return shrink(self.sim.frame(HEAD), FINER)

    def camera(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the camera is, (3,), and its axes to the right, up and backwards as columns, (3, 3), for a base at the
        origin that faces along x."""
        (x, y), yaw = self.sim.pose()
        camera = self.sim.data.camera(robot.CAMERA_NAME)
        turn = np.array([[np.cos(yaw), np.sin(yaw), 0], [-np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        return turn @ (camera.xpos - [x, y, 0]), turn @ camera.xmat.reshape(3, 3)

    def body(self) -> np.ndarray:
        """Where the robot sees itself, (S, S) bool."""
        renderer, model = self.sim.renderer, self.sim.model
        renderer.enable_segmentation_rendering()
        try:
            renderer.update_scene(self.sim.data, robot.CAMERA_NAME, self.sim._view)
            ids, kinds = np.moveaxis(renderer.render(), -1, 0)
        finally:
            renderer.disable_segmentation_rendering()
        mine = model.body_rootid[model.geom_bodyid] == model.body("base").id
        own = (kinds == int(self._mujoco.mjtObj.mjOBJ_GEOM)) & (ids >= 0)
        own[own] = mine[ids[own]]
        return own.reshape(self.size, FINER, self.size, FINER).any((1, 3))

    def surroundings(self, places_N3: np.ndarray, side: int) -> np.ndarray:
        """What there is to see from points of the world without the robot, (N, len(FACES), side, side, 3) uint8.

        Five faces of a cube around each point, each of 90 degrees; nobody looks at the ceiling.
        """
        renderer, camera = self.sim.renderer, self._mujoco.MjvCamera()
        angle = self.sim.model.vis.global_.fovy
        camera.type, camera.distance = self._mujoco.mjtCamera.mjCAMERA_FREE, 1e-3
        out = np.empty((len(places_N3), len(FACES), side, side, 3), np.uint8)
        with self._kept():
            self.sim.place(np.array(AWAY), 0.0)
            self.sim.model.vis.global_.fovy = 90.0
            try:
                for n, place in enumerate(places_N3):
                    for face, (azimuth, elevation) in enumerate(FACES):
                        camera.lookat[:] = place
                        camera.azimuth, camera.elevation = azimuth, elevation
                        renderer.update_scene(self.sim.data, camera, self._bare)
                        out[n, face] = shrink(renderer.render()[::FINER, ::FINER], self.size // side)
            finally:
                self.sim.model.vis.global_.fovy = angle
        return out

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Afterwards the simulation is in the state in which it was."""
        mujoco, model, data = self._mujoco, self.sim.model, self.sim.data
        what = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(model, what))
        mujoco.mj_getState(model, data, state, what)
        try:
            yield
        finally:
            mujoco.mj_setState(model, data, state, what)
            mujoco.mj_forward(model, data)
            mujoco.mj_setState(model, data, state, what)  # what a first step is solved from has changed


def rays(size: int, fovy: float) -> np.ndarray:
    """Directions that the pixels of a square picture look in, (size, size, 3): to the right, up and backwards."""
    along = np.tan(np.radians(fovy) / 2) * (2 * np.arange(size) + 1 - size) / size
    right, down = np.meshgrid(along, along)
    return np.stack([right, -down, -np.ones_like(right)], -1)


def texels(directions: np.ndarray, side: int) -> np.ndarray:
    """Which of the len(FACES) * side * side values of `surroundings` lie in these directions (..., 3)."""
    x, y, z = np.moveaxis(directions, -1, 0)
    level = np.maximum(np.abs(x), np.abs(y))
    below = z < -level
    turn = np.where(np.abs(x) >= np.abs(y), np.where(x > 0, 0, 2), np.where(y > 0, 1, 3))
    face = np.where(below, len(FACES) - 1, turn)
    depth = np.where(below, -z, level)
    right = np.select([below, turn == 0, turn == 1, turn == 2], [-y, -y, x, y], -x) / depth
    up = np.where(below, x, z) / depth
    column = ((right + 1) / 2 * side).astype(int).clip(0, side - 1)
    row = ((1 - up) / 2 * side).astype(int).clip(0, side - 1)
    return (face * side + row) * side + column


def fovy_of(twin: Twin) -> float:
    """The camera's field of view from top to bottom, in degrees."""
    fovy: Any = twin.sim.model.camera(robot.CAMERA_NAME).fovy
    return float(np.squeeze(fovy))
