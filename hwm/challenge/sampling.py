"""The sampling track: one frame, 60 after the last of 17 that are seen, given the actions up to it.

Any model and tokenizer will do: the frames that are seen are encoded, the model is rolled out up to the step that shows
the frame asked for, and that step is decoded. A squared error has its least expectation at the mean of what may come,
so averaging several samples, in pixels, scores higher than any of them.

Shapes: T latent step, K actions a step, N samples drawn, F frames.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hwm.challenge.formats import PictureFormat
from hwm.challenge.recordings import Recordings, Sample
from hwm.challenge.submission import Submission
from hwm.devices import device_of, runtime_of
from hwm.errors import HwmError
from hwm.evaluate import metrics
from hwm.models.base import WorldModel
from hwm.pictures.files import png
from hwm.pictures.video import to_uint8, to_video
from hwm.progress import track
from hwm.types import Batch, Tokenizer

SIZE = (512, 512)
UNKNOWN = (
    "everything about a submission's files (here: ID.png, 8-bit RGB, the number of the sample, beside a README.txt as "
    "in the other track)",
    "how PSNR is taken (here: of each 8-bit picture, 10 log10(255^2 / MSE) over all pixels and colours, at most 100 "
    "dB, then the mean over samples)",
    "what the states after the 77th of a test sample are for (here: nothing)",
)

SAME = (
    "All samples of a clip are alike, so averaging them changes nothing: the sampler does not draw "
    "(--sampler pick=sample temperature=1.0)"
)


@dataclass(frozen=True)
class Plan:
    """Which frames become which steps, and where the frame asked for comes out.

    Frames that a model sees are `every` frames apart, counted back from the one that is asked for.

    Attributes:
        every: frames from one that the model sees to the next.
        frames: numbers of the frames that are encoded, in order; a row for each clip that is encoded by itself.
        context: steps that they make.
        rows: (T, K), for every step of the context and of the rollout, the rows of the actions that lead to it.
        decode: steps that are decoded together, of all.
        visible: numbers of the frames that these steps show. After the frame asked for they are not real: its own
            number stands for them.
        shown: which of them is the one asked for.
    """

    every: int
    frames: np.ndarray
    context: int
    rows: np.ndarray
    decode: slice
    visible: np.ndarray
    shown: int


def plan(
    known: int,
    target: int,
    *,
    every: int,
    stride: int,
    rate: int = 1,
    past: int,
    group: int = 1,
    clip_steps: int = 1,
    lookback: int = 0,
) -> Plan:
    """Lay a sample out for a model.

    With `clip_steps` > 1 the tokenizer encodes clips of so many steps by themselves, each beginning with a step of one
    frame, and so does the model predict them. Otherwise the context is one clip that goes on for ever.

    Args:
        known, target: frames that are seen, and the one asked for.
        every: frames from one that the model sees to the next.
        stride: of the tokenizer.
        rate: rows of actions a frame.
        past: most steps that the model looks back on.
        group: steps that the model predicts together at least.
        lookback: of the tokenizer.

    Raises:
        HwmError: too few frames for a step, or for a clip.
    """
    newest = known - 1 - (known - 1 - target) % every
    at_hand = newest // every + 1 if newest >= 0 else 0
    clip_frames = 1 + (clip_steps - 1) * stride
    context, encoded = _context(at_hand, stride, past, clip_steps)
    if context < 1:
        raise HwmError(
            f"of the {known} frames that are seen, {at_hand} lie {every} apart and lead to frame {target}: the model "
            f"needs {clip_frames} of them at least"
        )
    first, wanted = newest - every * (encoded - 1), encoded + (target - newest) // every
    begin, last, start = _decoded(wanted, stride, clip_steps, lookback)
    filled = start + 1 + (last - begin) * stride
    numbers = np.minimum(np.arange(start, filled), wanted - 1)
    steps = context + -(-(last + 1 - context) // group) * group
    return Plan(
        every=every,
        frames=(first + every * np.arange(encoded)).reshape(-1, clip_frames if clip_steps > 1 else encoded),
        context=context,
        rows=_rows(steps, first, every, stride, rate, clip_steps).clip(0, (target + 1) * rate - 1),
        decode=slice(begin, last + 1),
        visible=first + every * numbers,
        shown=wanted - 1 - start,
    )


def _context(at_hand: int, stride: int, past: int, clip_steps: int) -> tuple[int, int]:
    """How many steps of context the frames at hand make, and how many of the frames are encoded for them."""
    if clip_steps > 1:
        clips = min(at_hand // (1 + (clip_steps - 1) * stride), past // clip_steps)
        return clips * clip_steps, clips * (1 + (clip_steps - 1) * stride)
    context = min(1 + (at_hand - 1) // stride, past) if at_hand else 0
    return context, 1 + (context - 1) * stride


def _decoded(wanted: int, stride: int, clip_steps: int, lookback: int) -> tuple[int, int, int]:
    """Where decoding begins and ends to show the last of the first `wanted` frames that the model knows or makes.

    Returns:
        the first and the last step that are decoded together, and the number of the first frame that they show.
    """
    if clip_steps > 1:  # decode the clip that shows the frame, up to it
        clip_frames = 1 + (clip_steps - 1) * stride
        clip, within = divmod(wanted - 1, clip_frames)
        return clip * clip_steps, clip * clip_steps - (-within // stride), clip * clip_frames
    if stride > 1:  # the tokenizer may need the whole clip
        return 0, -(-(wanted - 1) // stride), 0
    last = wanted - 1
    begin = max(0, last - lookback)
    return begin, last, begin


def _rows(steps: int, first: int, every: int, stride: int, rate: int, clip_steps: int) -> np.ndarray:
    """Rows (T, K) of the actions that lead to each step, some before the first row or after the last; frame `first` is
    the first that is encoded.

    The step of one frame that begins a clip in mid-recording has the rows of its frame alone, repeated, as in 1X's
    v2.0; see `OneXV2`.
    """
    k, wide = every * stride * rate, every * rate
    out = np.empty((steps, k), np.int64)
    for t in range(steps):
        clip, step = divmod(t, clip_steps) if clip_steps > 1 else (0, t)
        newest = (
            clip * (1 + (clip_steps - 1) * stride) + step * stride
        )  # of the step's frames, counted as the model does
        stop = (first + every * newest + 1) * rate
        alone = clip_steps > 1 and step == 0
        out[t] = np.tile(np.arange(stop - wide, stop), stride) if alone else np.arange(stop - k, stop)
    return out


def plan_for(model: WorldModel, tokenizer: Tokenizer, data: Recordings) -> Plan:
    """The plan of a model, a tokenizer and recordings.

    Raises:
        HwmError: they do not belong together: other latents, another robot, or another number of actions a step than
            whole frames make.
    """
    spec, latent = model.spec, tokenizer.latent
    if latent != spec.latent:
        raise HwmError(f"the model reads {spec.latent}, the tokenizer {tokenizer.id!r} makes {latent}")
    if spec.tokenizer and not tokenizer.answers_to(spec.tokenizer):
        raise HwmError(f"the model reads latents of {spec.tokenizer!r}, not of {tokenizer.id!r}")
    if data.embodiment not in spec.actions:
        raise HwmError(f"{data.path} is of {data.embodiment!r}, the model knows {sorted(spec.actions)}")
    per_step = spec.actions[data.embodiment].per_step
    every, rest = divmod(per_step, latent.stride * data.rate)
    if rest or not every:
        raise HwmError(
            f"the model takes {per_step} actions a step of {latent.stride} frames, {data.path} has {data.rate} a "
            "frame: a step would not be of whole frames"
        )
    # models that predict steps in groups are those of 1X's clips; where every step is one frame it makes no difference
    clip_steps = model.group if latent.stride > 1 else 1
    return plan(
        data.known, data.target, every=every, stride=latent.stride, rate=data.rate, past=model.config.past,
        group=model.group, clip_steps=clip_steps, lookback=tokenizer.lookback,
    )  # fmt: skip


def resized(picture_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    """A picture in another size: averaged over areas where it shrinks, bilinear where it grows."""
    if tuple(picture_CHW.shape[-2:]) == size:
        return picture_CHW
    shrinks = picture_CHW.shape[-2] >= size[0] and picture_CHW.shape[-1] >= size[1]
    how: dict[str, Any] = {"mode": "area"} if shrinks else {"mode": "bilinear", "antialias": True}
    return F.interpolate(picture_CHW[None], size, **how)[0]


class Painter:
    """Paints the frames that are asked for.

    Args:
        samples: how many are drawn and averaged.
        batch_size: how many are rolled out at once; it changes nothing about them.
        sampler: the model's, or another of its kind.
        seed: of the drawing; sample i of a clip is the same however many there are.
        dtype: number format of the model's matrix products, as of `hwm.evaluate.evaluate.EvaluateConfig`.
    """

    def __init__(
        self,
        model: WorldModel,
        tokenizer: Tokenizer,
        layout: Plan,
        embodiment: str,
        *,
        samples: int = 1,
        batch_size: int = 8,
        sampler: Any = None,
        seed: int = 0,
        size: tuple[int, int] = SIZE,
        dtype: str | torch.dtype = "auto",
    ) -> None:
        if min(samples, batch_size) < 1:
            raise HwmError(f"samples {samples} and batch_size {batch_size} must be at least 1")
        self.model, self.tokenizer, self.plan, self.embodiment = model, tokenizer, layout, embodiment
        self.samples, self.batch_size, self.sampler, self.seed, self.size = samples, batch_size, sampler, seed, size
        self.runtime = runtime_of(model, dtype)
        self.device = self.runtime.device

    def encode(self, frames: np.ndarray) -> Tensor:
        """Clips (clips, F, H, W, 3) uint8, each encoded by itself, as one row of latents (1, T, ...)."""
        home = device_of(self.tokenizer, self.device)
        made = [self.tokenizer.encode(to_video(clip, self.tokenizer.size)[None].to(home)) for clip in frames]
        return torch.cat(made, 1).to(self.device)

    def decode(self, latents: Tensor) -> Tensor:
        """The steps of `plan.decode` (N, T, ...) -> the frame asked for, (N, 3, H, W) on the CPU."""
        latents = latents.to(device_of(self.tokenizer, self.device))
        return torch.cat([self.tokenizer.decode(one)[:, self.plan.shown].float().cpu() for one in latents.split(1)])

    def finish(self, picture_CHW: Tensor) -> np.ndarray:
        """The picture that is written: (H, W, 3) uint8 of the size asked for."""
        return to_uint8(resized(picture_CHW, self.size))

    @torch.inference_mode()
    def paint(self, sample: Sample) -> list[Tensor]:
        """The samples drawn for one clip, (3, H, W) each, in the tokenizer's size."""
        latents = self.encode(sample.stack(self.plan.frames))
        if latents.shape[1] != self.plan.context:
            raise HwmError(
                f"the tokenizer {self.tokenizer.id!r} made {latents.shape[1]} steps of {self.plan.frames.size} frames, "
                f"expected {self.plan.context}"
            )
        actions = torch.from_numpy(sample.actions[self.plan.rows])[None].to(self.device)
        drawn: list[Tensor] = []
        for first in range(0, self.samples, self.batch_size):
            numbers = range(first, min(first + self.batch_size, self.samples))
            batch = Batch(
                latents.expand(len(numbers), *latents.shape[1:]),
                actions.expand(len(numbers), *actions.shape[1:]),
                self.embodiment,
            )
            generators = [self.generator(sample.name, i) for i in numbers]
            with self.runtime.autocast():
                found = self.model.rollout(batch, sampler=self.sampler, generator=generators).latents
            drawn += self.decode(torch.cat([batch.latents, found], 1)[:, self.plan.decode]).unbind()
        return drawn

    def generator(self, name: str, number: int) -> torch.Generator:
        """That of one sample of one clip, whatever else is drawn."""
        seed = zlib.crc32(f"{self.seed} {name} {number}".encode())
        return torch.Generator(self.device).manual_seed(seed)

    @torch.inference_mode()
    def ceiling(self, sample: Sample) -> Tensor:
        """What the tokenizer makes of the frame asked for, encoded and decoded with those shown along with it."""
        return self.decode(self.encode(sample.stack(self.plan.visible[None])))[0]


