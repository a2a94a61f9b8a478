"""The true simulator in the place of a recording's step, to be shown or measured beside a model's dream.

The simulator is put into the world of a recording and goes through all its actions again, without drawing. Where a
store keeps its actions in half precision, that is not quite what was recorded. Against the camera of the shipped
held-out rooms, `tests/interact/test_twin.py` finds 28 to 37 dB PSNR (median 34) at its twelve starts, of which the
video codec is the larger part: beside a simulator with the unrounded actions it is 40 to 49 dB at eleven starts, and
29 dB at one where the robot had touched furniture.

An OpenGL context belongs to one thread, and two simulators of a process can spoil each other's. So `Twin` is for
scripts that use one at a time.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache

import numpy as np

from hwm.errors import HwmError
from hwm.sim.graphics import choose_backend
from hwm.sim.simulator import HumanoidSim
from hwm.sim.worlds import HEAD, Camera, World

FINER = 2
"""Drawn so many times finer and averaged, as tokenizers see recordings: edges are smooth in both."""


@dataclass(frozen=True)
class Origin:
    """How the simulator gets to a start: its seed and world, and all actions since its beginning, (N, K, A); and the
    cameras that were recorded."""

    seed: int
    actions: np.ndarray
    world: World = "rooms"
    cameras: tuple[Camera, ...] = HEAD


@cache
def available() -> bool:
    """Whether a simulator could run here: MuJoCo is installed, and a way to draw was found."""
    if importlib.util.find_spec("mujoco") is None:
        return False
    try:
        choose_backend()
    except RuntimeError:
        return False
    return True


class Twin:
    """The simulator at a start. Close it, or use `with`, before the next one of the process is made.

    Args:
        origin: seed, world and actions so far.
        size: side of a camera's frames in pixels.

    Attributes:
        sim: the simulator itself, whose frames are `FINER` times as fine.

    Raises:
        HwmError: MuJoCo or a way to draw is missing (the message names the packages), or the actions are not of this
            robot.
    """

    def __init__(self, origin: Origin, size: int) -> None:
        self.size = size
        try:
            self.sim = HumanoidSim(origin.seed, size * FINER, world=origin.world, cameras=origin.cameras)
        except (ImportError, RuntimeError, ValueError) as error:
            raise HwmError(str(error)) from error
        try:
            for actions in origin.actions[1:]:  # row 0 is the command in force at the beginning: the simulator has it
                self.step(actions)
        except HwmError:
            self.close()
            raise

    def step(self, actions_KA: np.ndarray) -> None:
        """Apply the K actions that lead to the next step.

        Raises:
            HwmError: actions of another width, or values that are not finite.
        """
        try:
            for action in actions_KA:
                self.sim.step(action)
        except ValueError as error:
            raise HwmError(f"true simulator: {error}") from error

    def frame(self) -> np.ndarray:
        """What the robot sees now, (size, size, 3) uint8; of several cameras one below the other."""
        return shrink(self.sim.frame(), FINER)

    def pose(self) -> np.ndarray:
        """Where the robot's base is, (3,): x and y in metres, yaw in radians, which goes on past pi."""
        position, yaw = self.sim.pose()
        return np.array([*position, yaw])

    def close(self) -> None:
        """Free the OpenGL context."""
        self.sim.close()

    def __enter__(self) -> Twin:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def shrink(picture: np.ndarray, times: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 as many times smaller on each side, averaged over areas."""
    total = np.zeros((len(picture) // times, picture.shape[1] // times, 3), np.uint16)
    for row in range(times):
        for column in range(times):
            total += picture[row::times, column::times]
    return (total / times**2).round().astype(np.uint8)
