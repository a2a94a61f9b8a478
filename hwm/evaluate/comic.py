"""The comic strip of an evaluation: prompt, then what was generated above what really happened, a row of pictures each.

It is the picture by which models of the 1X World Model Challenge were shown, with more to read in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwm.evaluate.results import Example, Results, shown_steps
from hwm.evaluate.show import examples_of, frames_per_second, title_of
from hwm.pictures.canvas import CONTEXT_COLOUR, FUTURE_COLOUR, enlargement
from hwm.pictures.sheet import Block, Row, draw_sheet


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
    chosen = shown_steps(results.horizon, steps)
    blocks = [_block(example, prompt, chosen, results) for example in examples_of(results)]
    return draw_sheet(blocks, scale or enlargement(results.examples[0].truth, 160))


def _block(example: Example, prompt: int, chosen: Sequence[int], results: Results) -> Block:
    """The two rows of one clip, under lines that say what it is, what its parts are, and when."""
    fps, per_step = frames_per_second(results), results.frames_per_step
    before = list(range(example.context - 1, -1, -per_step))[:prompt][::-1]
    after = [example.context + (t + 1) * per_step - 1 for t in chosen]
    seconds = [(frame - example.context + 1) / fps for frame in (*before, *after)]
    heads = [(f"{s:+.2f} s", FUTURE_COLOUR) if s > 0 else (f"{s:.2f} s", CONTEXT_COLOUR) for s in seconds]
    notes = [*("" for _ in before), *(f"{example.psnr[t]:.1f} dB" for t in chosen)]
    generated = f"generated, {results.scenario.replace('_', ' ')}"
    return Block(
        title=title_of(example),
        groups={0: ("prompt", CONTEXT_COLOUR)} | {len(before): (generated, FUTURE_COLOUR)},
        heads=heads,
        rows=[
            Row(name="model", pictures=example.prediction[[*before, *after]], notes=notes),
            Row(name="truth", pictures=example.truth[[*before, *after]]),
        ],
    )
