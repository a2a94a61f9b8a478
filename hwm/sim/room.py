"""A random room for each seed: walls, furniture, posters and loose objects, all procedural."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hwm.sim import patterns
from hwm.sim.building import Builder, Furniture, Place, gap

if TYPE_CHECKING:
    import mujoco

WALL_HALF_HEIGHT = 1.35


@dataclass
class Room(Place):
    """One rectangular room around the origin."""

    half_x: float = 3.0
    half_y: float = 3.0

    def starts(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        yield rng.uniform(-0.6, 0.6, 2)
        while True:
            yield rng.uniform(-1.0, 1.0, 2)

    def wander(self, rng: np.random.Generator, share: float) -> np.ndarray:
        return rng.uniform(-share, share, 2) * [self.half_x, self.half_y]

    def clearance(self, point: np.ndarray) -> float:
        walls = min(self.half_x - 0.05 - abs(point[0]), self.half_y - 0.05 - abs(point[1]))
        return float(min([walls, *(gap(piece, point) for piece in self.furniture)]))

    def middle(self, point: np.ndarray) -> np.ndarray:
        return np.zeros(2)


def add_room(spec: mujoco.MjSpec, rng: np.random.Generator) -> Room:
    """Add a random room to an empty world."""
    room = Room(half_x=rng.uniform(2.5, 3.3), half_y=rng.uniform(2.5, 3.3))
    _RoomBuilder(spec, rng, room).build()
    return room


class _RoomBuilder(Builder):
    """Adds the parts of a room one after the other."""

    def __init__(self, spec: mujoco.MjSpec, rng: np.random.Generator, room: Room) -> None:
        super().__init__(spec, rng, room)
        self.room = room
        self.hue = rng.uniform()

    def build(self) -> None:
        self._shell()
        walls = self.rng.permutation(4)
        tables = int(self.rng.integers(2, 4))
        for wall in walls[:tables]:
            self._table(int(wall))
        if self.rng.random() < 0.7:
            self._shelf(int(walls[3]))
        for wall in range(4):
            self._pictures(wall)
        self._objects()
        self._lights()

    # ------------------------------------------------------------------ helpers
    def _wall_frame(self, wall: int) -> tuple[np.ndarray, np.ndarray, float, float, list[float]]:
        """Inward normal, direction along the wall, its distance, its half length, its quaternion."""
        angle = wall * np.pi / 2
        inward = np.round([np.cos(angle), np.sin(angle)])
        along = np.array([-inward[1], inward[0]])
        distance, half = (self.room.half_x, self.room.half_y) if wall % 2 == 0 else (self.room.half_y, self.room.half_x)
        return inward, along, distance, half, [np.cos(angle / 2), 0, 0, np.sin(angle / 2)]

    # ------------------------------------------------------------------ parts
    def _shell(self) -> None:
        rng, room = self.rng, self.room
        floor = patterns.floor(rng, self.hue + rng.uniform(0.3, 0.7))
        repeat = (room.half_x / patterns.FLOOR_METRES * 2, room.half_y / patterns.FLOOR_METRES * 2)
        self._fixed(
            self.geom.mjGEOM_PLANE, [0, 0, 0], [room.half_x, room.half_y, 1], material=self._material(floor, repeat)
        )
        self._fixed(
            self.geom.mjGEOM_BOX, [0, 0, 2 * WALL_HALF_HEIGHT + 0.05], [room.half_x, room.half_y, 0.05], solid=False,
            rgba=[*patterns.colour(rng.uniform(), 0.1, rng.uniform(0.75, 0.95)), 1],
        )  # fmt: skip
        offsets = rng.permutation(4) / 4
        for wall in range(4):
            inward, _, distance, half, quaternion = self._wall_frame(wall)
            pixels = patterns.wall(rng, self.hue + offsets[wall] + rng.uniform(-0.06, 0.06))
            centre = -inward * distance
            self._fixed(
                self.geom.mjGEOM_BOX, [*centre, WALL_HALF_HEIGHT], [0.05, half, WALL_HALF_HEIGHT],
                quat=quaternion, material=self._material(pixels),
            )  # fmt: skip

    def _pictures(self, wall: int) -> None:
        """One to three pictures, windows or doors on a wall."""
        rng = self.rng
        inward, along, distance, half, quaternion = self._wall_frame(wall)
        slots = rng.permutation([-0.55, 0.0, 0.55])[: int(rng.integers(1, 4))]
        for slot in slots:
            centre = -inward * (distance - 0.05) + along * (slot + rng.uniform(-0.1, 0.1)) * half
            door = rng.random() < 0.2 and abs(slot) > 0.3
            width, height = (0.42, 1.0) if door else (rng.uniform(0.25, 0.5), rng.uniform(0.25, 0.45))
            level = height if door else rng.uniform(1.25, 1.75)
            pixels = patterns.door(rng) if door else patterns.poster(rng)
            self._fixed(
                self.geom.mjGEOM_BOX, [*centre, level], [0.012, width, height], solid=False,
                quat=quaternion, material=self._material(pixels),
            )  # fmt: skip

    def _table(self, wall: int) -> None:
        rng = self.rng
        inward, along, distance, half, _ = self._wall_frame(wall)
        length, depth, height = rng.uniform(0.55, 0.8), rng.uniform(0.24, 0.32), rng.uniform(0.62, 0.78)
        centre = -inward * (distance - 0.06 - depth) + along * rng.uniform(-0.3, 0.3) * half
        half_x, half_y = (depth, length) if wall % 2 == 0 else (length, depth)
        x, y = float(centre[0]), float(centre[1])
        self.room.furniture.append(Furniture(x, y, half_x, half_y, height, (float(inward[0]), float(inward[1]))))
        top = self._material(patterns.table_top(rng))
        self._fixed(self.geom.mjGEOM_BOX, [x, y, height - 0.02], [half_x, half_y, 0.02], material=top)
        leg_colour = [*patterns.colour(rng.uniform(), rng.uniform(0.1, 0.7), rng.uniform(0.25, 0.8)), 1]
        below = (height - 0.04) / 2
        if rng.random() < 0.4:
            self._fixed(self.geom.mjGEOM_BOX, [x, y, below], [half_x * 0.95, half_y * 0.95, below], rgba=leg_colour)
            return
        for sign_x in (-1, 1):
            for sign_y in (-1, 1):
                corner = [x + sign_x * (half_x - 0.05), y + sign_y * (half_y - 0.05), below]
                self._fixed(self.geom.mjGEOM_CYLINDER, corner, [0.03, below, 0], rgba=leg_colour)

    def _shelf(self, wall: int) -> None:
        """A tall cabinet with coloured boards and a few boxes that stay where they are."""
        rng = self.rng
        inward, along, distance, half, _ = self._wall_frame(wall)
        length, depth, boards = rng.uniform(0.4, 0.65), 0.17, 3
        centre = -inward * (distance - 0.06 - depth) + along * rng.uniform(-0.3, 0.3) * half
        height = rng.uniform(1.2, 1.6)
        half_x, half_y = (depth, length) if wall % 2 == 0 else (length, depth)
        x, y = float(centre[0]), float(centre[1])
        self.room.furniture.append(Furniture(x, y, half_x, half_y, height, (float(inward[0]), float(inward[1])), False))
        colour = [*patterns.colour(rng.uniform(), rng.uniform(0.3, 0.8), rng.uniform(0.4, 0.9)), 1]
        for end in (-1, 1):
            side = centre + along * end * length
            self._fixed(
                self.geom.mjGEOM_BOX, [*side, height / 2],
                [depth, 0.015, height / 2] if wall % 2 == 0 else [0.015, depth, height / 2], rgba=colour,
            )  # fmt: skip
        for board in range(boards + 1):
            level = 0.05 + (height - 0.07) * board / boards
            self._fixed(self.geom.mjGEOM_BOX, [x, y, level], [half_x, half_y, 0.015], rgba=colour)
            if board == boards:
                break
            for slot in (-0.5, 0.0, 0.5):
                if rng.random() < 0.6:
                    size = rng.uniform([0.06, 0.06, 0.07], [0.12, 0.12, 0.13])
                    place = centre + along * slot * length
                    self._fixed(
                        self.geom.mjGEOM_BOX, [*place, level + 0.015 + size[2]], list(size), solid=False,
                        rgba=[*patterns.colour(rng.uniform(), 0.8, 0.85), 1],
                    )  # fmt: skip

    def _objects(self) -> None:
        """Six to eight small objects near the front edge of the tables, three to five larger on the floor."""
        rng, room = self.rng, self.room
        tables = [piece for piece in room.furniture if piece.table]
        on_tables = int(rng.integers(6, 9))
        hues = self.hue + rng.permutation(on_tables + 5) / (on_tables + 5)
        placed: list[np.ndarray] = []
        for k in range(on_tables):
            table = tables[k % len(tables)]
            spot = self._on_table(table, placed)
            placed.append(spot)
            self._object(spot, table.height, rng.uniform(0.032, 0.05, 3), float(hues[k]), True)
        on_floor = int(rng.integers(3, 6))
        for k in range(on_floor):
            for _ in range(30):
                spot = rng.uniform(-0.75, 0.75, 2) * [room.half_x, room.half_y]
                if room.is_free(spot, 0.3) and all(np.hypot(*(spot - other)) > 0.5 for other in placed):
                    break
            placed.append(spot)
            self._object(spot, 0.0, rng.uniform(0.09, 0.17, 3), float(hues[on_tables + k]), False)

    def _lights(self) -> None:
        rng, room = self.rng, self.room
        for end in (-1, 1):
            place = [end * rng.uniform(0.2, 0.6) * room.half_x, rng.uniform(-0.6, 0.6) * room.half_y, 2.4]
            warmth = rng.uniform(-0.06, 0.06)
            strength = rng.uniform(0.35, 0.55)
            self.world.add_light(
                pos=place, dir=[0, 0, -1], cutoff=89, exponent=1, castshadow=False,
                diffuse=[strength + warmth, strength, strength - warmth], specular=[0.1, 0.1, 0.1],
            )  # fmt: skip
