"""Video and actions through a tokenizer into a store of latents: in shards, resumably, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hwm.data.readers import open_store
from hwm.data.store import Episode, Header, Store, StoreError, Writer, latent_dtype
from hwm.data.video import to_video
from hwm.evaluate.camera import device_of
from hwm.progress import track
from hwm.tokenizers.base import Pixels, Tokenizer
from hwm.types import HwmError


def encode(
    source: str | Path,
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    every: int = 1,
    clip: int = 0,
    shard: int = 0,
    shards: int = 1,
    keep_video: bool = False,
    batch: int = 64,
    statistics: Store | None = None,
    half_actions: bool = False,
) -> Store:
    """Encode the episodes of a recording.

    Args:
        source: a store with video.
        every: keep every n-th step of the recording; the actions of all of them are kept, so K grows n-fold. So does
            it for each frame that a latent step holds.
        clip: encode so many of these steps at a time, and make each clip an episode: a tokenizer that is causal over
            time begins anew with each. 0 encodes episodes as a whole.
        shard, shards: encode episodes shard, shard + shards, ...; join the results with `merge`.
        keep_video: copy the videos along, so that the result can be compared with the camera.
        batch: frames encoded at once.
        half_actions: keep actions as float16 (three significant digits) in half the space.
        statistics: take the action statistics of this store (the training set's, for a held-out store).

    Raises:
        HwmError: a clip that does not fill whole latent steps; a video is missing, damaged, or has another number of
            frames than there are actions; a shard without episodes; statistics of other actions; or `out` was begun
            from another source.
    """
    store = open_store(source)
    if not 0 <= shard < shards:
        raise HwmError(f"shard {shard} of {shards}: shards are numbered from 0")
    chosen, h = store.episodes[shard::shards], store.header
    if not chosen:
        raise HwmError(f"shard {shard} of {shards} is empty: {store.path} has {len(store.episodes)} episodes")
    if statistics and statistics.header.action_names != h.action_names:
        raise HwmError(f"{statistics.path} has other actions than {store.path}: its statistics do not describe them")
    if every < 1 or batch < 1:
        raise HwmError(f"every {every} and batch {batch} must be at least 1")
    stride = tokenizer.latent.stride
    if clip and (clip < 1 or (clip - 1) % stride):
        raise HwmError(f"a clip of {clip} frames does not fill whole latent steps: choose 1 + {stride} * n")
    if clip and keep_video:
        raise HwmError("videos are not cut into clips: leave out either the clips or the videos")
    pixels = isinstance(tokenizer, Pixels)
    header = Header(
        embodiment=h.embodiment,
        action_names=h.action_names,
        actions_per_step=h.actions_per_step * every * stride,
        fps=h.fps / (every * stride),
        latent=tokenizer.latent,
        dtype="uint8" if pixels else latent_dtype(tokenizer.latent),
        action_dtype="float16" if half_actions else "float32",
        tokenizer=tokenizer.id,
        source=h.source,
    )
    writer = Writer(out, header)
    cuts = [cut for e in chosen for cut in _cuts(e, every, clip, stride)]
    done = writer.done_of(cut.name for cut in cuts)
    todo = [cut for cut in cuts if cut.name not in done]
    unit = sum(cut.stop - cut.start for cut in todo) / max(1, len(todo))
    for cut in track(todo, len(todo), f"encoding with {tokenizer.id}", scale=unit, unit="frames"):
        episode = cut.episode
        latents = np.concatenate(list(_latents(store, cut, tokenizer, every, batch)))
        kept = thin_actions(np.asarray(store.actions[episode.start : episode.stop]), every)[cut.start : cut.stop]
        actions = thin_actions(kept, stride)
        if len(latents) != len(actions):
            raise StoreError(
                f"{store.path}: the video of {episode.id!r} shows {len(latents)} steps, its actions are of "
                f"{len(actions)}: the video is truncated or not of this episode"
            )
        video = None
        if keep_video:
            video = writer.partial / f".{episode.id}.mp4"
            store.copy_video(episode, video)
        frames_per_step = int(episode.info.get("frames_per_step", 1)) * every * stride
        values = np.round(latents * 255).astype(np.uint8) if pixels else latents
        writer.add(cut.name, actions, values, video, {**episode.info, "frames_per_step": frames_per_step})
    return writer.finish(statistics.statistics if statistics else None)


def thin_actions(actions_NKA: np.ndarray, every: int) -> np.ndarray:
    """Actions of every n-th step, each with those that lead to it from the step kept before: (N', K*n, A).

    The actions before the first step are not known; its own are repeated in their place.
    """
    n, k, a = actions_NKA.shape
    kept = 1 + (n - 1) // every
    head = np.repeat(actions_NKA[:1], every, 0)
    body = actions_NKA[1 : 1 + (kept - 1) * every]
    return np.concatenate([head, body]).reshape(kept, every * k, a)


class _Cut(NamedTuple):
    """Kept steps start..stop of an episode, which are encoded together and become an episode of this name."""

    episode: Episode
    name: str
    start: int
    stop: int
    last: bool


def _cuts(episode: Episode, every: int, clip: int, stride: int) -> Iterator[_Cut]:
    """The clips of an episode (or all of it), each cut to whole latent steps."""
    kept = 1 + (episode.steps - 1) // every
    for start in range(0, kept, clip or kept):
        there = min(clip or kept, kept - start)
        name = f"{episode.id}_clip_{start // clip:05d}" if clip else episode.id
        yield _Cut(episode, name, start, start + 1 + (there - 1) // stride * stride, start + there == kept)


def _latents(store: Store, cut: _Cut, tokenizer: Tokenizer, every: int, batch: int) -> Iterator[np.ndarray]:
    step = every * int(cut.episode.info.get("frames_per_step", 1))
    # of the last cut all that is left, so that a video of too many frames is noticed
    stop = None if cut.last else (cut.stop - 1) * step + 1
    frames = store.frames(cut.episode, step, cut.start * step, stop)
    spec, device = tokenizer.latent, device_of(tokenizer, torch.device("cpu"))
    sizes = chain([spec.frames(max(1, batch // spec.stride))], repeat(max(1, batch // spec.stride) * spec.stride))

    def pieces() -> Iterator[Tensor]:
        for i, size in enumerate(sizes):
            some = list(islice(frames, size))
            whole = len(some) - (len(some) - (i == 0)) % spec.stride
            if not whole:
                return
            yield to_video(some[:whole], tokenizer.size)[None].to(device)

    with torch.inference_mode():
        for part in tokenizer.encode_pieces(pieces()):
            yield part[0].cpu().numpy()
