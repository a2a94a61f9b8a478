"""Pictures to look at: side-by-side videos and GIFs with captions, and contact sheets. Nothing but numpy draws them."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np

from hwm.data.store import write_atomically
from hwm.data.video import write_video
from hwm.errors import HwmError
from hwm.evaluate.font import HEIGHT, WIDTH, Colour, draw_text, text_width
from hwm.evaluate.results import Example, Results, shown_steps

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


def save_video(path: str | Path, frames: Iterable[np.ndarray], fps: float, crf: int = 20) -> int:
    """Write an mp4, whole or not at all; returns the number of frames."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.stem}.{os.getpid()}.new.mp4")  # the encoder goes by the ending
    try:
        count = write_video(new, frames, fps, crf=crf)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    return count


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


def save_gif(path: str | Path, frames: Sequence[np.ndarray], fps: float, hold: float = 1.0) -> Path:
    """Write pictures (H, W, 3) uint8 as a GIF that repeats for ever, whole or not at all, at their true speed.

    All frames share one palette, so that what stands still does not flicker.

    Args:
        hold: seconds for which the last frame stays.

    Raises:
        HwmError: pillow is not installed, or there is nothing to write.
    """
    try:
        from PIL import Image
    except ImportError:
        raise HwmError("GIFs need pillow: pip install 'humanoid-world-models[eval]'") from None
    if not frames:
        raise HwmError(f"no frames to write to {path}")
    sample = frames[:: max(1, len(frames) // 8)]
    palette = Image.fromarray(np.concatenate(sample)).quantize(256, method=Image.Quantize.MEDIANCUT)
    pictures = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    ends = [round(100 * (i + 1) / fps) for i in range(len(frames))]  # a GIF counts in hundredths of a second
    lasting = [10 * (b - a) for a, b in pairwise([0, *ends])]
    lasting[-1] += round(1000 * hold)
    file = io.BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=lasting, loop=0, disposal=1)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, file.getvalue())
    return path


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


def png(picture: np.ndarray) -> bytes:
    """A uint8 (H, W, 3) picture as a PNG file (W3C Portable Network Graphics, third edition): 8-bit RGB.

    Each row is written as it is, or less its left or upper neighbours, whichever has the smallest values.
    """
    height, width, colours = picture.shape
    if picture.dtype != np.uint8 or colours != 3:
        raise HwmError(f"a PNG takes uint8 (H, W, 3), got {picture.dtype} {picture.shape}")
    above = np.concatenate([np.zeros_like(picture[:1]), picture[:-1]])
    left = np.concatenate([np.zeros_like(picture[:, :1]), picture[:, :-1]], 1)
    filtered = np.stack([picture, picture - left, picture - above]).reshape(
        3, height, -1
    )  # modulo 256, as it should be
    choice = np.abs(filtered.view(np.int8).astype(np.int32)).sum(-1).argmin(0)
    rows = np.concatenate([choice[:, None], filtered[choice, np.arange(height)]], 1).astype(np.uint8)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(rows.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def save_png(path: str | Path, picture: np.ndarray) -> Path:
    """Write a picture, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, png(picture))
    return path
