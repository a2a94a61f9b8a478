"""Pictures of an evaluation: videos and GIFs side by side with the truth, and contact sheets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from hwm.errors import HwmError
from hwm.evaluate.results import Example, Results, shown_steps
from hwm.pictures.files import save_gif, save_video
from hwm.pictures.font import HEIGHT, WIDTH, draw_text, text_width
from hwm.pictures.panels import (
    CONTEXT_COLOUR,
    DIM,
    FUTURE_COLOUR,
    INK,
    PAPER,
    compose,
    difference,
    enlarge,
    enlargement,
)

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
        scores = f"model {example.psnr[step]:.1f}  copy {example.rival[step]:.1f} dB"
        lines.append(f"{(i + 1) / fps:+.1f} s  {scores}")
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
    """What `save_gifs` shows of each example as an mp4, and where pillow is installed as a GIF."""
    fps, paths = frames_per_second(results), []
    for number, example in enumerate(results.examples):
        paths.append(Path(folder) / f"clip_{number}.mp4")
        save_video(paths[-1], pair(example, results), fps)
    return [*paths, *save_gifs(folder, results)] if find_spec("PIL") else paths


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
    if not results.examples:
        raise HwmError("this evaluation kept no examples to show: evaluate with examples=4")
    chosen = shown_steps(results.horizon, steps)
    fps, per_step = frames_per_second(results), results.frames_per_step
    scale = scale or enlargement(results.examples[0].truth, 128)
    blocks = [_block(example, chosen, fps, per_step, scale) for example in results.examples]
    width = max(b.shape[1] for b in blocks)
    gap = np.full((14, width, 3), PAPER, np.uint8)
    parts = [part for block in blocks for part in (block, gap)][:-1]
    sheet = np.concatenate(parts)
    border = np.full((sheet.shape[0] + 20, width + 20, 3), PAPER, np.uint8)
    border[10:-10, 10:-10] = sheet
    return border


def _block(example: Example, chosen: Sequence[int], fps: float, per_step: int, scale: int) -> np.ndarray:
    """The rows of one clip of a contact sheet."""
    rows = {"truth": example.truth, "model": example.prediction}
    if example.swapped is not None:
        rows["swapped"] = example.swapped
    picture = enlarge(example.truth[0], scale)
    high, wide = picture.shape[:2]
    left, head, line = 8 * WIDTH + 6, 2 * HEIGHT + 8, HEIGHT + 4
    block = np.empty((head + len(rows) * (high + line), left + (len(chosen) + 1) * (wide + 4), 3), np.uint8)
    block[:] = PAPER
    kind = "moving" if example.moving else "nearly still"
    draw_text(block, f"{example.episode}, from step {example.start}, {kind}", 0, 0, INK)
    frames = [example.context - 1, *(example.context + (t + 1) * per_step - 1 for t in chosen)]
    for column, frame in enumerate(frames):
        x = left + column * (wide + 4)
        seconds = (frame - example.context + 1) / fps
        note = f"{seconds:+.2g} s" if column else "last context"
        draw_text(block, note, x, HEIGHT + 4, FUTURE_COLOUR if column else CONTEXT_COLOUR)
        for row, (name, video) in enumerate(rows.items()):
            y = head + row * (high + line)
            block[y : y + high, x : x + wide] = enlarge(video[frame], scale)
            if column == 0:
                draw_text(block, name, 0, y + high // 2 - 4, INK)
            elif name == "model":
                step = chosen[column - 1]
                score = f"{example.psnr[step]:.1f} dB"
                draw_text(block, score, x, y + high + 2, DIM)
                if wide >= text_width(score + " copy 00.0"):
                    draw_text(block, f"copy {example.rival[step]:.1f}", x + text_width(score + "  "), y + high + 2, DIM)
    return block
