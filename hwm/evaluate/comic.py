"""The comic strip of an evaluation: prompt, then what was generated above what really happened, a row of pictures each.

It is the picture by which models of the 1X World Model Challenge were shown, with more to read in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwm.errors import HwmError
from hwm.evaluate.results import Example, Results, shown_steps
from hwm.evaluate.show import frames_per_second
from hwm.pictures.font import HEIGHT, Colour, draw_text, text_width
from hwm.pictures.panels import CONTEXT_COLOUR, DIM, FUTURE_COLOUR, INK, PAPER, enlarge, enlargement

MARGIN, GAP, BETWEEN = 12, 4, 22
"""Pixels around the sheet, between two pictures, and between two clips and the prompt and the rest."""

ROWS = ("model", "truth")


def comic_strip(results: Results, prompt: int = 3, steps: int = 8, scale: int | None = None) -> np.ndarray:
    """Clips below one another in one picture, uint8 (height, width, 3).

    Above each column stands its time, seen from the last frame of the prompt; below what was generated its PSNR
    against the truth. The prompt is shown as the model saw it, above the truth.

    Args:
        prompt: most steps of the prompt to show: the last ones.
        steps: most steps of the horizon to show; of a step of several frames the last is shown.
        scale: whole factor of enlargement; None chooses one that makes pictures about 160 wide.

    Raises:
        HwmError: the evaluation kept no examples.
    """
    if not results.examples:
        raise HwmError("this evaluation kept no examples to show: evaluate with examples=4")
    fps, per_step = frames_per_second(results), results.frames_per_step
    first = results.examples[0]
    scale = scale or enlargement(first.truth, 160)
    before = list(range(first.context - 1, -1, -per_step))[:prompt][::-1]
    after = [first.context + (t + 1) * per_step - 1 for t in shown_steps(results.horizon, steps)]
    letters = 2 if first.truth.shape[2] * scale >= text_width("+00.00 s", 2) else 1
    strips = [_strip(e, results, before, after, fps, scale, letters) for e in results.examples]
    height, width = sum(s.shape[0] for s in strips) + BETWEEN * (len(strips) - 1), strips[0].shape[1]
    sheet = _paper(height + 2 * MARGIN, width + 2 * MARGIN)
    top = MARGIN
    for strip in strips:
        sheet[top : top + strip.shape[0], MARGIN:-MARGIN] = strip
        top += strip.shape[0] + BETWEEN
    return sheet


def _strip(
    example: Example,
    results: Results,
    before: Sequence[int],
    after: Sequence[int],
    fps: float,
    scale: int,
    letters: int,
) -> np.ndarray:
    """The two rows of one clip, under lines that say what it is, what its parts are, and when."""
    high, wide = (n * scale for n in example.truth.shape[1:3])
    line = (HEIGHT + 3) * letters
    left = text_width(ROWS[1], letters) + 4 * letters
    right = left + (len(before) + len(after)) * (wide + GAP) - GAP + BETWEEN - GAP
    out = _paper(3 * line + 2 * high + line, right)
    kind = "moving" if example.moving else "nearly still"
    draw_text(out, f"{example.episode} from step {example.start}, {kind}", 0, 0, INK, letters)
    draw_text(out, "prompt", left, line, CONTEXT_COLOUR, letters)
    scenario = f"generated, {results.scenario.replace('_', ' ')}"
    draw_text(out, scenario, left + len(before) * (wide + GAP) - GAP + BETWEEN, line, FUTURE_COLOUR, letters)
    rows = (3 * line, 3 * line + high + line)
    for name, top in zip(ROWS, rows, strict=True):
        draw_text(out, name, 0, top + (high - HEIGHT * letters) // 2, INK, letters)
    x = left
    for column, frame in enumerate([*before, *after]):
        generated = column >= len(before)
        x += BETWEEN - GAP if column == len(before) else 0
        colour: Colour = FUTURE_COLOUR if generated else CONTEXT_COLOUR
        seconds = (frame - example.context + 1) / fps
        draw_text(out, f"{seconds:+.2f} s" if generated else f"{seconds:.2f} s", x, 2 * line, colour, letters)
        for top, video in zip(rows, (example.prediction, example.truth), strict=True):
            out[top : top + high, x : x + wide] = enlarge(video[frame], scale)
        if generated:
            score = example.psnr[(frame - example.context) // results.frames_per_step]
            draw_text(out, f"{score:.1f} dB", x, rows[0] + high + 2 * letters, DIM, letters)
        x += wide + GAP
    return out


def _paper(height: int, width: int) -> np.ndarray:
    out = np.empty((height, width, 3), np.uint8)
    out[:] = PAPER
    return out
