"""A world model as a Gymnasium environment.

    import gymnasium
    import hwm.interact.env  # registers it

    env = gymnasium.make("hwm/SimG1-v0", max_steps=50)
    frame, info = env.reset(seed=0, options={"start": "start:3"})

`gymnasium.make("hwm.interact.env:hwm/SimG1-v0")` spares the second import.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hwm.errors import HwmError
from hwm.interact.session import Session, World
from hwm.interact.starts import Start
from hwm.interact.tasks import distance
from hwm.pictures.stack import side_by_side

try:
    import gymnasium
except ImportError as error:
    raise HwmError("the environment needs the extra `env`: pip install 'humanoid-world-models[env]'") from error

ID = "hwm/SimG1-v0"

Reward = Callable[[np.ndarray, dict[str, Any]], float]

_open = lru_cache(maxsize=4)(World.open)  # environments of one process share their models: their weights never change


class WorldModelEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Observations are frames (H, W, 3) uint8, several cameras one below the other; actions are commands (A,) in the
    units of the robot, within its limits.

    `info` holds `step`, `hash` (checksum of the step's latents), `applied` (A,) the command in force, `start`, and with
    a goal `distance`. The model's randomness follows from the seed of `reset`. No episode terminates by itself.

    Args:
        world: what to act in; None opens `model` with starts of `store`.
        model, store, device, dtype: as of `World.open`, shared by the environments of a process.
        start: where episodes begin; None draws from the gallery. `reset(options={"start": ...})` goes before it.
        max_steps: after which an episode is truncated.
        reward: frame and `info` -> reward of a step; None is minus the distance to the goal, or 0 without one.
        goal: (H, W, 3) uint8.
        ramp: approach a command no faster than commands change in the data; False takes it at once.
        sampler: how the model samples; None is its own choice.

    Raises:
        HwmError: of `World.open`; or a goal of another size, or nowhere to start from.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        world: World | None = None,
        *,
        model: str | Path = "masked_hwm_mini",
        store: str | Path | None = "mini_heldout",
        device: str = "auto",
        dtype: str = "auto",
        start: str | Start | None = None,
        max_steps: int = 100,
        reward: Reward | None = None,
        goal: np.ndarray | None = None,
        ramp: bool = True,
        sampler: Any = None,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise HwmError(f"there is no render mode {render_mode!r}; there is rgb_array")
        if max_steps < 1:
            raise HwmError(f"an episode has at least one step, not {max_steps}")
        self.world = world or _open(model, store=store, device=device, dtype=dtype)
        if start is None and self.world.gallery is None:
            raise HwmError("there is no gallery to start from: give a store, or a start")
        first = self.world.start(start or self._names()[0])
        self.start, self.max_steps, self.reward, self.goal, self.ramp = start, max_steps, reward, goal, ramp
        self.embodiment, self.render_mode = first.embodiment, render_mode
        self.session = Session(self.world, sampler)
        limits, shape = self.world.limits[first.embodiment], (*self.world.tokenizer.size, 3)
        if goal is not None and goal.shape != shape:
            raise HwmError(f"the goal is a picture of shape {goal.shape}, the world's are {shape}")
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        # what never moves in the data cannot be commanded, but libraries divide by the width of a space
        low, high = limits.low.astype(np.float32), limits.high.astype(np.float32)
        self.action_space = gymnasium.spaces.Box(low, np.where(high > low, high, low + np.float32(1e-3)))
        self.metadata = {**self.metadata, "render_fps": round(self.world.model.spec.fps / self.world.model.group)}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; `options` may name a `start`, or be one."""
        super().reset(seed=seed)
        unknown = set(options or {}) - {"start"}
        if unknown:
            raise HwmError(f"the options of reset are 'start', not {', '.join(sorted(unknown))}")
        chosen = (options or {}).get("start") or self.start or str(self.np_random.choice(self._names()))
        start = self.world.start(chosen)
        if start.embodiment != self.embodiment:
            raise HwmError(
                f"start {start.name!r} is of a {start.embodiment!r}, this environment of {self.embodiment!r}"
            )
        self._frame = self.session.reset(start, int(self.np_random.integers(1 << 31)))[-1]
        return self._frame.copy(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step of the model, with a command (A,); what is outside the action space is brought to its edge."""
        self._frame = self.session.step(np.asarray(action, np.float32), self.ramp)[-1]
        frame, info = self._frame.copy(), self._info()
        if self.reward is not None:
            reward = float(self.reward(frame, info))
        else:
            reward = -float(info.get("distance", 0.0))
        return frame, reward, False, self.session.steps >= self.max_steps, info

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The frame last seen, several cameras side by side, where `render_mode` is rgb_array."""
        return side_by_side(self._frame, self.world.views).copy() if self.render_mode else None

    def _info(self) -> dict[str, Any]:
        session = self.session
        assert session.start is not None
        info: dict[str, Any] = {
            "step": session.steps,
            "hash": session.hashes[-1] if session.hashes else 0,
            "applied": session.last.copy(),
            "start": session.start.name,
        }
        if self.goal is not None:
            info["distance"] = distance(self._frame, self.goal)
        return info

    def _names(self) -> list[str]:
        gallery = self.world.gallery
        return [] if gallery is None else gallery.names()


def register() -> None:
    """Make `gymnasium.make("hwm/SimG1-v0")` known; importing this module has done it."""
    if ID not in gymnasium.registry:
        gymnasium.register(id=ID, entry_point="hwm.interact.env:WorldModelEnv")


register()
