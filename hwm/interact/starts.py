"""Where a session may begin: a few true steps, from a store, a picture or a short video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from hwm.data.origin import origin_of
from hwm.data.store import Episode, Store
from hwm.devices import device_of
from hwm.errors import HwmError
from hwm.pictures.index import frame_index
from hwm.pictures.stack import below_one_another
from hwm.pictures.video import read_video, to_video
from hwm.sim.twin import Origin
from hwm.types import ActionSpec, Tokenizer, split_digits

MOST_PIXELS, MOST_FRAMES = 1 << 25, 3000
CHOICES = 6
"""Steps that each start of a gallery is chosen from."""


@dataclass(frozen=True)
class Start:
    """The true steps that a session goes on from.

    Attributes:
        name: how to ask for it again.
        latents: (T, ...) of one clip.
        actions: (T, K, A).
        embodiment: whose actions these are.
        origin: how to put the true simulator in the same place; None where the start is of no simulator.
        episode: the recording that it is from; empty where it is from none, and has nothing in common with others.
    """

    name: str
    latents: Tensor
    actions: np.ndarray
    embodiment: str
    origin: Origin | None = None
    episode: str = ""


Place: TypeAlias = "tuple[Episode, int]"
"""An episode, and the first step of a start in it."""


def spread(store: Store, past: int, count: int, choices: int = 1) -> list[list[Place]]:
    """Starts spread evenly over the episodes of a store and over time, with as many steps to choose from at each.

    The choices lie in the middle half of the time that a start stands for, so that the recording goes on after it.

    Raises:
        HwmError: no episode is as long as a start.
    """
    candidates = np.unique(np.linspace(0, len(store.episodes) - 1, 16 * count).round().astype(int))
    episodes = [e for i in candidates if (e := store.episodes[i]).steps >= past]
    if not episodes:
        raise HwmError(f"{store.path}: no episode has the {past} steps of a start")
    if len(episodes) > count:
        episodes = [episodes[i] for i in np.linspace(0, len(episodes) - 1, count).round().astype(int)]
    places = []
    for i in range(count):
        episode = episodes[i % len(episodes)]
        parts = (i // len(episodes) + 0.25 + 0.5 * (np.arange(choices) + 0.5) / choices) / -(-count // len(episodes))
        steps = (parts * (episode.steps - past)).round().astype(int) // store.clip_steps * store.clip_steps
        places.append([(episode, int(step)) for step in steps])
    return places


def variety(latents_NFHWC: np.ndarray) -> np.ndarray:
    """How much there is to see in each of N short sequences of latents, as (N,) numbers without a unit.

    The cells of a view are points in the space of a latent's channels. Before a bare wall they lie close together; a
    view of many things, and one that soon becomes another, fills a large volume. Measured is the logarithm of that
    volume, of all cells and again of the upper half of the first step: what stands in a room, rather than its floor.
    """
    n, _, h, _, c = latents_NFHWC.shape
    x = latents_NFHWC.astype(np.float64)
    x = (x - x.mean((0, 1, 2, 3))) / np.maximum(x.std((0, 1, 2, 3)), 1e-6)

    def volume(cells_NPC: np.ndarray) -> np.ndarray:
        off = cells_NPC - cells_NPC.mean(1, keepdims=True)
        covariance = off.transpose(0, 2, 1) @ off / off.shape[1]
        logarithm: np.ndarray = np.linalg.slogdet(covariance + 0.05 * np.eye(c))[1]
        return logarithm

    return volume(x.reshape(n, -1, c)) + volume(x[:, 0, : (h + 1) // 2].reshape(n, -1, c))


class Gallery:
    """Starts of a store: `name:7` is the eighth of them, `name:EPISODE@STEP` any step of an episode.

    They are spread over episodes and time; at each place the step with the most to see and somewhere to go (`variety`
    of its last step and of what the recording shows a second later) is taken, and the best start is `name:0`.

    Args:
        store: an encoded store of the model's tokenizer.
        past: true steps of a start.
        count: starts in the gallery.
        name: the store's name in the names of its starts.
    """

    def __init__(self, store: Store, past: int, count: int = 12, name: str = "start") -> None:
        self.store, self.past, self.name = store, past, name
        choices = spread(store, past, count, CHOICES)
        seen = np.stack([self._seen(place) for places in choices for place in places])
        found = variety(seen).reshape(count, CHOICES)
        best = found.argmax(1)
        self.places = [choices[i][best[i]] for i in np.argsort(-found.max(1), kind="stable")]

    def _seen(self, place: Place) -> np.ndarray:
        """The last step of a start, and what the recording shows a second later, (2, H, W, C) of cells' values."""
        episode, step = place
        last = episode.start + step + self.past - 1
        later = min(last + max(1, round(self.store.header.fps)), episode.stop - 1)
        latent = self.store.header.latent
        assert latent is not None
        assert self.store.latents is not None
        x = np.stack([self.store.latents[i] for i in (last, later)])
        if latent.vocab is None:
            return x
        levels = latent.levels or (latent.vocab,)
        return split_digits(torch.from_numpy(x.astype(np.int64)), levels).numpy() / np.array(levels)

    def __len__(self) -> int:
        return len(self.places)

    def names(self) -> list[str]:
        return [f"{self.name}:{i}" for i in range(len(self))]

    def __getitem__(self, key: str | int) -> Start:
        """A start by its number, its name, or as EPISODE@STEP.

        Raises:
            HwmError: there is no such start.
        """
        episode, step = self.place(key)
        return self._start(f"{self.name}:{str(key).removeprefix(f'{self.name}:')}", episode, step)

    def place(self, key: str | int) -> tuple[Episode, int]:
        """The episode that a start lies in, and the number of its first step there; raises like `[]`."""
        text = str(key).removeprefix(f"{self.name}:")
        if text.isdecimal() and int(text) < len(self):
            return self.places[int(text)]
        name, at, step = text.rpartition("@")
        if at and step.isdecimal() and int(step) % self.store.clip_steps == 0:
            for episode in self.store.episodes:
                if episode.id == name and int(step) + self.past <= episode.steps:
                    return episode, int(step)
        raise HwmError(
            f"there is no start {str(key)[:80]!r}: give {self.name}:0 to {self.name}:{len(self) - 1}, "
            f"or {self.name}:EPISODE@STEP with {self.past} steps after STEP"
        )

    def _start(self, name: str, episode: Episode, step: int) -> Start:
        first = episode.start + step
        rows = slice(first, first + self.past)
        h, latents = self.store.header, self.store.latents
        assert latents is not None
        assert h.latent is not None
        kind = np.float32 if h.latent.channels is not None else np.int64
        return Start(
            name,
            torch.from_numpy(np.asarray(latents[rows]).astype(kind)),
            np.array(self.store.actions[rows], np.float32),
            h.embodiment,
            origin_of(self.store, episode, step + self.past),
            episode.id,
        )