def describe(painter: Painter, data: Recordings) -> list[str]:
    """What happens to a sample, in words."""
    layout = painter.plan
    seen, steps = layout.frames, len(layout.rows)
    every = f", one in {layout.every}," if layout.every > 1 else ""
    lines = [
        f"{len(data.names):,} samples of {data.path}: frames {seen.min()} to {seen.max()}{every} make {layout.context} "
        f"steps, {steps - layout.context} more are predicted, frame {data.target} is shown"
    ]
    if painter.tokenizer.size != painter.size:
        made, wanted = (f"{h} x {w}" for h, w in (painter.tokenizer.size, painter.size))
        lines.append(f"pictures are made at {made}, as the tokenizer's are, and resized to {wanted}")
    return lines


def psnr(picture: np.ndarray, truth: np.ndarray) -> float:
    """dB of two uint8 pictures (H, W, 3)."""
    a, b = (torch.from_numpy(x).movedim(-1, 0).float() / 255 for x in (picture, truth))
    return float(metrics.psnr(a, b))


def figures(painter: Painter, sample: Sample, drawn: list[Tensor], picture: np.ndarray, known: int) -> dict[str, float]:
    """PSNR in dB, at the size of the pictures: of the picture that is written, of one sample (the mean over those
    drawn), of the last frame seen, and of the truth as the tokenizer shows it."""
    truth = painter.finish(to_video(sample.frames[sample.target][None], sample.frames[sample.target].shape[:2])[0])
    last = painter.finish(to_video(sample.frames[known - 1][None], sample.frames[known - 1].shape[:2])[0])
    return {
        "psnr": psnr(picture, truth),
        "psnr_one": float(np.mean([psnr(painter.finish(one), truth) for one in drawn])),
        "psnr_copy": psnr(last, truth),
        "psnr_reconstruction": psnr(painter.finish(painter.ceiling(sample)), truth),
        "spread": float(torch.stack(drawn).std(0, correction=0).mean()),
    }


