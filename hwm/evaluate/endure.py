"""How long a dream lives: rollouts of many seconds under the recorded commands, judged at a few horizons.

Shapes: N clips, B of them in a batch, H horizons, F frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwm.data.clips import PARTS, Clips
from hwm.data.store import Episode, Store
from hwm.devices import runtime_of
from hwm.errors import HwmError
from hwm.evaluate.camera import camera_frames, episode_of, frame_numbers
from hwm.evaluate.endurance import Endurance, Film
from hwm.evaluate.evaluate import check, describe
from hwm.evaluate.footage import Footage, Shots, footage, footage_of_clips
from hwm.evaluate.frechet import FrechetDistance
from hwm.evaluate.moments import FRAMES, SOURCES, Eyes, Moment, eyes
from hwm.evaluate.predict import judged
from hwm.evaluate.rollout import by_clips, clip_windows
from hwm.models.base import WorldModel
from hwm.pictures.stack import side_by_side
from hwm.pictures.video import to_uint8
from hwm.progress import bar
from hwm.types import Batch, Prediction, Tokenizer

SECONDS = (0.1, 0.5, 1.0, 3.0, 10.0, 30.0)
"""Horizons at which dreams are judged."""


@dataclass(frozen=True, kw_only=True)
class EnduranceConfig:
    """How long rollouts are judged.

    Attributes:
        clips: how many windows, spread evenly over the store, at most all.
        prompt: context frames (latent steps); None is all that the model looks back on.
        seconds: horizons, in seconds after the context; those that the clips do not reach are left out, with a note.
        batch_size: clips at once.
        seed: everything random follows from it, clip by clip, whatever the batch size.
        sampler: passed on to the model; None is the model's own.
        eyes: what looks at the pictures; None is all that can (`eyes`).
        films: how many clips to keep as videos.
        progress: show a progress bar where the output is a terminal.
        dtype: number format of the model's matrix products, as of `EvaluateConfig`.
    """

    clips: int = 16
    prompt: int | None = None
    seconds: Sequence[float] = SECONDS
    batch_size: int = 8
    seed: int = 0
    sampler: Any = None
    eyes: Eyes | None = None
    films: int = 2
    progress: bool = True
    dtype: str | torch.dtype = "auto"

    def __post_init__(self) -> None:
        for name, least in (("clips", 1), ("batch_size", 1), ("films", 0)):
            if getattr(self, name) < least:
                raise HwmError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.seconds or min(self.seconds) <= 0:
            raise HwmError(f"horizons are seconds after the context, all above 0, got {list(self.seconds)}")


def endure(model: WorldModel, tokenizer: Tokenizer, clips: Clips, config: EnduranceConfig | None = None) -> Endurance:
    """Roll out held-out clips under their recorded commands, and judge the pictures at each horizon.

    Args:
        clips: windows of a store with video, as long as the context and the farthest horizon that fits
            (`windows_for`).

    Raises:
        HwmError: no horizon fits, the store has no video, or parts do not belong together.
    """
    c = config or EnduranceConfig()
    prompt = model.config.past if c.prompt is None else c.prompt
    steps, notes = horizons(c.seconds, clips.spec().fps, clips.length - prompt)
    if not steps:
        raise HwmError(f"{clips.store.path}: {'; '.join(notes)}: ask for other horizons")
    check(model, tokenizer, clips, prompt + steps[-1])
    if not clips.store.has_video:
        raise HwmError(f"{clips.store.path} has no video to judge long rollouts by: encode it with --keep-video")
    run = _Run(model, tokenizer, clips, c, prompt, steps)
    with judged(model), bar("long rollouts", len(run.indices) * steps[-1], "steps", c.progress) as advance:
        for first in range(0, len(run.indices), c.batch_size):
            run.judge(first, advance)
    return run.endurance([*notes, *run.eyes.notes])


def horizons(seconds: Sequence[float], fps: float, most: int) -> tuple[list[int], list[str]]:
    """Horizons as numbers of steps, and notes on those that are left out.

    Args:
        fps: steps a second.
        most: steps that follow the context.
    """
    wanted = {s: round(s * fps) for s in sorted(seconds)}
    short = [f"{s:g} s is less than a step of {1 / fps:.3g} s" for s, n in wanted.items() if n < 1]
    long = [f"{s:g} s is left out: no clip goes on for so long" for s, n in wanted.items() if n > most]
    return sorted({n for n in wanted.values() if 1 <= n <= most}), short + long


def windows_for(
    store: Store, prompt: int, seconds: Sequence[float] = SECONDS, *, stride: int = 1, part: str = "test"
) -> Clips:
    """Windows of the context and the farthest of these horizons that an episode reaches.

    Args:
        stride, part: as of `Clips`.
    """
    starts, stops = (edges[PARTS[part]] for edges in store.bounds)
    longest = -(-int(np.max(stops - starts, initial=0)) // stride)
    steps, _ = horizons(seconds, store.data_spec().fps / stride, longest - prompt)
    return Clips(store, prompt + max(steps, default=1), stride=stride, part=part)


class _Run:
    """One judgement, batch by batch.

    Attributes:
        indices: (N,) which windows are judged.
        ranges: numbers of the frames of each moment, the first of which is the last frame of the context alone.
        values: figure -> source -> step of the horizon -> (B,) of each batch so far.
    """

    def __init__(
        self,
        model: WorldModel,
        tokenizer: Tokenizer,
        clips: Clips,
        config: EnduranceConfig,
        prompt: int,
        steps: list[int],
    ) -> None:
        c = self.config = config
        self.model, self.tokenizer, self.clips, self.prompt, self.steps = model, tokenizer, clips, prompt, steps
        self.runtime = runtime_of(model, c.dtype)
        self.eyes = c.eyes or eyes(self.runtime.device)
        self.indices = clips.spread(c.clips)
        self.stride = tokenizer.latent.stride
        self.filmed = set(np.random.default_rng(c.seed).permutation(len(self.indices))[: c.films].tolist())
        self.ranges = [range(max(0, n * self.stride - FRAMES + 1), n * self.stride + 1) for n in (0, *steps)]
        self.values: dict[str, dict[str, dict[int, list[np.ndarray]]]] = {name: {} for name in self.eyes.figures}
        self.distances = {name: FrechetDistance(f) for name, f in self.eyes.features.items()}
        self.films: list[Film] = []

    def judge(self, first: int, advance: Callable[[int], None]) -> None:
        """Roll out the batch that begins with this clip, and take its figures."""
        indices = self.indices[first : first + self.config.batch_size]
        films = [i for i in range(len(indices)) if first + i in self.filmed]
        total, fps = self.prompt + self.steps[-1], self.clips.spec().fps
        batch = self.clips.batch(indices).window(0, total, total).to(self.runtime.device)
        dreamt = self.dream(batch, indices, Shots(self.ranges, films), advance)
        rebuilt = footage(self.tokenizer, batch.latents, self.prompt, Shots(self.ranges))
        sources = {"prediction": dreamt.moments, "reconstruction": rebuilt.moments}
        camera, last = self.camera(indices), {}
        for step, (true, random), *made in zip([0, *self.steps], camera, *sources.values(), strict=True):
            frames = {"camera": true, "random": random, **dict(zip(sources, made, strict=True))}
            frames = {name: video.to(self.runtime.device) for name, video in frames.items()}
            if step == 0:
                last = {"copy": frames["camera"], "copy_reconstruction": frames["reconstruction"]}
                continue
            frames |= {name: video.expand_as(frames["camera"]) for name, video in last.items()}
            self.measure(Moment(self.clips, indices, self.prompt, step, step / fps, frames))
        for row, dream in dreamt.films.items():
            self.films.append(self.film(int(indices[row]), dream))

    def dream(self, batch: Batch, indices: np.ndarray, shots: Shots, advance: Callable[[int], None]) -> Footage:
        """The model's own pictures."""
        known = batch.window(0, self.prompt, batch.actions.shape[1])
        seeds = [self.config.seed * 1_000_003 + int(i) for i in indices]
        how: dict[str, Any] = {
            "sampler": self.config.sampler,
            "generator": [torch.Generator(self.runtime.device).manual_seed(seed) for seed in seeds],
        }
        if by_clips(self.model, self.tokenizer, batch.latents.shape[1]):
            windows = clip_windows(self.model, self.tokenizer, known, autocast=self.runtime.autocast, **how)
            watched = _watched(windows, lambda n: advance(n * len(indices)))
            return footage_of_clips(self.tokenizer, known.latents, watched, shots)
        with self.runtime.autocast():
            latents = self.model.rollout(known, watch=lambda n: advance(n * len(indices)), **how).latents
        self.runtime.check(latents)
        return footage(self.tokenizer, torch.cat([known.latents, latents], 1), self.prompt, shots)

    def numbers(self, index: int) -> np.ndarray:
        """Which frames of its episode's video a window shows, from the last of the context on."""
        shown = self.tokenizer.latent.frames(self.prompt) - 1
        return frame_numbers(self.clips, index, self.prompt + self.steps[-1])[shown:]

    def camera(self, indices: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        """Moment by moment the camera's frames, and as many of the same episodes that end at a random time."""
        for shown in self.ranges:
            true, random = [], []
            for index in map(int, indices):
                episode, numbers = episode_of(self.clips, index), self.numbers(index)
                true.append((episode, numbers[shown]))
                random.append((episode, self.elsewhere(index, episode, numbers[shown], int(numbers[1] - numbers[0]))))
            found = torch.stack(camera_frames(self.clips.store, true + random, self.tokenizer.size))
            yield found[: len(indices)], found[len(indices) :]

    def elsewhere(self, index: int, episode: Episode, shown: np.ndarray, apart: int) -> np.ndarray:
        """As many frames of an episode as these, `apart` from one another, that end at a random time: at least `FRAMES`
        frames from theirs or, in an episode that is too short, as far as can be."""
        last = (episode.steps - 1) * (apart * self.stride // self.clips.stride)
        ends = np.arange((len(shown) - 1) * apart, last + 1, apart)
        away = np.abs(ends - shown[-1])
        far = ends[away >= min(FRAMES * apart, away.max())]
        rng = np.random.default_rng((self.config.seed, index, len(shown), int(shown[-1])))
        return int(rng.choice(far)) + np.arange(1 - len(shown), 1) * apart

    def film(self, index: int, dream: np.ndarray) -> Film:
        """A clip to look at."""
        episode = episode_of(self.clips, index)
        (truth,) = camera_frames(self.clips.store, [(episode, self.numbers(index))], self.tokenizer.size)
        shown = (side_by_side(frames, len(self.clips.store.header.views)) for frames in (dream, to_uint8(truth)))
        return Film(episode.id, int(self.clips.starts[index]) - episode.start, *shown)

    def measure(self, moment: Moment) -> None:
        """Take the figures of a batch, and add its pictures to the sets that distances are between."""
        for name, figure in self.eyes.figures.items():
            for source in (*figure.sources, *({figure.share_of} - {"", *figure.sources})):
                found = figure.of(moment, source).cpu().double().numpy()
                self.values[name].setdefault(source, {}).setdefault(moment.step, []).append(found)
        for distance in self.distances.values():
            for source in (*SOURCES, "camera"):
                distance.add(source, moment.frames[source])

    def endurance(self, notes: list[str]) -> Endurance:
        c, fps = self.config, self.clips.spec().fps
        return Endurance(
            seconds=[step / fps for step in self.steps],
            steps=self.steps,
            prompt=self.prompt,
            steps_per_second=fps,
            frames_per_step=self.stride,
            seed=c.seed,
            sampler=describe(c.sampler),
            episodes=np.array([episode_of(self.clips, int(i)).id for i in self.indices]),
            about=self.eyes.figures,
            values={
                name: {s: np.stack([np.concatenate(parts) for parts in v.values()], 1) for s, v in found.items()}
                for name, found in self.values.items()
            },
            distances={
                name: {source: d.between(source, "camera") for source in SOURCES} | {"examples": d.count("camera")}
                for name, d in self.distances.items()
            },
            absent=self.eyes.absent,
            films=self.films,
            notes=notes,
        )


def _watched(windows: Iterable[tuple[Prediction, Tensor]], watch: Callable[[int], None]) -> Iterator[Any]:
    """The windows, of whose steps somebody is told."""
    for part, clip in windows:
        watch(part.latents.shape[1])
        yield part, clip
