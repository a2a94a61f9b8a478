"""Procedural textures: smooth, large-scale colour and pattern as uint8 arrays (height, width, 3)."""

from __future__ import annotations

import colorsys

import numpy as np

FLOOR_METRES = 2.0
"""Side length of the square of floor that one floor texture covers."""


def colour(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    """RGB in 0..1 of a colour given by hue (any real number), saturation and value."""
    return colorsys.hsv_to_rgb(float(hue) % 1.0, float(np.clip(saturation, 0, 1)), float(np.clip(value, 0, 1)))


def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertical and horizontal pixel coordinates in 0..1."""
    rows, columns = np.mgrid[0:height, 0:width]
    return (rows + 0.5) / height, (columns + 0.5) / width


def _pixels(image: np.ndarray) -> np.ndarray:
    return np.clip(np.round(image * 255), 0, 255).astype(np.uint8)


def _flat(height: int, width: int, rgb: tuple[float, float, float]) -> np.ndarray:
    return np.broadcast_to(np.array(rgb), (height, width, 3)).copy()


def _blobs(rng: np.random.Generator, height: int, width: int, count: int = 4) -> np.ndarray:
    """A smooth periodic field in 0..1."""
    v, u = _grid(height, width)
    field = np.zeros((height, width))
    for _ in range(count):
        waves_u, waves_v = rng.integers(-2, 3), rng.integers(-2, 3)
        field += np.cos(2 * np.pi * (waves_u * u + waves_v * v) + rng.uniform(0, 2 * np.pi))
    return (field - field.min()) / max(float(np.ptp(field)), 1e-6)


def _mix(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return first + (second - first) * weight[:, :, None]


def floor(rng: np.random.Generator, hue: float, size: int = 256) -> np.ndarray:
    """Planks, tiles, a checkerboard or a soft carpet; covers ``FLOOR_METRES`` squared and repeats."""
    v, u = _grid(size, size)
    style = rng.choice(["planks", "tiles", "checker", "carpet"])
    value = rng.uniform(0.45, 0.85)
    if style == "planks":
        hue, saturation = rng.uniform(0.05, 0.12), rng.uniform(0.3, 0.6)
        rows = int(rng.integers(6, 10))
        row = (v * rows).astype(int)
        shift = rng.uniform(size=rows)[row]
        plank = row * 2 + ((u + shift) % 1.0 > 0.5)
        tone = rng.uniform(0.82, 1.08, 2 * rows)[plank]
        image = _flat(size, size, colour(hue, saturation, value)) * tone[:, :, None]
        return _pixels(image * np.where((v * rows) % 1.0 < 0.06, 0.75, 1.0)[:, :, None])
    if style == "carpet":
        first = _flat(size, size, colour(hue, rng.uniform(0.25, 0.6), value))
        second = _flat(size, size, colour(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.2, 0.6), value * 0.75))
        return _pixels(_mix(first, second, _blobs(rng, size, size)))
    count = int(rng.integers(2, 4)) * 2
    cell = (v * count).astype(int) * count + (u * count).astype(int)
    base = _flat(size, size, colour(hue, rng.uniform(0.1, 0.45), value))
    if style == "tiles":
        image = base * rng.uniform(0.88, 1.06, count * count)[cell][:, :, None]
        seam = ((v * count) % 1.0 < 0.05) | ((u * count) % 1.0 < 0.05)
        return _pixels(np.where(seam[:, :, None], image * 0.6, image))
    other = _flat(
        size, size, colour(hue + rng.uniform(-0.08, 0.08), rng.uniform(0.1, 0.5), value * rng.uniform(0.5, 0.75))
    )
    odd = ((v * count).astype(int) + (u * count).astype(int)) % 2
    return _pixels(_mix(base, other, odd.astype(float)))


def wall(rng: np.random.Generator, hue: float, height: int = 128, width: int = 256) -> np.ndarray:
    """A painted wall: plain gradient, wide stripes, two-tone, soft blobs or panels."""
    v, u = _grid(height, width)
    saturation, value = rng.uniform(0.35, 0.75), rng.uniform(0.65, 0.95)
    first = _flat(height, width, colour(hue, saturation, value))
    darker = _flat(height, width, colour(hue + rng.uniform(-0.04, 0.04), saturation, value * rng.uniform(0.65, 0.85)))
    style = rng.choice(["gradient", "stripes", "two-tone", "blobs", "panels"])
    if style == "gradient":
        weight = u if rng.random() < 0.5 else v
    elif style == "stripes":
        weight = ((u * int(rng.integers(5, 12))) % 1.0 < 0.5).astype(float)
    elif style == "two-tone":
        line = rng.uniform(0.35, 0.5)
        weight = np.where(v > 1 - line, 1.0, 0.0)
        band = np.abs(v - (1 - line)) < 0.02
        return _pixels(np.where(band[:, :, None], 0.92, _mix(first, darker, weight)))
    elif style == "blobs":
        weight = _blobs(rng, height, width)
    else:
        columns = int(rng.integers(4, 8))
        inside = (np.abs((u * columns) % 1.0 - 0.5) < 0.4) & (np.abs(v - 0.5) < 0.42)
        weight = inside.astype(float)
    return _pixels(_mix(first, darker, weight))


def table_top(rng: np.random.Generator, size: int = 128) -> np.ndarray:
    """A table top: plain wood, white, or a strong colour, with a soft gradient."""
    _, u = _grid(size, size)
    hue, saturation, value = [
        (rng.uniform(0.06, 0.11), rng.uniform(0.35, 0.6), rng.uniform(0.5, 0.85)),
        (rng.uniform(), rng.uniform(0.02, 0.12), rng.uniform(0.75, 0.95)),
        (rng.uniform(), rng.uniform(0.5, 0.8), rng.uniform(0.5, 0.9)),
    ][int(rng.integers(3))]
    first = _flat(size, size, colour(hue, saturation, value))
    return _pixels(_mix(first, first * rng.uniform(0.75, 0.9), u))


def poster(rng: np.random.Generator, size: int = 96) -> np.ndarray:
    """A framed picture of one or two simple shapes, or a window with a sky."""
    v, u = _grid(size, size)
    hue = rng.uniform()
    ground = _flat(size, size, colour(hue, rng.uniform(0.1, 0.8), rng.uniform(0.6, 1.0)))
    ink = np.array(colour(hue + rng.uniform(0.3, 0.7), 0.85, rng.uniform(0.4, 0.95)))
    style = rng.choice(["disc", "triangle", "bands", "window", "cross", "half"])
    x, y, radius = rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.6), rng.uniform(0.2, 0.34)
    if style == "window":
        sky = _mix(_flat(size, size, (0.45, 0.68, 0.95)), _flat(size, size, (0.93, 0.95, 0.98)), v)
        bars = (np.abs(u - 0.5) < 0.03) | (np.abs(v - 0.5) < 0.03)
        ground, shape, ink = sky, bars, np.array([0.96, 0.96, 0.94])
    elif style == "disc":
        shape = (u - x) ** 2 + (v - y) ** 2 < radius**2
    elif style == "triangle":
        shape = (v < 0.8) & (np.abs(u - x) < (v - 0.2) * 0.55)
    elif style == "bands":
        shape = ((u if rng.random() < 0.5 else v) * int(rng.integers(2, 4))) % 1.0 < 0.5
    elif style == "cross":
        shape = (np.abs(u - x) < 0.1) | (np.abs(v - y) < 0.1)
    else:
        shape = (u + v if rng.random() < 0.5 else u - v + 1) < 1
    image = np.where(shape[:, :, None], ink, ground)
    frame = np.maximum(np.abs(u - 0.5), np.abs(v - 0.5)) > 0.46
    return _pixels(np.where(frame[:, :, None], rng.choice([0.12, 0.95]), image))


def door(rng: np.random.Generator, size: int = 96) -> np.ndarray:
    """A door with two panels and a handle."""
    v, u = _grid(size, size)
    leaf = np.array(colour(rng.uniform(), rng.uniform(0.2, 0.7), rng.uniform(0.4, 0.9)))
    panel = (np.abs(u - 0.5) < 0.32) & (np.abs((v * 2) % 1.0 - 0.5) < 0.36)
    image = np.where(panel[:, :, None], leaf * 0.8, leaf)
    handle = (np.abs(u - 0.9) < 0.03) & (np.abs(v - 0.52) < 0.03)
    image = np.where(handle[:, :, None], 0.95, image)
    frame = (np.abs(u - 0.5) > 0.46) | (v < 0.03)
    return _pixels(np.where(frame[:, :, None], leaf * 0.5, image))
