"""What all episodes of a store have in common, what an episode is, and what can be wrong with them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from hwm.errors import HwmError
from hwm.types import UNSAID, LatentSpec, check_views


class StoreError(HwmError):
    """A store that is missing, incomplete, damaged or not what was asked for."""


class EpisodeError(StoreError):
    """One episode is not fit to be written: it can be left out, and the others are whole without it."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What all episodes of a store have in common.

    Attributes:
        embodiment: whose actions these are.
        action_names: one a dimension.
        actions_per_step: K.
        fps: steps a second.
        latent: what the tokenizer emitted; None in a recording.
        dtype: numpy name of the latents' element type; by default the smallest that fits.
        action_dtype: numpy name of the actions' element type on disk; they are read as float32.
        tokenizer: identity of the tokenizer.
        source: where the data came from, in words.
        views: names of the cameras whose pictures, and cells, lie one below the other, from the top; empty for one
            camera.
    """

    embodiment: str
    action_names: tuple[str, ...]
    actions_per_step: int
    fps: float
    latent: LatentSpec | None = None
    dtype: str = ""
    action_dtype: str = "float32"
    tokenizer: str = ""
    source: str = ""
    views: tuple[str, ...] = dataclasses.field(default=(), metadata=UNSAID)

    def __post_init__(self) -> None:
        check_views(self.views)
        if self.latent is not None and self.latent.views != self.views:
            raise StoreError(f"latents of the views {self.latent.views} in a store of the views {self.views}")
        if self.latent is not None and not self.dtype:
            object.__setattr__(self, "dtype", latent_dtype(self.latent))
        try:
            dtypes = [np.dtype(name) for name in (self.action_dtype, self.dtype) if name]
        except (TypeError, ValueError) as error:
            raise StoreError(
                f"element types are given by numpy's names, such as uint16 and float16: {error}"
            ) from error
        if dtypes[0].kind != "f":
            raise StoreError(f"actions are stored as float32 or float16, not {self.action_dtype}")
        if self.latent is None:
            return
        if self.latent.vocab is not None and (
            dtypes[1].kind not in "ui" or np.iinfo(dtypes[1]).max < self.latent.vocab - 1
        ):
            raise StoreError(f"{self.dtype} does not hold the ids of a vocabulary of {self.latent.vocab}")

    @property
    def action_shape(self) -> tuple[int, int]:
        return self.actions_per_step, len(self.action_names)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        if self.latent is None:
            raise StoreError("this recording has no latents yet; encode it first: hwm encode SOURCE --tokenizer NAME")
        return self.latent.grid if self.latent.channels is None else (self.latent.channels, *self.latent.grid)


@dataclass(frozen=True)
class Episode:
    """A stretch of a store that is continuous in time: steps start..stop.

    Three values of `info` say where its frames are; absent they are the episode itself, 0 and 1.

    Attributes:
        film: the episode whose video they are in (`video`): those that were cut out of one recording share its file.
        first_frame: the frame of that video which shows the first step.
        frames_per_step: camera frames from one step to the next.
    """

    id: str
    start: int
    stop: int
    info: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def film(self) -> str:
        return str(self.info.get("video", self.id))

    @property
    def first_frame(self) -> int:
        return int(self.info.get("first_frame", 0))

    @property
    def frames_per_step(self) -> int:
        return int(self.info.get("frames_per_step", 1))

    @property
    def steps(self) -> int:
        return self.stop - self.start


def latent_dtype(latent: LatentSpec) -> str:
    """The smallest element type that holds every id, or half floats for continuous latents."""
    if latent.vocab is None:
        return "float16"
    return "uint16" if latent.vocab <= 1 << 16 else "int32"
