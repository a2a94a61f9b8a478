"""What can be asked for when episodes are encoded. Imports no PyTorch, as options are shown without it."""

from __future__ import annotations

from dataclasses import dataclass

from hwm.errors import HwmError

OF_NO_CONSEQUENCE = ("skip_bad", "batch")
"""Fields that what is encoded does not depend on; all others are kept in the store."""


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """How episodes become latents.

    Attributes:
        every: keep every n-th step of the recording; the actions of all of them are kept, so K grows n-fold. So does
            it for each frame that a latent step holds.
        clip: encode so many of these steps at a time (17 in 1X's data), and make each clip an episode: a tokenizer
            that is causal over time begins anew with each. 0 encodes episodes as a whole.
        shard: which part of the episodes to encode, from 0: shard, shard + shards, ...; join the parts with `merge`.
        shards: how many parts there are.
        keep_video: copy the videos along, so that predictions can be compared with the camera; the clips of an
            episode share its one.
        half_actions: keep actions as float16 (three significant digits) in half the space.
        crop: cut pictures to the tokenizer's proportions before they are resized, instead of squeezing them.
        skip_bad: leave out episodes that are not fit to be encoded and note them in the store, instead of stopping.
        batch: frames encoded at once.
    """

    every: int = 1
    clip: int = 0
    shard: int = 0
    shards: int = 1
    keep_video: bool = False
    half_actions: bool = False
    crop: bool = False
    skip_bad: bool = False
    batch: int = 64

    @property
    def part(self) -> tuple[int, int] | None:
        """Which part of how many the result is; None if it is all."""
        return (self.shard, self.shards) if self.shards > 1 else None

    def check(self, stride: int) -> None:
        """Raise `HwmError` unless this can be done with a tokenizer whose latent steps hold `stride` frames."""
        if not 0 <= self.shard < self.shards:
            raise HwmError(f"shard {self.shard} of {self.shards}: shards are numbered from 0")
        if self.every < 1 or self.batch < 1:
            raise HwmError(f"every {self.every} and batch {self.batch} must be at least 1")
        if self.clip and (self.clip < 1 or (self.clip - 1) % stride):
            raise HwmError(f"a clip of {self.clip} frames does not fill whole latent steps: choose 1 + {stride} * n")
