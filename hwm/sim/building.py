"""What worlds are built of: furniture, loose objects, and a builder that adds them to MuJoCo's world."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hwm.sim import patterns
from hwm.sim.graphics import import_mujoco
from hwm.sim.robot import ROBOT_BIT, WORLD_BIT

if TYPE_CHECKING:
    import mujoco


@dataclass(frozen=True)
class Furniture:
    """Axis-aligned footprint of a piece of furniture: centre, half sizes, height, the wall it stands at."""

    x: float
    y: float
    half_x: float
    half_y: float
    height: float
    inward: tuple[float, float]
    """Unit vector from its wall into the room."""
    table: bool = True

    @property
    def reach(self) -> tuple[float, float]:
        """Half its depth, away from the wall, and half its length along the wall."""
        return (self.half_x, self.half_y) if self.inward[0] else (self.half_y, self.half_x)


@dataclass(frozen=True)
class LooseObject:
    """A free body and the radius of its bounding sphere."""

    name: str
    radius: float
    on_table: bool


@dataclass
class Place(ABC):
    """What the behaviour must know of a world, and the textures to fill in after compiling."""

    furniture: list[Furniture] = field(default_factory=list)
    objects: list[LooseObject] = field(default_factory=list)
    textures: dict[str, np.ndarray] = field(default_factory=dict)

    shadow: str = ""
    """Material of the spots of shadow that are drawn below things that move; empty where none are."""

    def fill_textures(self, model: mujoco.MjModel) -> None:
        """Copy the pixels of all textures into a compiled model."""
        for name, pixels in self.textures.items():
            texture = model.texture(name).id
            start = int(model.tex_adr[texture])
            model.tex_data[start : start + pixels.size] = pixels.ravel()

    def level(self, point: np.ndarray) -> float:
        """Height of what lies below a point (x, y, z): of a table, or of the floor."""
        for piece in self.furniture:
            inside = abs(point[0] - piece.x) < piece.half_x and abs(point[1] - piece.y) < piece.half_y
            if piece.table and inside and point[2] > piece.height - 0.02:
                return piece.height
        return 0.0

    @abstractmethod
    def starts(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Floor points at which the base might begin, endlessly."""

    @abstractmethod
    def wander(self, rng: np.random.Generator, share: float) -> np.ndarray:
        """A random floor point, free or not, up to a share of the way from the middle of a room to its walls."""

    def is_free(self, point: np.ndarray, margin: float) -> bool:
        """Whether a disc of radius ``margin`` around a floor point touches no wall and no furniture."""
        return self.clearance(point) >= margin

    @abstractmethod
    def clearance(self, point: np.ndarray) -> float:
        """Distance in metres of a floor point to the nearest wall or piece of furniture."""

    @abstractmethod
    def middle(self, point: np.ndarray) -> np.ndarray:
        """The middle of the room that a floor point lies in."""


def gap(piece: Furniture, point: np.ndarray) -> float:
    """Distance in metres of a floor point to a piece of furniture; zero inside."""
    return float(
        np.hypot(
            max(abs(point[0] - piece.x) - piece.half_x, 0.0), max(abs(point[1] - piece.y) - piece.half_y, 0.0)
        )
    )  # fmt: skip


