"""The home: three furnished rooms joined by open doorways, the same for every seed.

By seed vary what stands on the tables and lies on the floor, the light, and where the robot begins. Light and shadow
of all that is fixed are painted into the textures of floors and walls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hwm.sim import finishes
from hwm.sim.building import Builder, Furniture
from hwm.sim.finishes import RGB, WHITE, Finish, Rectangle
from hwm.sim.plan import Home, Space
from hwm.sim.robot import HIDDEN_GROUP

if TYPE_CHECKING:
    import mujoco

HEIGHT = 2.7
WALL = 0.1
"""Thickness of a room's own walls; between two rooms there are two of them."""
DOOR_HALF, DOOR_HEIGHT = 0.56, 2.1
FLOOR_DENSITY, WALL_DENSITY = 100, 64  # pixels of texture a metre


def add_home(spec: mujoco.MjSpec, rng: np.random.Generator) -> Home:
    """Add the home to an empty world; only loose objects and light depend on the random numbers."""
    home = Home()
    _HomeBuilder(spec, rng, home).build()
    return home


@dataclass(frozen=True)
class _Frame:
    """Coordinates of one wall: its foot's middle, the direction into the room, the direction to the right."""

    middle: np.ndarray
    inward: np.ndarray
    right: np.ndarray
    half: float
    quaternion: list[float]

    def point(self, s: float, out: float) -> list[float]:
        """Floor point ``s`` to the right of the wall's middle and ``out`` into the room."""
        return [float(v) for v in self.middle + self.right * s + self.inward * out]

    def footprint(self, s: float, half: float, depth: float) -> Rectangle:
        """Floor rectangle of something that stands against the wall."""
        a, b = self.point(s - half, 0.0), self.point(s + half, depth)
        return (min(a[0], b[0]), max(a[0], b[0]), min(a[1], b[1]), max(a[1], b[1]))


def _frame(space: Space, wall: int) -> _Frame:
    angle = wall * np.pi / 2
    inward = np.round([np.cos(angle), np.sin(angle)])
    far, half = (space.half_x, space.half_y) if wall % 2 == 0 else (space.half_y, space.half_x)
    middle = np.array([space.x, space.y]) - inward * far
    return _Frame(middle, inward, np.array([-inward[1], inward[0]]), half, [np.cos(angle / 2), 0, 0, np.sin(angle / 2)])


