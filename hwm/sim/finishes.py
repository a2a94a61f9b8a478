"""Floors, walls and pictures of the home, as arrays of colours over metres, with light and shadow painted in.

Patterns are large and soft, so that they do not alias in small pictures. Every function takes coordinates in metres,
(H, W) each, and returns RGB in 0..1, (H, W, 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np

RGB: TypeAlias = "tuple[float, float, float]"
Finish: TypeAlias = "Callable[[np.ndarray, np.ndarray], np.ndarray]"
Rectangle: TypeAlias = "tuple[float, float, float, float]"
"""Lowest x, highest x, lowest y and highest y."""

WHITE = (0.95, 0.94, 0.91)


def grid(rectangle: Rectangle, density: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of a texture's pixels over a rectangle, the highest y in the first row."""
    x0, x1, y0, y1 = rectangle
    width, height = max(2, round((x1 - x0) * density)), max(2, round((y1 - y0) * density))
    x = x0 + (np.arange(width) + 0.5) * (x1 - x0) / width
    y = y1 - (np.arange(height) + 0.5) * (y1 - y0) / height
    return np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))


def pixels(image: np.ndarray) -> np.ndarray:
    """uint8 of colours in 0..1."""
    return np.clip(np.round(image * 255), 0, 255).astype(np.uint8)


def edge(x: np.ndarray, soft: float = 0.02) -> np.ndarray:
    """0 for negative and 1 for positive x, with a smooth change over twice ``soft``."""
    t = np.clip(x / (2 * soft) + 0.5, 0, 1)
    smooth: np.ndarray = t * t * (3 - 2 * t)
    return smooth


def patch(x: np.ndarray, y: np.ndarray, rectangle: Rectangle, soft: float = 0.02) -> np.ndarray:
    """How much of a point lies in a rectangle with soft borders, 0..1."""
    x0, x1, y0, y1 = rectangle
    return edge(x - x0, soft) * edge(x1 - x, soft) * edge(y - y0, soft) * edge(y1 - y, soft)


def wave(x: np.ndarray, period: float, soft: float = 0.02) -> np.ndarray:
    """Bands of equal width, 0 and 1 in turn."""
    return edge((np.abs((x / period) % 1.0 - 0.5) - 0.25) * period, soft)


def mix(first: RGB | np.ndarray, second: RGB | np.ndarray, weight: np.ndarray) -> np.ndarray:
    """From one colour or picture to another by a weight (H, W)."""
    a = np.asarray(first)
    mixed: np.ndarray = a + (np.asarray(second) - a) * weight[..., None]
    return mixed


# ---------------------------------------------------------------------- floors
def planks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Broad boards of oak."""
    row = np.floor(y / 0.26)
    board = np.floor((x + 0.7 * ((row * 7) % 4)) / 1.5)
    tone = 0.9 + 0.2 * ((row * 5 + board * 3) % 7) / 6
    seam = 1 - 0.3 * edge(0.012 - np.abs((y / 0.26 + 0.5) % 1.0 - 0.5) * 0.26, 0.01)
    grain = 1 + 0.03 * np.sin(9 * y + 2 * np.sin(2 * x))
    return np.array([0.72, 0.50, 0.30]) * (tone * seam * grain)[..., None]


def rings(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A round rug of red and cream rings on the planks."""
    radius = np.hypot(x + 0.1, y + 0.05)
    rug = mix((0.72, 0.16, 0.14), (0.93, 0.85, 0.70), wave(radius + 0.1, 0.55, 0.03))
    shaded = planks(x, y) * (1 - 0.25 * edge(1.2 - radius, 0.06))[..., None]
    return mix(shaded, rug, edge(1.15 - radius, 0.02))


def checks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Large tiles, dark green and cream in turn."""
    odd = np.abs(wave(x, 1.2, 0.012) - wave(y, 1.2, 0.012))
    return mix((0.90, 0.88, 0.80), (0.10, 0.29, 0.30), odd)


def carpet(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A violet-blue carpet with a yellow mat that has a blue border and a diamond."""
    ground = mix((0.30, 0.28, 0.52), (0.36, 0.33, 0.58), wave(x + y, 0.9, 0.2))
    u, v = x + 0.75, y + 0.45
    mat = mix((0.93, 0.74, 0.22), (0.16, 0.30, 0.62), 1 - patch(u, v, (-0.72, 0.72, -0.92, 0.92)))
    mat = mix(mat, (0.82, 0.30, 0.18), edge(0.6 - np.abs(u) * 1.3 - np.abs(v), 0.02))
    shaded = ground * (1 - 0.25 * patch(u, v, (-0.9, 0.9, -1.1, 1.1), 0.06))[..., None]
    return mix(shaded, mat, patch(u, v, (-0.85, 0.85, -1.05, 1.05)))


