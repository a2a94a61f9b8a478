"""The plan of the home: three rooms, their colours, the doorways between them, and what is free floor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from hwm.sim import finishes
from hwm.sim.building import Place
from hwm.sim.finishes import RGB, WHITE, Finish, Rectangle


@dataclass(frozen=True)
class Space:
    """One room of the home: its middle, the half sizes between its walls, and its doorways as (wall, place)."""

    name: str
    x: float
    y: float
    half_x: float
    half_y: float
    floor: Finish
    walls: tuple[Finish, Finish, Finish, Finish]
    """West, south, east and north, as all that is counted by walls."""
    doors: tuple[tuple[int, float], ...]
    """The wall and the place of each doorway along it, to the right of its middle as seen from inside."""
    trim: RGB

    @property
    def rectangle(self) -> Rectangle:
        return (self.x - self.half_x, self.x + self.half_x, self.y - self.half_y, self.y + self.half_y)


SPACES = (
    Space(
        "living room", 0.0, 0.0, 2.25, 2.1, finishes.rings,
        (
            finishes.plain((0.93, 0.62, 0.34), (0.86, 0.52, 0.27)),
            finishes.two_tone((0.95, 0.80, 0.55), (0.70, 0.24, 0.16)),
            finishes.plain((0.95, 0.80, 0.55), (0.90, 0.70, 0.42)),
            finishes.two_tone((0.93, 0.62, 0.34), (0.62, 0.20, 0.14), 0.75),
        ),
        ((0, -0.5), (3, 0.95)), (0.45, 0.24, 0.12),
    ),
    Space(
        "kitchen", -4.55, 0.0, 2.1, 2.1, finishes.checks,
        (
            finishes.plain((0.62, 0.86, 0.72), (0.50, 0.78, 0.64)),
            finishes.tiled((0.80, 0.93, 0.84), (0.10, 0.45, 0.42)),
            finishes.two_tone((0.80, 0.93, 0.84), (0.30, 0.62, 0.52)),
            finishes.plain((0.45, 0.74, 0.68), (0.36, 0.64, 0.60)),
        ),
        ((2, 0.5),), WHITE,
    ),
    Space(
        "bedroom", 0.0, 4.4, 2.25, 2.1, finishes.carpet,
        (
            finishes.striped((0.66, 0.62, 0.88), (0.80, 0.77, 0.95)),
            finishes.plain((0.80, 0.77, 0.95), (0.70, 0.66, 0.90)),
            finishes.striped((0.86, 0.60, 0.74), (0.94, 0.76, 0.84), 1.1),
            finishes.plain((0.42, 0.46, 0.78), (0.34, 0.37, 0.68)),
        ),
        ((1, -0.95),), (0.88, 0.88, 0.94),
    ),
)  # fmt: skip


@dataclass
class Home(Place):
    """The three rooms, as what is free and what is not."""

    spaces: tuple[Space, ...] = SPACES
    doorways: list[Rectangle] = field(default_factory=list)
    walls: list[Rectangle] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._solid = np.zeros((0, 4))

    def settle(self) -> None:
        """Note what stands in the way, once everything is built."""
        pieces = [(f.x - f.half_x, f.x + f.half_x, f.y - f.half_y, f.y + f.half_y) for f in self.furniture]
        self._solid = np.array([*self.walls, *pieces])

    def space_of(self, point: np.ndarray) -> int:
        """Number of the room that a floor point lies in, or of the nearest."""
        return int(
            np.argmin([max(abs(point[0] - s.x) - s.half_x, abs(point[1] - s.y) - s.half_y) for s in self.spaces])
        )

    def wander(self, rng: np.random.Generator, share: float) -> np.ndarray:
        return self._point(rng, int(rng.integers(len(self.spaces))), share)

    def somewhere(self, rng: np.random.Generator, space: int, margin: float = 0.45) -> np.ndarray:
        """A random free point of one room."""
        while not self.is_free(point := self._point(rng, space, 1.0), margin):
            pass
        return point

    def _point(self, rng: np.random.Generator, space: int, share: float) -> np.ndarray:
        room = self.spaces[space]
        return np.array([room.x, room.y]) + rng.uniform(-share, share, 2) * [room.half_x, room.half_y]

    def starts(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        while True:
            yield self.somewhere(rng, int(rng.integers(len(self.spaces))), 0.5)

    def clearance(self, point: np.ndarray) -> float:
        x, y = float(point[0]), float(point[1])
        floors = [*(s.rectangle for s in self.spaces), *self.doorways]
        if not any(x0 <= x <= x1 and y0 <= y <= y1 for x0, x1, y0, y1 in floors):
            return 0.0
        x0, x1, y0, y1 = self._solid.T
        dx, dy = np.maximum(np.maximum(x0 - x, x - x1), 0.0), np.maximum(np.maximum(y0 - y, y - y1), 0.0)
        return float(np.hypot(dx, dy).min())

    def middle(self, point: np.ndarray) -> np.ndarray:
        space = self.spaces[self.space_of(point)]
        return np.array([space.x, space.y])
