"""Recording one simulated episode."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwm.sim.behaviour import FPS, Behaviour
from hwm.sim.living import HomeBehaviour
from hwm.sim.simulator import HumanoidSim
from hwm.sim.worlds import HEAD, Camera, World

_BEHAVIOURS: dict[World, type[Behaviour]] = {"rooms": Behaviour, "home": HomeBehaviour}


def behaviour(sim: HumanoidSim, seed: int) -> Behaviour:
    """What the robot does in the world of a simulator: an endless iterator of commands."""
    return _BEHAVIOURS[sim.world](sim, seed)


def simulate_episode(
    seed: int,
    seconds: float,
    size: int = 256,
    every: int = 1,
    world: World = "rooms",
    cameras: Sequence[Camera] = HEAD,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames (M, size, size, 3) uint8, actions (N, 25) float32 and states (N, 25) float32 of one episode at 30 Hz.
    Of several cameras the pictures are one below the other, (M, cameras * size, size, 3).

    ``actions[t]`` is the command applied between time step t-1 and t; ``actions[0]`` is the one in force
    at the start. ``states[t]`` is measured at the moment of step t. ``frames[i]`` shows step i * every:
    drawing is what costs time, so fewer frames with all their actions are made several times as fast.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    count = round(seconds * FPS)
    if count < 1:
        raise ValueError(f"{seconds} seconds hold no frame")
    frames = np.empty(((count - 1) // every + 1, len(cameras) * size, size, 3), np.uint8)
    actions = np.empty((count, 25), np.float32)
    states = np.empty((count, 25), np.float32)
    with HumanoidSim(seed, size, world=world, cameras=cameras) as sim:
        commands = behaviour(sim, seed)
        actions[0], states[0], frames[0] = sim.home, sim.state(), sim.frame()
        for t in range(1, count):
            actions[t] = next(commands)
            states[t] = sim.step(actions[t])
            if t % every == 0:
                frames[t // every] = sim.frame()
    _check(seed, frames, actions, states)
    return frames, actions, states


def _check(seed: int, frames: np.ndarray, actions: np.ndarray, states: np.ndarray) -> None:
    """Raise where an episode cannot be used for training."""
    if not (np.isfinite(actions).all() and np.isfinite(states).all()):
        raise RuntimeError(f"episode {seed}: the simulation became unstable (actions or states are not finite)")
    spread = float(frames[:: max(len(frames) // 50, 1)].std())
    if spread <= 5:
        raise RuntimeError(
            f"episode {seed}: the frames are almost uniform (standard deviation {spread:.1f}); "
            "is another simulator of this process still open, or is OpenGL broken?"
        )