class _HomeBuilder(Builder):
    """Furnishes the rooms, then builds the walls and floors that show the furniture's shadows."""

    def __init__(self, spec: mujoco.MjSpec, rng: np.random.Generator, home: Home) -> None:
        super().__init__(spec, rng, home)
        self.home = home
        self._low: list[Rectangle] = []  # footprints that darken the floor
        self._behind: dict[tuple[str, int], list[Rectangle]] = {}  # what darkens a wall, along it and above the floor

    def build(self) -> None:
        self._living_room(self.home.spaces[0])
        self._kitchen(self.home.spaces[1])
        self._bedroom(self.home.spaces[2])
        for space in self.home.spaces:
            for wall in range(4):
                self._wall(space, wall)
            self._floor_and_ceiling(space)
        for wall, place in self.home.spaces[0].doors:
            self._doorway(self.home.spaces[0], wall, place)
        self.home.settle()
        self.home.shadow = self._shadow()
        floor = self.geom.mjGEOM_PLANE
        self._fixed(floor, [0, 0, 0], [20, 20, 1], group=HIDDEN_GROUP)
        self._objects()
        self._lights()

    # ------------------------------------------------------------------ shell
    def _wall(self, space: Space, wall: int) -> None:
        """A wall in as many pieces as its doorways leave, each with its part of the wall's texture."""
        frame = _frame(space, wall)
        places = [place for number, place in space.doors if number == wall]
        left = -frame.half - WALL
        for place in [*places, None]:
            right = frame.half + WALL if place is None else place - DOOR_HALF
            self._wall_piece(space, wall, (left, right, 0.0, HEIGHT))
            self.home.walls.append(_rectangle(frame, left, right))
            if place is not None:
                left = place + DOOR_HALF
                self._wall_piece(space, wall, (right, left, DOOR_HEIGHT, HEIGHT), solid=False)

    def _wall_piece(self, space: Space, wall: int, part: Rectangle, solid: bool = True) -> None:
        frame = _frame(space, wall)
        s, z = finishes.grid(part, WALL_DENSITY)
        image = space.walls[wall](s, z)
        image = finishes.mix(image, space.trim, finishes.edge(0.11 - z, 0.012))
        image = finishes.mix(image, WHITE, finishes.edge(z - HEIGHT + 0.06, 0.01))
        light = finishes.corners(s, z, (-frame.half, frame.half, 0.0, HEIGHT), 0.25, 0.28)
        light = light * finishes.shadows(s, z, self._behind.get((space.name, wall), []), 0.3, 0.16)
        material = self._material(finishes.pixels(image * light[..., None]))
        s0, s1, z0, z1 = part
        self._fixed(
            self.geom.mjGEOM_BOX, [*frame.point((s0 + s1) / 2, -WALL / 2), (z0 + z1) / 2],
            [WALL / 2, (s1 - s0) / 2, (z1 - z0) / 2], solid, quat=frame.quaternion, material=material,
        )  # fmt: skip

    def _floor_and_ceiling(self, space: Space) -> None:
        x, y = finishes.grid(space.rectangle, FLOOR_DENSITY)
        light = finishes.corners(x, y, space.rectangle, 0.22, 0.3)
        light = light * finishes.shadows(x, y, self._low, 0.55, 0.2)
        image = space.floor(x - space.x, y - space.y) * light[..., None]
        size = [space.half_x, space.half_y, 0.02]
        self._fixed(
            self.geom.mjGEOM_BOX, [space.x, space.y, -0.02], size, False,
            material=self._material(finishes.pixels(image)),
        )  # fmt: skip
        x, y = finishes.grid(space.rectangle, 24)
        lamp = finishes.edge(0.28 - np.hypot(x - space.x, y - space.y), 0.03)
        light = finishes.corners(x, y, space.rectangle, 0.25, 0.4)[..., None]
        image = finishes.mix(np.array(WHITE) * light * 0.92, (1.0, 0.97, 0.85), lamp)
        self._fixed(
            self.geom.mjGEOM_BOX, [space.x, space.y, HEIGHT + 0.02], size, False,
            material=self._material(finishes.pixels(image)[::-1], emission=0.35),
        )  # fmt: skip

    def _doorway(self, space: Space, wall: int, place: float) -> None:
        """Frame and threshold of an opening through both walls."""
        frame = _frame(space, wall)
        look = {"rgba": [0.90, 0.88, 0.84, 1.0], "quat": frame.quaternion}
        half_depth, jamb = WALL + 0.02, 0.035
        for side in (-1, 1):
            self._fixed(
                self.geom.mjGEOM_BOX, [*frame.point(place + side * (DOOR_HALF - jamb), -WALL), DOOR_HEIGHT / 2],
                [half_depth, jamb, DOOR_HEIGHT / 2], False, **look,
            )  # fmt: skip
            for out in (0.0, -2 * WALL):  # architraves on both faces
                self._fixed(
                    self.geom.mjGEOM_BOX, [*frame.point(place + side * (DOOR_HALF + 0.03), out), DOOR_HEIGHT / 2],
                    [0.02, 0.06, DOOR_HEIGHT / 2], False, **look,
                )  # fmt: skip
        self._fixed(
            self.geom.mjGEOM_BOX, [*frame.point(place, -WALL), DOOR_HEIGHT - jamb + 0.05],
            [half_depth, DOOR_HALF + 0.09, jamb + 0.02], False, **look,
        )  # fmt: skip
        self._fixed(
            self.geom.mjGEOM_BOX, [*frame.point(place, -WALL), -0.02], [WALL, DOOR_HALF, 0.02], False,
            rgba=[0.38, 0.24, 0.15, 1], quat=frame.quaternion,
        )  # fmt: skip
        self.home.doorways.append(_rectangle(frame, place - DOOR_HALF, place + DOOR_HALF, 2 * WALL))

    # ------------------------------------------------------------------ parts of furniture
    def _box(self, centre: list[float], half: list[float], colour: RGB, solid: bool = False) -> None:
        self._fixed(self.geom.mjGEOM_BOX, centre, half, solid, rgba=[*colour, 1])

    def _stand(
        self,
        space: Space,
        wall: int,
        s: float,
        length: float,
        depth: float,
        height: float,
        table: bool = False,
        shade: bool = True,
    ) -> _Block:
        """Note a piece of furniture against a wall, and return a helper that places its parts."""  # fmt: skip
        frame = _frame(space, wall)
        x0, x1, y0, y1 = frame.footprint(s, length, 2 * depth)
        inward = (float(frame.inward[0]), float(frame.inward[1]))
        self.home.furniture.append(
            Furniture((x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2, height, inward, table)
        )
        self._low.append((x0, x1, y0, y1))
        if shade:
            self._behind.setdefault((space.name, wall), []).append((s - length, s + length, 0.0, height))
        return _Block(self, frame, s)

    def _table(
        self,
        space: Space,
        wall: int,
        s: float,
        length: float,
        depth: float,
        height: float,
        top: RGB,
        below: RGB,
        drawers: bool = False,
    ) -> None:
        """A table on legs, or a chest with drawers."""  # fmt: skip
        block = self._stand(space, wall, s, length, depth, height, table=True, shade=drawers)
        block.box(0.0, depth, height - 0.02, length, depth, 0.02, top, solid=True)
        if not drawers:
            for side in (-1, 1):
                for out in (0.05, 2 * depth - 0.05):
                    block.box(
                        side * (length - 0.05), out, height / 2 - 0.02, 0.03, 0.03, height / 2 - 0.02, below, True
                    )
            block.box(0.0, depth, height - 0.075, length - 0.04, depth - 0.03, 0.035, below)
            return
        block.box(0.0, depth - 0.01, height / 2 - 0.02, length - 0.02, depth - 0.02, height / 2 - 0.02, below, True)
        count = max(2, round(length / 0.35))
        light = tuple(min(1.0, c * 1.18) for c in below)
        for k in range(count):
            middle = (2 * k + 1 - count) / count * (length - 0.02)
            block.box(
                middle, 2 * depth - 0.03, height / 2, (length - 0.02) / count - 0.03, 0.012, height / 2 - 0.1, light
            )
            block.box(middle, 2 * depth - 0.012, height * 0.75, 0.07, 0.012, 0.015, (0.2, 0.2, 0.22))

    def _picture(
        self,
        space: Space,
        wall: int,
        s: float,
        z: float,
        half: tuple[float, float],
        what: Finish,
        frame_colour: RGB,
        emission: float = 0.0,
    ) -> None:
        """A framed picture or a window on a wall."""  # fmt: skip
        width, height = half
        self._behind.setdefault((space.name, wall), []).append((s - width, s + width, z - height - 0.04, z + height))
        x, y = finishes.grid((-width, width, -height, height), 110)
        border = 1 - finishes.patch(x, y, (-width + 0.05, width - 0.05, -height + 0.05, height - 0.05), 0.01)
        image = finishes.mix(what(x / (width - 0.05), y / (height - 0.05)), frame_colour, border)
        frame = _frame(space, wall)
        self._fixed(
            self.geom.mjGEOM_BOX, [*frame.point(s, 0.0), z], [0.025, width, height], False, quat=frame.quaternion,
            material=self._material(finishes.pixels(image), emission=emission),
        )  # fmt: skip

    # ------------------------------------------------------------------ rooms
    def _living_room(self, space: Space) -> None:
        oak, dark = (0.62, 0.42, 0.24), (0.30, 0.18, 0.10)
        sofa = self._stand(space, 1, 0.15, 1.0, 0.42, 0.8)
        cloth, deep = (0.18, 0.42, 0.45), (0.14, 0.34, 0.37)
        sofa.box(0.0, 0.42, 0.2, 1.0, 0.42, 0.2, deep, solid=True)
        sofa.box(0.0, 0.12, 0.6, 1.0, 0.12, 0.22, deep, solid=True)
        for side in (-1, 1):
            sofa.box(side * 0.9, 0.45, 0.42, 0.1, 0.4, 0.16, deep, solid=True)
            sofa.box(side * 0.4, 0.52, 0.44, 0.39, 0.32, 0.07, cloth)
            sofa.box(side * 0.4, 0.28, 0.62, 0.37, 0.07, 0.17, cloth)
        sofa.box(0.6, 0.38, 0.63, 0.17, 0.07, 0.15, (0.93, 0.70, 0.22))
        self._picture(space, 1, 0.15, 1.65, (0.75, 0.42), finishes.landscape, (0.15, 0.10, 0.07))
        self._table(space, 2, 0.1, 0.85, 0.27, 0.7, oak, dark, drawers=True)
        self._picture(space, 2, 0.1, 1.6, (0.95, 0.62), finishes.day, WHITE, emission=0.5)
        self._table(space, 0, 1.3, 0.55, 0.28, 0.72, WHITE, (0.75, 0.74, 0.70))
        self._picture(space, 0, 1.3, 1.6, (0.36, 0.36), finishes.blocks, (0.1, 0.1, 0.1))
        shelf = self._stand(space, 3, -1.2, 0.65, 0.16, 1.9)
        shelf.box(0.0, 0.155, 0.95, 0.65, 0.155, 0.95, dark, solid=True)
        x, y = finishes.grid((-0.65, 0.65, -0.95, 0.95), 90)
        shelf.face(0.0, 0.315, 0.95, 0.65, 0.95, self._material(finishes.pixels(finishes.books(x / 0.65, y / 0.95))))
        lamp = self._stand(space, 1, 1.75, 0.17, 0.17, 1.6)
        lamp.round(0.0, 0.17, 0.02, 0.16, 0.02, (0.15, 0.15, 0.16))
        lamp.round(0.0, 0.17, 0.65, 0.02, 0.65, (0.15, 0.15, 0.16))
        lamp.round(0.0, 0.17, 1.45, 0.19, 0.15, (1.0, 0.86, 0.55))

    def _kitchen(self, space: Space) -> None:
        front, stone = (0.93, 0.91, 0.84), (0.33, 0.34, 0.36)
        self._table(space, 1, 0.0, 1.35, 0.3, 0.77, stone, front, drawers=True)
        counter = _Block(self, _frame(space, 1), 0.0)
        counter.box(-0.75, 0.3, 0.772, 0.3, 0.2, 0.004, (0.08, 0.08, 0.09))
        counter.box(0.7, 0.16, 0.772, 0.26, 0.11, 0.004, (0.72, 0.75, 0.78))
        for s in (-1.0, 1.0):
            counter.box(s, 0.17, 1.72, 0.42, 0.17, 0.32, front)
            counter.box(s, 0.345, 1.72, 0.015, 0.008, 0.3, (0.6, 0.6, 0.58))
            self._behind[space.name, 1].append((s - 0.42, s + 0.42, 1.3, 2.04))
        self._picture(space, 1, 0.0, 1.75, (0.5, 0.36), finishes.blind, WHITE, emission=0.5)
        fridge = self._stand(space, 0, -1.4, 0.36, 0.34, 1.8)
        fridge.box(0.0, 0.34, 0.9, 0.36, 0.34, 0.9, (0.80, 0.20, 0.17), solid=True)
        fridge.box(0.0, 0.685, 1.2, 0.36, 0.008, 0.012, (0.35, 0.06, 0.05))
        for z, high in ((1.45, 0.16), (0.85, 0.25)):
            fridge.box(-0.28, 0.70, z, 0.018, 0.02, high, (0.9, 0.9, 0.9))
        self._picture(space, 0, 0.0, 1.7, (0.34, 0.34), finishes.clock, (0.85, 0.2, 0.16))
        self._picture(space, 0, 1.35, 1.02, (0.46, 1.02), finishes.door, WHITE)
        self._table(space, 3, -0.3, 0.85, 0.31, 0.74, (0.86, 0.66, 0.40), (0.93, 0.90, 0.84))
        self._picture(space, 3, -0.3, 1.65, (0.42, 0.5), finishes.leaves, WHITE)
        bin_ = self._stand(space, 3, 1.6, 0.2, 0.2, 0.62)
        bin_.round(0.0, 0.2, 0.3, 0.19, 0.3, (0.95, 0.72, 0.12), solid=True)
        bin_.round(0.0, 0.2, 0.62, 0.195, 0.03, (0.15, 0.15, 0.16))

    def _bedroom(self, space: Space) -> None:
        wood, pale = (0.46, 0.30, 0.20), (0.90, 0.88, 0.95)
        bed = self._stand(space, 3, 0.95, 0.78, 1.0, 0.5)
        bed.box(0.0, 1.0, 0.14, 0.78, 1.0, 0.14, wood, solid=True)
        bed.box(0.0, 1.0, 0.36, 0.75, 0.96, 0.1, (0.95, 0.94, 0.92), solid=True)
        bed.box(0.0, 1.3, 0.40, 0.77, 0.69, 0.1, (0.20, 0.55, 0.62))
        bed.box(0.0, 0.72, 0.41, 0.775, 0.13, 0.1, (0.95, 0.80, 0.35))
        bed.box(0.0, 0.04, 0.55, 0.80, 0.04, 0.55, wood, solid=True)
        for side in (-1, 1):
            bed.box(side * 0.37, 0.3, 0.52, 0.3, 0.19, 0.07, (0.98, 0.97, 0.96))
        self._picture(space, 3, 0.95, 1.75, (0.36, 0.36), finishes.moon, (0.85, 0.70, 0.30))
        self._picture(space, 3, -1.05, 1.6, (0.62, 0.58), finishes.dusk, wood, emission=0.35)
        self._table(space, 0, -0.3, 0.8, 0.3, 0.73, (0.25, 0.45, 0.75), (0.85, 0.85, 0.9))
        self._picture(space, 0, -0.3, 1.6, (0.5, 0.36), lambda u, v: finishes.blocks(-v, u), WHITE)
        self._table(space, 2, 1.0, 0.62, 0.25, 0.68, pale, (0.72, 0.45, 0.58), drawers=True)
        self._picture(space, 2, 1.0, 1.55, (0.3, 0.45), lambda u, v: finishes.mix(
            (0.78, 0.86, 0.90), (0.93, 0.96, 0.97), finishes.wave(u + v, 1.6, 0.2)), wood)  # fmt: skip
        wardrobe = self._stand(space, 1, 1.35, 0.7, 0.28, 2.1)
        wardrobe.box(0.0, 0.28, 1.05, 0.7, 0.28, 1.05, wood, solid=True)
        for side in (-1, 1):
            wardrobe.box(side * 0.34, 0.565, 1.07, 0.31, 0.01, 0.95, (0.58, 0.39, 0.26))
            wardrobe.box(side * 0.08, 0.585, 1.05, 0.015, 0.015, 0.14, (0.9, 0.8, 0.5))

    # ------------------------------------------------------------------ what varies by seed
    def _objects(self) -> None:
        """Small objects on the tables and larger ones on the floor, away from the doorways."""
        rng, home = self.rng, self.home
        tables = [piece for piece in home.furniture if piece.table]
        on_tables, on_floor = int(rng.integers(6, 11)), int(rng.integers(2, 7))
        hues = rng.uniform() + rng.permutation(on_tables + on_floor) / (on_tables + on_floor)
        order = rng.permutation(len(tables))
        placed: list[np.ndarray] = []
        for k in range(on_tables):
            table = tables[order[k % len(tables)]]
            placed.append(self._on_table(table, placed))
            self._object(placed[-1], table.height, rng.uniform(0.032, 0.055, 3), float(hues[k]), True)
        for k in range(on_floor):
            for _ in range(30):
                spot = home.somewhere(rng, int(rng.integers(len(home.spaces))), 0.3)
                if self._off_the_way(spot) and all(np.hypot(*(spot - other)) > 0.5 for other in placed):
                    break
            placed.append(spot)
            self._object(spot, 0.0, rng.uniform(0.09, 0.17, 3), float(hues[on_tables + k]), False)

    def _off_the_way(self, spot: np.ndarray) -> bool:
        middles = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, x1, y0, y1 in self.home.doorways]
        return all(np.hypot(spot[0] - x, spot[1] - y) > 1.1 for x, y in middles)

    def _lights(self) -> None:
        """A lamp in the middle of each room; strength and warmth vary a little."""
        rng = self.rng
        strength, warmth = rng.uniform(0.88, 1.1), rng.uniform(-0.04, 0.04)
        tint = strength * np.array([1 + warmth, 1.0, 1 - warmth])
        light = self.spec.visual.headlight
        light.ambient, light.diffuse, light.specular = list(0.46 * tint), list(0.1 * tint), [0.02] * 3
        for space in self.home.spaces:
            self.world.add_light(
                pos=[space.x, space.y, HEIGHT - 0.25], dir=[0, 0, -1], cutoff=89, exponent=0.5, castshadow=False,
                attenuation=[0.9, 0.0, 0.07], diffuse=list(0.5 * tint), specular=[0.08, 0.08, 0.08],
            )  # fmt: skip


