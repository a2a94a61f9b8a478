"""Where was this picture seen from? It is matched against views of the simulator's world, from coarse to fine.

First everywhere: around each point of a grid over the floor the world is drawn once, without the robot, and turned to
every heading at the robot's posture, in few pixels. Then the best of these places are moved about in ever smaller
steps, and the robot drawn there with its arms as they are, until no step makes the picture more like the one that is
sought. The true place is nowhere looked up, so that how well true pictures are found says how far the answer can be
trusted.

Shape suffixes: N candidates, P places, S side of a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hwm.sim.twin import Twin
from hwm.sim.views import Views, fovy_of, rays, texels

Distance = Callable[[Tensor, Tensor], Tensor]
"""How unlike pictures (N, 3, S, S) in [0, 1] are to others, (N,)."""

FARTHEST = 12.0
"""Metres from the middle of the world at which no floor is looked for."""

COARSE, FACE = 24, 32
"""Pixels a side of what is matched everywhere, and of the sides of what is drawn around a point."""

LEVEL = 0.15
"""Metres between the heights of the camera at which the world is drawn anew."""


@dataclass(frozen=True)
class Search:
    """How finely is looked.

    Attributes:
        grid: metres between the points of the grid.
        turn: degrees between the headings.
        candidates: places that are looked at with the robot, at least `grid` or twice `turn` apart.
        moved: how many of these are moved about, half as many with every halving of the steps.
        finest: metres below which steps are not halved any more; those of the heading shrink along.
        side: pixels a side of the pictures that are compared with the robot in them.
    """

    grid: float = 0.4
    turn: float = 10.0
    candidates: int = 24
    moved: int = 8
    finest: float = 0.03
    side: int = 64


@dataclass
class Map:
    """A world as seen from a grid of points, drawn where and when it is asked for.

    Attributes:
        points: (P, 2), above the floor that is free and a little around it, where a robot that bends has its camera.
        drawn: by the camera's height in units of `LEVEL`, colours (P, values, 3) as of `texels`.
    """

    points: np.ndarray
    drawn: dict[int, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, twin: Twin, search: Search) -> Map:
        """An empty map of a twin's world. Its loose objects are drawn where they are by then."""
        along = np.arange(-FARTHEST, FARTHEST + search.grid, search.grid)
        points = np.stack(np.meshgrid(along, along), -1)
        free = np.array([[free_at(twin, point) for point in row] for row in points])
        padded = np.pad(free, 1)
        around = [padded[1 + i :, 1 + j :][: len(free), : len(free)] for i in (-1, 0, 1) for j in (-1, 0, 1)]
        return cls(points[np.any(around, 0)])

    def at(self, views: Views, height: float) -> np.ndarray:
        """The map at about this height of the camera."""
        level = round(height / LEVEL)
        if level not in self.drawn:
            places = np.c_[self.points, np.full(len(self.points), level * LEVEL)]
            self.drawn[level] = views.surroundings(places, FACE).reshape(len(places), -1, 3)
        return self.drawn[level]