def write_sampling(
    painter: Painter, data: Recordings, out: Path, *, settings: dict[str, Any] | None = None
) -> tuple[Submission, dict[str, np.ndarray]]:
    """Write the picture of every sample, and score those whose truth is known; goes on where it stopped.

    Args:
        settings: what the files depend on: recorded, and compared when the work is resumed.

    Returns:
        the submission, and its figures, (samples,) each; none where no truth is known.
    """
    entry = Submission(out, "sampling", PictureFormat(painter.size), data.names, settings or {})
    todo, number = entry.todo(data.scored), {name: i for i, name in enumerate(data.names)}
    wanted = {int(i) for i in painter.plan.frames.flat}
    if data.scored:
        wanted |= {int(i) for i in painter.plan.visible} | {data.known - 1, data.target}
    training = painter.model.training
    painter.model.eval()
    try:
        for name in track(todo, len(todo), "painting", unit="samples"):
            sample = data.sample(number[name], wanted)
            drawn = painter.paint(sample)
            picture = painter.finish(torch.stack(drawn).mean(0))
            marks = figures(painter, sample, drawn, picture, data.known) if data.scored else None
            entry.add(name, png(picture), marks)
    finally:
        painter.model.train(training)
    scores = entry.scores() if data.scored else {}
    rows = [scores[name] for name in data.names if name in scores]
    return entry, {figure: np.array([row[figure] for row in rows]) for figure in (rows[0] if rows else ())}
