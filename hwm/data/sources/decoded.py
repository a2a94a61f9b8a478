"""A store of latents without video as a source: what the camera saw is what the tokenizer makes of the latents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import torch

from hwm.data.sources.base import Episode, Source
from hwm.data.store import Episode as Stretch
from hwm.data.store import Store
from hwm.devices import device_of
from hwm.errors import HwmError
from hwm.pictures.video import to_uint8
from hwm.types import Tokenizer, check_ids

STEPS = 64
"""Latent steps that are decoded at once."""


class Decoded(Source):
    """Episodes of a store of latents, frame by frame: a latent step of several frames is as many steps.

    Raises:
        HwmError: latents of another tokenizer, or actions that cannot be shared out evenly among the frames of a step.
    """

    def __init__(self, store: Store, tokenizer: Tokenizer) -> None:
        self.store, self.tokenizer, self.path, self.notes = store, tokenizer, store.path, store.notes
        h, stride = store.header, tokenizer.latent.stride
        if store.latents is None or h.latent != tokenizer.latent or not tokenizer.answers_to(h.tokenizer):
            raise HwmError(f"{store.path} holds latents of {h.tokenizer or 'no tokenizer'}, not of {tokenizer.id}")
        if h.actions_per_step % stride:
            raise HwmError(f"{store.path}: {h.actions_per_step} actions a step do not divide among its {stride} frames")
        self.header = replace(
            h, latent=None, dtype="", tokenizer="", actions_per_step=h.actions_per_step // stride, fps=h.fps * stride
        )
        self.ids = [e.id for e in store.episodes]
        self.steps = sum(tokenizer.latent.frames(e.steps) for e in store.episodes)

    def read(self, number: int) -> Episode:
        e, h = self.store.episodes[number], self.header
        actions = np.asarray(self.store.actions[e.start : e.stop], np.float32)
        each = actions.reshape(-1, *h.action_shape)
        return Episode(
            id=e.id,
            frames=partial(self._frames, e),
            actions=each[self.tokenizer.latent.stride - 1 :],  # the first step is one frame: the last of its actions
            embodiment=h.embodiment,
            fps=h.fps,
            text=str(e.info.get("text", "")),
            info={k: v for k, v in e.info.items() if k != "frames_per_step"},
        )

    def _frames(self, e: Stretch, every: int = 1, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        return islice(self._all(e), start, stop, every)

    def _all(self, e: Stretch) -> Iterator[np.ndarray]:
        assert self.store.latents is not None
        pixels = self.store.header.dtype == "uint8" and self.store.header.latent.channels is not None  # type: ignore[union-attr]
        device, vocab = device_of(self.tokenizer, torch.device("cpu")), self.tokenizer.latent.vocab

        def pieces() -> Iterator[torch.Tensor]:
            for i in range(e.start, e.stop, STEPS):
                rows = np.asarray(self.store.latents[i : min(i + STEPS, e.stop)])  # type: ignore[index]
                values = torch.from_numpy(
                    rows.astype(np.int64 if rows.dtype.kind in "iu" and not pixels else np.float32)
                )
                if vocab:
                    check_ids(values, vocab)
                yield (values / 255 if pixels else values)[None].to(device)

        with torch.inference_mode():
            for part in self.tokenizer.decode_pieces(pieces()):
                yield from to_uint8(part[0].float())