class Builder:
    """Adds fixed geoms, textures and loose objects to a world and to the description of its place."""

    def __init__(self, spec: mujoco.MjSpec, rng: np.random.Generator, place: Place) -> None:
        self.mujoco = import_mujoco(rendering=False)
        self.geom = self.mujoco.mjtGeom
        self.spec, self.rng = spec, rng
        self.world = spec.worldbody
        self._place = place

    def _material(self, pixels: np.ndarray, repeat: tuple[float, float] = (1, 1), emission: float = 0.0) -> str:
        """A material that shows the given pixels; they are copied in after compiling."""
        mujoco = self.mujoco
        name = f"texture{len(self._place.textures)}"
        self._place.textures[name] = pixels
        self.spec.add_texture(
            name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, builtin=mujoco.mjtBuiltin.mjBUILTIN_FLAT,
            width=pixels.shape[1], height=pixels.shape[0], nchannel=3, rgb1=[1, 1, 1], rgb2=[1, 1, 1],
        )  # fmt: skip
        return self._textured(name, texrepeat=list(repeat), specular=0.05, shininess=0.1, emission=emission)

    def _shadow(self, size: int = 64) -> str:
        """A material that darkens what lies below it, most in the middle."""
        y, x = (np.mgrid[:size, :size] + 0.5) / size * 2 - 1
        alpha = np.clip(1.4 * (1 - np.hypot(x, y)), 0, 1)
        pixels = np.zeros((size, size, 4), np.uint8)
        pixels[..., 3] = np.round(255 * alpha)
        texture = self.spec.add_texture(
            name="shadow", type=self.mujoco.mjtTexture.mjTEXTURE_2D, width=size, height=size, nchannel=4
        )
        texture.data = pixels.tobytes()
        return self._textured("shadow", specular=0.0, shininess=0.0)

    def _textured(self, name: str, **look: object) -> str:
        """A material that shows the texture of the same name."""
        role = self.mujoco.mjtTextureRole
        material = self.spec.add_material(name=name, **look)
        roles = [""] * int(role.mjNTEXROLE)
        roles[int(role.mjTEXROLE_RGB)] = name
        material.textures = roles
        return name

    def _fixed(self, kind: int, position: list[float], size: list[float], solid: bool = True, **look: object) -> None:
        """A geom of the world that nothing moves."""
        mask = {"contype": WORLD_BIT, "conaffinity": ROBOT_BIT} if solid else {"contype": 0, "conaffinity": 0}
        self.world.add_geom(type=kind, pos=position, size=size, **mask, **look)

    def _on_table(self, table: Furniture, placed: list[np.ndarray]) -> np.ndarray:
        """A point near the front edge of a table, away from other objects if there is room."""
        inward = np.array(table.inward)
        along = np.array([-inward[1], inward[0]])
        depth, length = table.reach
        for _ in range(30):
            spot = np.array([table.x, table.y]) + inward * (depth - self.rng.uniform(0.07, 0.24))
            spot = spot + along * self.rng.uniform(-0.8, 0.8) * length
            if all(np.hypot(*(spot - other)) > 0.17 for other in placed):
                break
        return spot

    def _object(self, spot: np.ndarray, level: float, size: np.ndarray, hue: float, on_table: bool) -> None:
        rng, geom = self.rng, self.geom
        kind = [geom.mjGEOM_BOX, geom.mjGEOM_CYLINDER, geom.mjGEOM_SPHERE, geom.mjGEOM_CAPSULE][int(rng.integers(4))]
        rest, radius = {
            geom.mjGEOM_BOX: (size[2], float(np.linalg.norm(size))),
            geom.mjGEOM_CYLINDER: (size[1], float(np.hypot(size[0], size[1]))),
            geom.mjGEOM_SPHERE: (size[0], float(size[0])),
            geom.mjGEOM_CAPSULE: (size[0] + size[1], float(size[0] + size[1])),
        }[kind]
        angle = rng.uniform(0, np.pi)
        name = f"object{len(self._place.objects)}"
        body = self.world.add_body(
            name=name, pos=[float(spot[0]), float(spot[1]), level + float(rest) + 0.005],
            quat=[np.cos(angle / 2), 0, 0, np.sin(angle / 2)],
        )  # fmt: skip
        body.add_freejoint(name=name)
        body.add_geom(
            name=name, type=kind, size=list(size), rgba=[*patterns.colour(hue, 0.9, rng.uniform(0.75, 1.0)), 1],
            contype=WORLD_BIT, conaffinity=WORLD_BIT | ROBOT_BIT, condim=6, friction=[1.0, 0.02, 0.004],
            density=150 if on_table else 40,
        )  # fmt: skip
        self._place.objects.append(LooseObject(name, radius, on_table))