def start_of_frames(
    frames: list[np.ndarray], tokenizer: Tokenizer, past: int, action: ActionSpec, embodiment: str, name: str
) -> Start:
    """A start of own pictures, uint8 (H, W, 3): the last of them, the first repeated where there are too few. Each
    shows several cameras side by side, as play does.

    Nobody knows what the robot was commanded meanwhile, so it is given the mean command of the data.
    """
    count = tokenizer.latent.frames(past)
    frames = frames[-count:]
    frames = [frames[0]] * (count - len(frames)) + frames
    views, (high, wide) = max(1, len(tokenizer.latent.views)), tokenizer.size
    seen = [apart(cropped(frame, (high // views, wide * views)), views) for frame in frames]
    video = to_video(np.stack(seen), tokenizer.size, views=views)
    with torch.inference_mode():
        latents = tokenizer.encode(video[None].to(device_of(tokenizer, video.device)))[0].cpu()
    mean = np.broadcast_to(np.asarray(action.mean, np.float32), (past, action.per_step, action.dim))
    return Start(name, latents, mean.copy(), embodiment)


def apart(frame: np.ndarray, views: int) -> np.ndarray:
    """Views that lie side by side one below the other; columns that cannot be shared out are left out."""
    return below_one_another(frame[:, : frame.shape[1] // views * views], views)


def cropped(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of a picture (H, W, 3), as large as the sides' ratio of `size` allows."""
    height, width = frame.shape[:2]
    scale = min(height / size[0], width / size[1])
    h, w = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = (height - h) // 2, (width - w) // 2
    return frame[top : top + h, left : left + w]


def start_of_file(path: str | Path, tokenizer: Tokenizer, past: int, **more: Any) -> Start:
    """A start of a picture or of the last of a short video's first `MOST_FRAMES` frames, anything that FFmpeg reads.

    Raises:
        HwmError: the file holds no picture, or too large a one.
    """
    width, height = frame_index(path).stored
    if width * height > MOST_PIXELS:
        raise HwmError(f"{path}: pictures of {width} x {height} are too large; give at most {MOST_PIXELS:,} pixels")
    count = tokenizer.latent.frames(past)
    frames: list[np.ndarray] = []
    for frame in read_video(path, stop=MOST_FRAMES):
        frames.append(frame)
        del frames[:-count]
    if not frames:
        raise HwmError(f"{path} holds no picture")
    return start_of_frames(frames, tokenizer, past, name=f"upload:{Path(path).name}", **more)
