"""What the simulated humanoid does in the home: it goes about all rooms, looks around, and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from hwm.sim.behaviour import FPS, Behaviour, wrap
from hwm.sim.plan import Home
from hwm.sim.routes import Routes

if TYPE_CHECKING:
    from hwm.sim.simulator import HumanoidSim


class HomeBehaviour(Behaviour):
    """Commands for a simulator in the home: as `Behaviour`'s, with ways through doors and skills of its own."""

    stretch = (1.5, 4.0)
    arrived = 0.1

    def __init__(self, sim: HumanoidSim, seed: int, random_share: float = 0.5) -> None:
        super().__init__(sim, seed, random_share)
        assert isinstance(sim.room, Home)
        self.home = sim.room
        low = (min(s.rectangle[0] for s in self.home.spaces), min(s.rectangle[2] for s in self.home.spaces))
        high = (max(s.rectangle[1] for s in self.home.spaces), max(s.rectangle[3] for s in self.home.spaces))
        self._routes = Routes(self.home, low, high)

    def _skills(self, holding: bool) -> dict[str, float]:
        shares = {"tour": 0.46, "look_away": 0.14, "shuttle": 0.07, "idle": 0.04, "wave": 0.05, "crouch": 0.04}
        return shares | {"place" if holding else "fetch": 0.2}

    def _route(self, goal: np.ndarray) -> list[np.ndarray]:
        return self._routes.way(self.sim.pose()[0], goal)

    def _drive(self, goal: np.ndarray, facing: float | None, limit: int) -> Iterator[None]:
        """As in a room, but where the way turns out blocked, back off and find another."""
        left = limit
        while left > 0:
            blocked = 0
            for _ in super()._drive(goal, facing, left):
                left -= 1
                wished = self.target.forward
                blocked = blocked + 1 if abs(wished) > 0.05 and not self._allowed(wished) else 0
                if blocked > FPS // 3:
                    break
                yield
            else:
                return
            self.target.forward, self.target.turn = -0.3, 0.0
            yield from self._wait(FPS // 2)
            left -= FPS // 2

    def _tour(self) -> Iterator[None]:
        """Drive to a free place, most often in another room."""
        self._rest()
        here = self.home.space_of(self.sim.pose()[0])
        others = [k for k in range(len(self.home.spaces)) if k != here]
        room = int(self.rng.choice(others)) if self.rng.random() < 0.85 else here
        yield from self._drive(self.home.somewhere(self.rng, room), None, limit=self._frames(9.0, 16.0))

    def _look_away(self) -> Iterator[None]:
        """Turn on the spot by a large angle and, most often, back again."""
        rng = self.rng
        if rng.random() < 0.5:
            self._rest()
        angle = float(
            rng.choice([-1, 1]) * rng.choice([np.pi / 2, np.pi, 1.5 * np.pi, 2 * np.pi]) * rng.uniform(0.9, 1.1)
        )
        yield from self._turn(angle)
        yield from self._wait(self._frames(0.2, 1.2))
        if rng.random() < 0.75:
            yield from self._turn(-angle)

    def _turn(self, angle: float) -> Iterator[None]:
        """Turn the base by an angle that may be more than a full turn."""
        quick = self.rng.uniform(0.7, 1.5)
        left, (_, before) = angle, self.sim.pose()
        for _ in range(round(abs(angle) / quick * FPS) + 2 * FPS):
            _, yaw = self.sim.pose()
            left -= wrap(yaw - before)
            before = yaw
            if abs(left) < 0.05:
                break
            self.target.turn = float(np.clip(3.0 * left, -quick, quick))
            yield
        self.target.turn = 0.0

    def _shuttle(self) -> Iterator[None]:
        """Drive straight ahead and back again, or the other way round."""
        speed, duration = self.rng.uniform(0.3, 0.6), self._frames(0.8, 1.8)
        first = 1.0 if self.rng.random() < 0.65 else -1.0
        for direction in (first, -first):
            self.target.forward = direction * speed
            yield from self._wait(duration)
            self.target.forward = 0.0
            yield from self._wait(self._frames(0.1, 0.4))

    def _idle(self) -> Iterator[None]:
        """Stand still, and perhaps nod."""
        if self.rng.random() < 0.5:
            self.target.joints[20] = self.rng.uniform(-0.2, 0.6)
        yield from self._wait(self._frames(0.5, 2.0))
