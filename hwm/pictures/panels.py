"""Videos side by side under their names, with captions and a bar of time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from hwm.errors import HwmError
from hwm.pictures.canvas import (
    CONTEXT_COLOUR,
    FUTURE_COLOUR,
    GAP,
    INK,
    PAPER,
    Colour,
    enlarge,
    enlargement,
    fitting_size,
    font,
    line_height,
)  # fmt: skip

# From black over violet and orange to pale yellow: brightness grows steadily, so it also reads in grey.
_HEAT = np.array([(0, 0, 0), (60, 15, 105), (160, 40, 100), (230, 105, 40), (252, 190, 60), (255, 252, 210)], float)


def difference(a: np.ndarray, b: np.ndarray, gain: float = 2.0) -> np.ndarray:
    """Where two uint8 pictures (..., H, W, 3) differ: the mean absolute difference of the colours, times `gain`."""
    d = np.abs(a.astype(np.float32) - b.astype(np.float32)).mean(-1) * (gain / 255)
    places = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(d, places, channel) for channel in _HEAT.T], -1).round().astype(np.uint8)


def compose(
    panels: Mapping[str, np.ndarray],
    captions: Sequence[str],
    *,
    context: int = 0,
    context_names: Mapping[str, str] | None = None,
    columns: int | None = None,
    scale: int | None = None,
) -> Iterator[np.ndarray]:
    """Panels side by side, each under its name, with a line below and a bar that shows how far the clip is.

    Args:
        panels: name -> (F, H, W, 3) uint8, all alike in shape.
        captions: the line below, one a frame.
        context: how many of the frames are context: there the line and the bar are grey and not orange.
        context_names: what panels are called there, where that is another name.
        columns: panels in a row; None puts all into one.
        scale: whole factor of enlargement; None chooses one that makes panels about 256 wide.

    Yields:
        F frames, uint8 (height, width, 3), both even.

    Raises:
        HwmError: panels that differ in shape, or as many captions as there are not frames.
    """
    shapes = {p.shape for p in panels.values()}
    if len(shapes) != 1:
        raise HwmError(f"panels of one video need one shape, got { ({k: v.shape for k, v in panels.items()}) }")
    count, height, width, _ = next(iter(shapes))
    if len(captions) != count:
        raise HwmError(f"{len(captions)} captions for {count} frames")
    columns = columns or len(panels)
    scale = scale or enlargement(next(iter(panels.values())))
    rows = -(-len(panels) // columns)
    wide, high = width * scale, height * scale
    total = columns * wide + (columns - 1) * GAP
    names = fitting_size([*panels, *(context_names or {}).values()], wide - 8, largest=18)
    words = fitting_size(captions, total - 8, largest=18)
    head = line_height(names)
    bottom = rows * (head + high)
    tall = bottom + GAP + line_height(words) + 2
    places = [(i % columns * (wide + GAP), i // columns * (head + high)) for i in range(len(panels))]
    for f in range(count):
        image = Image.new("RGB", (total + total % 2, tall + tall % 2), PAPER)
        draw = ImageDraw.Draw(image)
        others = (context_names or {}) if f < context else {}
        for (left, top), (name, video) in zip(places, panels.items(), strict=True):
            draw.text((left + 4, top), others.get(name, name), INK, font(names))
            image.paste(Image.fromarray(enlarge(video[f], scale)), (left, top + head))
        _bar(draw, bottom, total, f, count, context)
        colour = CONTEXT_COLOUR if f < context else FUTURE_COLOUR
        draw.text((4, bottom + GAP), captions[f], colour, font(words))
        yield np.array(image)


def _bar(draw: ImageDraw.ImageDraw, top: int, width: int, now: int, count: int, context: int) -> None:
    """A thin strip: grey where context was shown, orange where predictions were, dark where they are to come."""
    edges = [round(i * width / count) for i in range(count + 1)]
    for i in range(count):
        red, green, blue = CONTEXT_COLOUR if i < context else FUTURE_COLOUR
        shade: Colour = (red, green, blue) if i <= now else (red // 4, green // 4, blue // 4)
        draw.rectangle((edges[i], top + 1, max(edges[i], edges[i + 1] - 2), top + GAP - 2), shade)
