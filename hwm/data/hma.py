"""Data sets as HMA's programs encode them, read where they lie: one folder a data set and split.

`metadata.json`, `video.bin` (ids of MAGVIT2, latents of the VAE of Stable Video Diffusion, or pictures),
`actions/*.bin` and `segment_ids.bin`, all of N frames. The layout is that of
github.com/liruiw/HMA. A frame's action is the one that was taken when it was seen.

Shape suffixes: N frames, A action dimension, C channels, H W picture or grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hwm.data.arrays import Array, Lazy
from hwm.data.fields import Fields
from hwm.data.in_place import InPlace
from hwm.data.onex.layout import run_starts
from hwm.data.onex.specs import MAGVIT2_LEVELS
from hwm.data.store import Episode, Header, StoreError
from hwm.files import listed
from hwm.pictures.video import write_video
from hwm.types import LatentSpec

VAE_SCALE = 0.18215
"""By which latents of that VAE are multiplied before models see them; in these files they are not yet."""
TOKENIZERS = {"magvit": "magvit2", "temporalvae": "svd-vae"}
CELL = 16
"""Pixels a side for which `h` and `w` count one, where they do not count pixels themselves."""


class HMA(InPlace):
    """An encoded data set of HMA's. A step is a frame; episodes are runs of one segment id.

    Of pictures that are not encoded it is a recording, to be encoded by any tokenizer.
    """

    @classmethod
    def recognises(cls, path: Path) -> bool:
        if not ((path / "metadata.json").is_file() and (path / "video.bin").is_file()):
            return False
        try:
            return not {"action_dim", "encoder_type"}.isdisjoint(Fields.read(path / "metadata.json"))
        except StoreError:
            return False

    def _open(self) -> None:
        meta = Fields.read(self.path / "metadata.json")
        meta.need("num_images", "hz", "h", "w", "token_dtype")
        self.steps, *grid_HW = (meta.whole(key, least=1) for key in ("num_images", "h", "w"))
        grid, kind = (grid_HW[0], grid_HW[1]), meta.text("token_dtype")
        latent = self._latent(meta, grid, kind)
        self.pictures = None if latent else self._pictures(grid)
        raw_NA = self._actions(meta.whole("action_dim", 0))
        ids, names = self._map("segment_ids.bin", "int32", ()), tuple(f"action_{i}" for i in range(raw_NA.shape[1]))
        encoder = meta.text("encoder_type", "")
        self.header = Header(
            embodiment=meta.text("name", "") or self.path.resolve().name,
            action_names=names,
            actions_per_step=1,
            fps=meta.rate("hz"),
            latent=latent,
            tokenizer=TOKENIZERS.get(encoder, encoder) if latent else "",
            source="HMA",
        )
        if latent:
            stored = self._map("video.bin", kind, self.header.latent_shape)
            self.latents = Lazy(stored.shape, lambda rows: _scaled(stored[rows])) if latent.channels else stored
        else:
            self.latents = None
        starts = run_starts(ids)
        self.once = Lazy((self.steps, 1, len(names)), lambda rows: raw_NA[rows][:, None])
        # the first frame of a run has no action before it: the first known one stands for it
        self.actions = Lazy(self.once.shape, lambda rows: raw_NA[rows - ~np.isin(rows, starts)][:, None])

        def describe(number: int) -> tuple[str, dict[str, Any]]:
            start = int(starts[number])
            segment = int(ids[start])
            return f"segment_{segment:06d}_frame_{start:08d}", {"segment": segment, "frames_per_step": 1}

        self._set_episodes(starts, self.steps, describe)

    def _latent(self, meta: Fields, grid: tuple[int, int], kind: str) -> LatentSpec | None:
        """What `video.bin` holds; None for pictures."""
        if kind == "uint8":
            return None
        vocab, channels = meta.whole("vocab_size", 0), meta.whole("latent_channels", 0)
        if kind == "uint32" and vocab:
            return LatentSpec(grid, vocab, levels=MAGVIT2_LEVELS if vocab == 512**2 else ())
        if kind == "float16" and channels:
            return LatentSpec(grid, channels=channels)
        raise StoreError(
            f"{meta.where}: elements of {kind} with vocab_size {vocab or None} and latent_channels {channels or None} "
            "are neither ids (uint32), nor latents (float16), nor pictures (uint8)"
        )

    def _pictures(self, grid: tuple[int, int]) -> Array:
        """(N, H, W, 3); sides are told in pixels or in cells of 16."""
        size = (self.path / "video.bin").stat().st_size
        cells = (grid[0] * CELL, grid[1] * CELL)
        sides = cells if size == self.steps * cells[0] * cells[1] * 3 else grid
        return self._map("video.bin", "uint8", (*sides, 3))

    def _actions(self, width: int) -> np.ndarray:
        """The columns of all files of `actions/` side by side, in the order of their names: (N, A)."""
        files = listed(self.path / "actions", "*.bin")
        widths = [file.stat().st_size / 4 / self.steps for file in files]
        if not files or any(w != int(w) or not w for w in widths) or (width and sum(widths) != width):
            sizes = ", ".join(f"{file.name} of {file.stat().st_size:,} bytes" for file in files) or "no file"
            raise StoreError(
                f"{self.path / 'actions'} has {sizes}: {self.steps:,} frames of {width or 'some'} float32 are wanted"
            )
        parts = [np.memmap(f, "float32", "r", shape=(self.steps, int(w))) for f, w in zip(files, widths, strict=True)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, 1)

    @property
    def has_video(self) -> bool:
        return self.pictures is not None

    def video(self, episode: Episode, view: str = "") -> Path:
        raise StoreError(f"{self.path} has no video files: frames and copy_video read its pictures")

    def frames(
        self, episode: Episode, every: int = 1, start: int = 0, stop: int | None = None, view: str = ""
    ) -> Iterator[np.ndarray]:
        if self.pictures is None:
            raise StoreError(f"{self.path} has no pictures: they are encoded")
        end = episode.stop if stop is None else min(episode.start + stop, episode.stop)
        return (np.array(self.pictures[i]) for i in range(episode.start + start, end, every))

    def copy_video(self, episode: Episode, to: Path, view: str = "") -> None:
        write_video(to, self.frames(episode), self.header.fps)


def _scaled(latents: np.ndarray) -> np.ndarray:
    return (latents.astype(np.float32) * VAE_SCALE).astype(np.float16)
