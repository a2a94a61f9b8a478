"""What policies are scored by, from pictures alone, so that a dream and a simulator can be scored alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from hwm.errors import HwmError
from hwm.evaluate.obey import motion_by_step
from hwm.pictures.video import to_video


@dataclass(frozen=True)
class Task:
    """A score of an episode; more is better.

    Attributes:
        score: frames (T, H, W, 3) uint8, the start's last one first, and the goal (H, W, 3) uint8 or None -> return.
        unit: of the score.
        goal: whether the score needs a goal.
    """

    score: Callable[[np.ndarray, np.ndarray | None], float]
    unit: str
    goal: bool = False


def distance(frame: np.ndarray, goal: np.ndarray) -> float:
    """Root mean square difference of two pictures (H, W, 3) uint8, from 0 (equal) to 1 (black and white).

    Raises:
        HwmError: they are of different sizes.
    """
    if frame.shape != goal.shape:
        raise HwmError(f"the goal is a picture of shape {goal.shape}, the world's are {frame.shape}")
    return float(np.sqrt(np.mean((frame.astype(np.float64) - goal) ** 2)) / 255)


def reach_view(frames: np.ndarray, goal: np.ndarray | None) -> float:
    """How near the last view is to the goal: minus their distance."""
    if goal is None:
        raise HwmError("reach_view needs a goal: the start must lie in a recording that goes on long enough")
    return -distance(frames[-1], goal)


def turn(frames: np.ndarray, goal: np.ndarray | None) -> float:
    """How far the view turned to the left, in pixels: the sum of the picture's shifts from step to step."""
    size = (frames.shape[1], frames.shape[2])
    with torch.inference_mode():
        return float(motion_by_step(to_video(frames, size)[None], 1)[0, :, 0].sum())


TASKS: dict[str, Task] = {
    "turn": Task(turn, "pixels"),
    "reach_view": Task(reach_view, "RMS", goal=True),
}