class Locator:
    """Finds places in the world of a twin, as that is now.

    Args:
        known: the map of this world, which is filled in.
        distance: what makes two pictures unlike.
    """

    def __init__(self, twin: Twin, known: Map, distance: Distance, search: Search) -> None:
        self.twin, self.map, self.distance, self.search = twin, known, distance, search
        self.views = Views(twin)

    def find(self, picture_3SS: Tensor) -> np.ndarray:
        """The pose (x, y, yaw) from which the world looks most like a picture in [0, 1]."""
        s = self.search
        wanted = F.interpolate(picture_3SS[None], (s.side, s.side), mode="area")
        poses = self.everywhere(picture_3SS)
        unlike = self.unlike(poses, wanted)
        metres, radians, count = s.grid / 2, np.radians(s.turn) / 2, s.moved
        while metres >= s.finest:
            best = np.argsort(unlike)[:count]
            step = np.array([metres, metres, radians])
            moved = [self.improve(poses[i], float(unlike[i]), step, wanted) for i in best]
            poses, unlike = np.stack([pose for pose, _ in moved]), np.array([value for _, value in moved])
            metres, radians, count = metres / 2, radians / 2, max(1, count // 2)
        return poses[unlike.argmin()]

    def everywhere(self, picture_3SS: Tensor) -> np.ndarray:
        """The best places of the map, (N, 3), no two of which are neighbours; the robot's own body does not count."""
        offset, axes = self.views.camera()
        visible = torch.from_numpy(~self.views.body()).float()
        small = F.interpolate(torch.cat([picture_3SS, visible[None]])[None], (COARSE, COARSE), mode="area")[0]
        weight = (small[3] > 0.99).flatten().numpy().astype(np.float32)
        wanted = _centred(small[:3].flatten(1).T.numpy()[None], weight)
        around = self.map.at(self.views, float(offset[2]))
        looks = rays(COARSE, fovy_of(self.twin)).reshape(-1, 3) @ axes.T
        poses, unlike = [], []
        for yaw in np.radians(np.arange(0, 360, self.search.turn)):
            turn = rotation(yaw)
            seen = around[:, texels(looks @ turn.T, FACE)].astype(np.float32) / 255
            unlike.append(((_centred(seen, weight) - wanted) ** 2).sum((1, 2)))
            base = self.map.points - (turn @ offset)[:2]
            poses.append(np.c_[base, np.full(len(base), yaw)])
        return self.apart(np.concatenate(poses), np.concatenate(unlike))

    def apart(self, poses_N3: np.ndarray, unlike_N: np.ndarray) -> np.ndarray:
        """The best candidates of which none lies beside a better one."""
        kept: list[np.ndarray] = []
        for i in np.argsort(unlike_N):
            metres, degrees = apart(np.array(kept).reshape(-1, 3), poses_N3[i])
            if free_at(self.twin, poses_N3[i, :2]) and not np.any(
                (metres < 1.1 * self.search.grid) & (degrees < 2.1 * self.search.turn)
            ):
                kept.append(poses_N3[i])
            if len(kept) == self.search.candidates:
                break
        return np.stack(kept)

    def improve(self, pose: np.ndarray, unlike: float, step_3: np.ndarray, wanted: Tensor) -> tuple[np.ndarray, float]:
        """Move on to the best neighbour, as long as one is better, but not farther than to the next of the grid."""
        for _ in range(4):
            around = pose + np.concatenate([np.eye(3), -np.eye(3)]) * step_3
            found = self.unlike(around, wanted)
            if found.min() >= unlike:
                break
            pose, unlike = around[found.argmin()], float(found.min())
        return pose, unlike

    def unlike(self, poses_N3: np.ndarray, wanted_13SS: Tensor) -> np.ndarray:
        """How unlike the picture is what the robot would see from each of these poses, (N,)."""
        seen = torch.from_numpy(self.views.seen_from(poses_N3)).permute(0, 3, 1, 2).float() / 255
        seen = F.interpolate(seen, wanted_13SS.shape[-2:], mode="area")
        with torch.inference_mode():
            return self.distance(seen, wanted_13SS.expand_as(seen)).cpu().numpy()


def apart(poses: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far poses (..., 3) are from others, in metres and in degrees from 0 to 180."""
    difference = poses - other
    turned = np.abs((difference[..., 2] + np.pi) % (2 * np.pi) - np.pi)
    return np.hypot(difference[..., 0], difference[..., 1]), np.degrees(turned)


def free_at(twin: Twin, point: np.ndarray) -> bool:
    """Whether the robot's base could be about there."""
    return bool(twin.sim.room.is_free(point, 0.05))


def squared(pictures: Tensor, others: Tensor) -> Tensor:
    """A distance that needs no network: the mean squared difference, the mean colours left out."""
    a, b = (x - x.mean((-2, -1), keepdim=True) for x in (pictures, others))
    return (a - b).square().mean((-3, -2, -1))


def _centred(colours: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Colours (N, pixels, 3) without their mean over the pixels that count, and zero in the others."""
    total = np.maximum(weight.sum(), 1)
    mean = (colours * weight[:, None]).sum(1, keepdims=True) / total
    return (colours - mean) * weight[:, None]


def rotation(yaw: float) -> np.ndarray:
    """The matrix that turns directions to the left, (3, 3)."""
    return np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