# ---------------------------------------------------------------------- walls: s along the wall, z above the floor
def two_tone(upper: RGB, lower: RGB, line: float = 1.0) -> Finish:
    """Paint in two colours with a white rail between them."""

    def paint(s: np.ndarray, z: np.ndarray) -> np.ndarray:
        image = mix(lower, upper, edge(z - line))
        return mix(image, WHITE, edge(0.03 - np.abs(z - line), 0.01))

    return paint


def plain(colour: RGB, low: RGB) -> Finish:
    """Paint that turns a little from the ceiling to the floor."""
    return lambda s, z: mix(low, colour, np.clip(z / 2.7, 0, 1))


def striped(first: RGB, second: RGB, period: float = 0.8) -> Finish:
    """Wide vertical stripes."""
    return lambda s, z: mix(first, second, wave(s, period, 0.015))


def tiled(paint: RGB, tiles: RGB, low: float = 0.75, high: float = 1.35) -> Finish:
    """Paint with a band of tiles."""

    def finish(s: np.ndarray, z: np.ndarray) -> np.ndarray:
        odd = np.abs(wave(s, 0.6, 0.015) - wave(z - low, 0.6, 0.015))
        band = mix(tiles, WHITE, 0.75 * odd)
        return mix(np.broadcast_to(np.array(paint), band.shape), band, edge(z - low, 0.01) * edge(high - z, 0.01))

    return finish


# ---------------------------------------------------------------------- light and shadow
def corners(x: np.ndarray, y: np.ndarray, rectangle: Rectangle, depth: float = 0.3, reach: float = 0.3) -> np.ndarray:
    """Light that is left near the borders of a surface, where it meets others: factors (H, W)."""
    x0, x1, y0, y1 = rectangle
    light = np.ones_like(x)
    for distance in (x - x0, x1 - x, y - y0, y1 - y):
        light = light * (1 - depth * np.exp(-np.maximum(distance, 0) / reach))
    return light


def shadows(x: np.ndarray, y: np.ndarray, rectangles: Iterable[Rectangle], dark: float, soft: float) -> np.ndarray:
    """Light that is left by things before a surface: factors (H, W)."""
    light = np.ones_like(x)
    for x0, x1, y0, y1 in rectangles:
        light = light * (1 - dark * patch(x, y, (x0 - soft / 2, x1 + soft / 2, y0 - soft / 2, y1 + soft / 2), soft))
    return light


