"""Pictures of an evaluation: videos and GIFs side by side with the truth, and contact sheets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from hwm.errors import HwmError
from hwm.evaluate.results import Example, Results, shown_steps
from hwm.pictures.canvas import CONTEXT_COLOUR, FUTURE_COLOUR, enlargement
from hwm.pictures.files import save_gif, save_video
from hwm.pictures.panels import compose, difference
from hwm.pictures.sheet import Block, Row, draw_sheet

PROMPTED = {"generated": "prompt", "swapped actions": "prompt"}
"""What a model was given is shown in the place of what it made of it, and says so."""


def side_by_side(
    example: Example, fps: float, frames_per_step: int = 1, *, columns: int | None = None, hold: float = 0.0
) -> Iterator[np.ndarray]:
    """Truth, prompt and prediction, their difference and, where there is one, the prediction under swapped actions.

    Args:
        fps: frames a second.
        hold: seconds for which the last frame stays.
    """
    panels = {
        "ground truth": example.truth,
        "generated": example.prediction,
        "difference x2": difference(example.truth, example.prediction),
    }
    if example.swapped is not None:
        panels["swapped actions"] = example.swapped
    lines = captions(example, fps, frames_per_step)
    frames = list(compose(panels, lines, context=example.context, context_names=PROMPTED, columns=columns))
    yield from frames
    for _ in range(round(hold * fps)):
        yield frames[-1]


def captions(example: Example, fps: float, frames_per_step: int = 1) -> list[str]:
    """The line below each frame of an example: prompt, or time since then and the scores of that step in dB."""
    lines = [f"prompt {i + 1} of {example.context}" for i in range(example.context)]
    for i in range(len(example.truth) - example.context):
        step = i // frames_per_step
        scores = f"model {example.psnr[step]:.1f} dB, copy {example.rival[step]:.1f} dB"
        lines.append(f"{(i + 1) / fps:+.1f} s, {scores}")
    return lines


def frames_per_second(results: Results) -> float:
    """True speed of the examples of an evaluation."""
    return results.steps_per_second * results.frames_per_step


def save_examples(folder: str | Path, results: Results, *, columns: int | None = None, hold: float = 0.0) -> list[Path]:
    """A side-by-side video of each example of an evaluation, at its true speed."""
    fps, paths = frames_per_second(results), []
    for number, example in enumerate(results.examples):
        paths.append(Path(folder) / f"clip_{number}.mp4")
        save_video(paths[-1], side_by_side(example, fps, results.frames_per_step, columns=columns, hold=hold), fps)
    return paths


def save_gifs(folder: str | Path, results: Results) -> list[Path]:
    """A GIF of each example of an evaluation: the prompt and what was generated from it, beside the truth."""
    fps, paths = frames_per_second(results), []
    for number, example in enumerate(results.examples):
        paths.append(save_gif(Path(folder) / f"clip_{number}.gif", pair(example, results), fps))
    return paths


def save_pairs(folder: str | Path, results: Results) -> list[Path]:
    """What `save_gifs` shows of each example, as an mp4 and as a GIF."""
    fps, paths = frames_per_second(results), []
    for number, example in enumerate(results.examples):
        paths.append(Path(folder) / f"clip_{number}.mp4")
        save_video(paths[-1], pair(example, results), fps)
    return [*paths, *save_gifs(folder, results)]


def pair(example: Example, results: Results, scale: int | None = None) -> list[np.ndarray]:
    """Frames of an example: the prompt and what was generated from it, beside the truth; `scale` as of `compose`."""
    panels = {"generated": example.prediction, "ground truth": example.truth}
    lines = captions(example, frames_per_second(results), results.frames_per_step)
    return list(compose(panels, lines, context=example.context, context_names=PROMPTED, scale=scale))


def contact_sheet(results: Results, steps: int = 6, scale: int | None = None) -> np.ndarray:
    """Clips x steps in one picture, uint8 (height, width, 3): the last context frame, then steps of the horizon.

    Each clip has a row of the truth, of the prediction with its PSNR, and of the prediction under swapped actions.

    Raises:
        HwmError: the evaluation kept no examples.
    """
    chosen = shown_steps(results.horizon, steps)
    blocks = [_block(example, chosen, results) for example in examples_of(results)]
    return draw_sheet(blocks, scale or enlargement(results.examples[0].truth, 128))


def examples_of(results: Results) -> list[Example]:
    """The examples that an evaluation kept; raises `HwmError` where there are none."""
    if not results.examples:
        raise HwmError("this evaluation kept no examples to show: evaluate with examples=4")
    return results.examples


def title_of(example: Example) -> str:
    """What an example is, in a line."""
    return f"{example.episode} from step {example.start}, {'moving' if example.moving else 'nearly still'}"


def _block(example: Example, chosen: Sequence[int], results: Results) -> Block:
    """The rows of one clip of a contact sheet."""
    fps, per_step = frames_per_second(results), results.frames_per_step
    after = [example.context + (t + 1) * per_step - 1 for t in chosen]
    frames = [example.context - 1, *after]
    times = [(f"{(f - example.context + 1) / fps:+.2g} s", FUTURE_COLOUR) for f in after]
    notes = ["", *(f"{example.psnr[t]:.1f} dB, copy {example.rival[t]:.1f}" for t in chosen)]
    rows = [Row(name="truth", pictures=example.truth[frames])]
    rows += [Row(name="model", pictures=example.prediction[frames], notes=notes)]
    if example.swapped is not None:
        rows += [Row(name="swapped", pictures=example.swapped[frames])]
    return Block(title=title_of(example), heads=[("last context", CONTEXT_COLOUR), *times], rows=rows)
