"""The simulated humanoid: a 25-action robot in random rooms, seen through its own camera.

Needs the extra ``sim`` (MuJoCo), which is imported when a simulator is made and not before.
"""

from hwm.sim.episode import simulate_episode
from hwm.sim.robot import ACTION_NAMES
from hwm.sim.simulator import HumanoidSim

__all__ = ["ACTION_NAMES", "HumanoidSim", "simulate_episode"]
