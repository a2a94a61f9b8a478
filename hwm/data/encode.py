"""Video and actions through a tokenizer into a store of latents: in shards, resumably, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from hwm.data.readers import open_store
from hwm.data.store import Episode, Header, Store, StoreError, Writer, latent_dtype
from hwm.data.video import to_video
from hwm.progress import track
from hwm.tokenizers.base import Pixels, Tokenizer
from hwm.types import HwmError


def encode(
    source: str | Path,
    tokenizer: Tokenizer,
    out: str | Path,
    *,
    every: int = 1,
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
        every: keep every n-th step of the recording; the actions of all of them are kept, so K grows n-fold.
        shard, shards: encode episodes shard, shard + shards, ...; join the results with `merge`.
        keep_video: copy the videos along, so that the result can be compared with the camera.
        batch: frames encoded at once.
        half_actions: keep actions as float16 (three significant digits) in half the space.
        statistics: take the action statistics of this store (the training set's, for a held-out store).

    Raises:
        HwmError: a video is missing, damaged, or has another number of frames than there are actions; a shard without
            episodes; statistics of other actions; or `out` was begun from another source.
    """
    store = open_store(source)
    if tokenizer.latent.stride != 1:
        raise HwmError("tokenizers that join frames in time are not supported by this source yet")
    if not 0 <= shard < shards:
        raise HwmError(f"shard {shard} of {shards}: shards are numbered from 0")
    chosen, h = store.episodes[shard::shards], store.header
    if not chosen:
        raise HwmError(f"shard {shard} of {shards} is empty: {store.path} has {len(store.episodes)} episodes")
    if statistics and statistics.header.action_names != h.action_names:
        raise HwmError(f"{statistics.path} has other actions than {store.path}: its statistics do not describe them")
    if every < 1 or batch < 1:
        raise HwmError(f"every {every} and batch {batch} must be at least 1")
    pixels = isinstance(tokenizer, Pixels)
    header = Header(
        embodiment=h.embodiment,
        action_names=h.action_names,
        actions_per_step=h.actions_per_step * every,
        fps=h.fps / every,
        latent=tokenizer.latent,
        dtype="uint8" if pixels else latent_dtype(tokenizer.latent),
        action_dtype="float16" if half_actions else "float32",
        tokenizer=tokenizer.id,
        source=h.source,
    )
    writer = Writer(out, header)
    done = writer.done_of(e.id for e in chosen)
    todo = [e for e in chosen if e.id not in done]
    unit = sum(e.steps for e in todo) / every / max(1, len(todo))
    for episode in track(todo, len(todo), f"encoding with {tokenizer.id}", scale=unit, unit="frames"):
        latents = np.concatenate(list(_latents(store, episode, tokenizer, every, batch)))
        actions = thin_actions(np.asarray(store.actions[episode.start : episode.stop]), every)
        if len(latents) != len(actions):
            raise StoreError(
                f"{store.path}: the video of {episode.id!r} shows {len(latents)} steps, its actions are of "
                f"{len(actions)}: the video is truncated or not of this episode"
            )
        video = None
        if keep_video:
            video = writer.partial / f".{episode.id}.mp4"
            store.copy_video(episode, video)
        frames_per_step = int(episode.info.get("frames_per_step", 1)) * every
        values = np.round(latents * 255).astype(np.uint8) if pixels else latents
        writer.add(episode.id, actions, values, video, {**episode.info, "frames_per_step": frames_per_step})
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


@torch.inference_mode()
def _latents(store: Store, episode: Episode, tokenizer: Tokenizer, every: int, batch: int) -> Iterator[np.ndarray]:
    pending: list[np.ndarray] = []
    step = every * int(episode.info.get("frames_per_step", 1))
    for frame in store.frames(episode, every=step):
        pending.append(frame)
        if len(pending) == batch:
            yield tokenizer.encode(to_video(pending, tokenizer.size)[None])[0].cpu().numpy()
            pending = []
    if pending:
        yield tokenizer.encode(to_video(pending, tokenizer.size)[None])[0].cpu().numpy()