# ---------------------------------------------------------------------- pictures: u and v in -1..1
def landscape(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Hills under an orange sun."""
    sky = mix((0.98, 0.82, 0.55), (0.35, 0.62, 0.85), np.clip(v * 0.6 + 0.5, 0, 1))
    sky = mix(sky, (0.95, 0.36, 0.18), edge(0.3 - np.hypot(u * 1.4 - 0.5, v - 0.3), 0.03))
    far = mix(sky, (0.28, 0.45, 0.50), edge(0.05 + 0.3 * np.sin(2.2 * u + 0.8) - v, 0.03))
    return mix(far, (0.16, 0.34, 0.22), edge(-0.45 + 0.22 * np.sin(3 * u) - v, 0.03))


def blocks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Large rectangles of primary colours with black bars."""
    image = mix((0.95, 0.94, 0.90), (0.84, 0.12, 0.12), patch(u, v, (-0.2, 2, 0.0, 2)))
    image = mix(image, (0.10, 0.25, 0.65), patch(u, v, (-2, -0.2, -2, -0.3)))
    image = mix(image, (0.95, 0.80, 0.15), patch(u, v, (0.4, 2, -2, -0.5)))
    bars = np.minimum(np.abs(u + 0.2), np.minimum(np.abs(v) + (u < -0.2), np.abs(v + 0.3) + (u > -0.2)))
    return mix(image, (0.06, 0.06, 0.07), edge(0.05 - bars))


def moon(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A yellow crescent on dark blue."""
    crescent = edge(0.62 - np.hypot(u, v), 0.03) * (1 - edge(0.5 - np.hypot(u - 0.28, v - 0.14), 0.03))
    return mix(np.broadcast_to(np.array([0.07, 0.09, 0.28]), (*u.shape, 3)), (0.98, 0.86, 0.35), crescent)


def clock(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A round clock on a white ground."""
    radius = np.hypot(u, v)
    image = mix((0.85, 0.20, 0.16), (0.97, 0.97, 0.95), edge(0.7 - radius, 0.03))
    image = mix(image, (0.08, 0.08, 0.1), edge(0.06 - np.abs(u), 0.02) * edge(v, 0.02) * edge(0.55 - v, 0.02))
    image = mix(image, (0.08, 0.08, 0.1), edge(0.06 - np.abs(v), 0.02) * edge(u, 0.02) * edge(0.42 - u, 0.02))
    return image


def leaves(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A green plant on pale pink."""
    image = np.broadcast_to(np.array([0.96, 0.82, 0.78]), (*u.shape, 3))
    for angle in (-1.1, -0.4, 0.4, 1.1):
        a, b = u * np.cos(angle) + (v + 0.6) * np.sin(angle), (v + 0.6) * np.cos(angle) - u * np.sin(angle)
        image = mix(image, (0.12, 0.45, 0.22), edge(1 - (a / 0.18) ** 2 - ((b - 0.65) / 0.6) ** 2, 0.15))
    return mix(image, (0.78, 0.38, 0.20), patch(u, v, (-0.25, 0.25, -1.2, -0.5)))


def day(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A window by day: sky, a cloud, green below, white bars."""
    image = mix((0.88, 0.94, 0.98), (0.42, 0.68, 0.95), np.clip(v * 0.5 + 0.5, 0, 1))
    image = mix(image, (1.0, 1.0, 1.0), edge(1 - ((u + 0.3) / 0.5) ** 2 - ((v - 0.35) / 0.2) ** 2, 0.4))
    image = mix(image, (0.36, 0.60, 0.28), edge(-0.5 + 0.1 * np.sin(4 * u) - v, 0.05))
    return mix(image, WHITE, np.maximum(edge(0.05 - np.abs(u), 0.01), edge(0.05 - np.abs(v - 0.1), 0.01)))


def dusk(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A window in the evening, with dark red curtains."""
    image = mix((0.98, 0.62, 0.35), (0.28, 0.26, 0.55), np.clip(v * 0.6 + 0.5, 0, 1))
    image = mix(image, (0.14, 0.14, 0.24), edge(-0.55 + 0.2 * np.sign(np.sin(7 * u)) - v, 0.02))
    image = mix(image, WHITE, edge(0.05 - np.abs(u), 0.01))
    folds = 0.9 + 0.1 * np.cos(24 * u)
    return mix(image, np.array([0.55, 0.10, 0.16]) * folds[..., None], edge(np.abs(u) - 0.62, 0.02))


def blind(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A bright window without bars, its blind half down."""
    image = mix((0.75, 0.88, 0.70), (0.80, 0.92, 0.99), edge(v + 0.45, 0.05))
    return mix(image, (0.93, 0.55, 0.20), edge(v - 0.25, 0.02))


def door(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A closed blue door of two panels with a brass handle."""
    panel = np.maximum(patch(u, v, (-0.62, 0.62, 0.12, 0.82)), patch(u, v, (-0.62, 0.62, -0.82, -0.08)))
    image = mix((0.16, 0.33, 0.55), (0.11, 0.25, 0.44), panel)
    return mix(image, (0.95, 0.78, 0.35), patch(u, v, (0.68, 0.86, -0.04, 0.04)))


def books(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Four shelves of books in large groups of one colour."""
    hues = np.array(
        [(0.75, 0.2, 0.15), (0.15, 0.35, 0.6), (0.92, 0.75, 0.3), (0.2, 0.5, 0.35), (0.85, 0.85, 0.8), (0.4, 0.2, 0.45)]
    )
    row, column = np.floor((v + 1) * 2).clip(0, 3), np.floor((u + 1) * 2.5).clip(0, 4)
    order = np.array([[0, 3, 4, 1, 2], [5, 2, 0, 4, 3], [4, 1, 5, 3, 0], [2, 0, 3, 5, 1]])
    image = hues[order[row.astype(int), column.astype(int)]]
    high = ((v + 1) * 2) % 1.0
    image = mix(image, (0.13, 0.08, 0.05), edge(high - (0.68 + 0.1 * ((column + row) % 2)), 0.02))
    boards = np.maximum(edge(0.1 - high, 0.02), np.maximum(edge(np.abs(u) - 0.94, 0.02), edge(np.abs(v) - 0.97, 0.02)))
    return mix(image, (0.42, 0.26, 0.14), boards)