class _Block:
    """Places parts of a piece of furniture in the coordinates of its wall: s to the right, out into the room, z up."""

    def __init__(self, builder: _HomeBuilder, frame: _Frame, s: float) -> None:
        self.builder, self.frame, self.s = builder, frame, s

    def box(
        self, s: float, out: float, z: float, half_s: float, half_out: float, half_z: float,
        colour: RGB | tuple[float, ...], solid: bool = False,
    ) -> None:  # fmt: skip
        self.builder._fixed(
            self.builder.geom.mjGEOM_BOX, [*self.frame.point(self.s + s, out), z], [half_out, half_s, half_z], solid,
            quat=self.frame.quaternion, rgba=[*colour, 1],
        )  # fmt: skip

    def face(self, s: float, out: float, z: float, half_s: float, half_z: float, material: str) -> None:
        """A thin textured sheet that looks into the room."""
        self.builder._fixed(
            self.builder.geom.mjGEOM_BOX, [*self.frame.point(self.s + s, out), z], [0.005, half_s, half_z], False,
            quat=self.frame.quaternion, material=material,
        )  # fmt: skip

    def round(
        self, s: float, out: float, z: float, radius: float, half_z: float, colour: RGB, solid: bool = False
    ) -> None:
        self.builder._fixed(
            self.builder.geom.mjGEOM_CYLINDER, [*self.frame.point(self.s + s, out), z], [radius, half_z, 0], solid,
            rgba=[*colour, 1],
        )  # fmt: skip


def _rectangle(frame: _Frame, low: float, high: float, depth: float = WALL) -> Rectangle:
    """Floor rectangle of a part of a wall, or of a way through it."""
    a, b = frame.point(low, 0.0), frame.point(high, -depth)
    return (min(a[0], b[0]), max(a[0], b[0]), min(a[1], b[1]), max(a[1], b[1]))
