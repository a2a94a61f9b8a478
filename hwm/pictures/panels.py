"""Videos side by side under their names, with captions and a bar of time, and the colours of all drawing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hwm.errors import HwmError
from hwm.pictures.font import HEIGHT, Colour, draw_text, text_width

INK, PAPER, DIM = (238, 240, 244), (17, 20, 26), (128, 134, 146)
CONTEXT_COLOUR, FUTURE_COLOUR = (108, 116, 130), (235, 148, 40)
GAP = 6

# From black over violet and orange to pale yellow: brightness grows steadily, so it also reads in grey.
_HEAT = np.array([(0, 0, 0), (60, 15, 105), (160, 40, 100), (230, 105, 40), (252, 190, 60), (255, 252, 210)], float)


def enlargement(picture: np.ndarray, wide: int = 256) -> int:
    """Whole factor that brings a picture (..., H, W, 3) to about `wide` pixels; 1 for a large one."""
    return max(1, round(wide / picture.shape[-2]))


def enlarge(picture: np.ndarray, factor: int) -> np.ndarray:
    """(..., H, W, 3) -> (..., H * factor, W * factor, 3), each pixel a square."""
    return picture.repeat(factor, -3).repeat(factor, -2)


def difference(a: np.ndarray, b: np.ndarray, gain: float = 2.0) -> np.ndarray:
    """Where two uint8 pictures (..., H, W, 3) differ: the mean absolute difference of the colours, times `gain`."""
    d = np.abs(a.astype(np.float32) - b.astype(np.float32)).mean(-1) * (gain / 255)
    position = d.clip(0, 1) * (len(_HEAT) - 1)
    low = np.minimum(position.astype(int), len(_HEAT) - 2)
    part = (position - low)[..., None]
    return np.asarray((_HEAT[low] * (1 - part) + _HEAT[low + 1] * part).round(), np.uint8)


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
    letters = max(1, min([2, *(wide // max(1, text_width(name)) for name in panels)]))
    head = (HEIGHT + 3) * letters
    total_width = columns * wide + (columns - 1) * GAP
    line = max(1, min([2, *(total_width // max(1, text_width(c) + 4) for c in captions)]))
    foot = (HEIGHT + 4) * line + GAP
    total_height = rows * (head + high) + foot
    blank = np.empty((total_height + total_height % 2, total_width + total_width % 2, 3), np.uint8)
    blank[:] = PAPER
    places = [((i // columns) * (head + high), (i % columns) * (wide + GAP)) for i in range(len(panels))]
    for f in range(count):
        frame, colour = blank.copy(), CONTEXT_COLOUR if f < context else FUTURE_COLOUR
        others = (context_names or {}) if f < context else {}
        for (top, left), (name, video) in zip(places, panels.items(), strict=True):
            draw_text(frame, others.get(name, name), left + 3 * letters, top + 2 * letters, INK, letters)
            frame[top + head : top + head + high, left : left + wide] = enlarge(video[f], scale)
        bottom = rows * (head + high)
        _bar(frame, bottom, total_width, f, count, context)
        draw_text(frame, captions[f], 2 * line, bottom + GAP + 2 * line, colour, line)
        yield frame


def _bar(frame: np.ndarray, top: int, width: int, now: int, count: int, context: int) -> None:
    """A thin strip: grey where context was shown, orange where predictions were, dark where they are to come."""
    edges = [round(i * width / count) for i in range(count + 1)]
    for i in range(count):
        colour: Colour = CONTEXT_COLOUR if i < context else FUTURE_COLOUR
        shade = np.array(colour) if i <= now else np.array(colour) // 4
        frame[top + 1 : top + GAP - 1, edges[i] : max(edges[i] + 1, edges[i + 1] - 1)] = shade
