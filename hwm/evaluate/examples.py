"""The few clips of an evaluation that are kept as pictures."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from hwm.data.clips import Clips
from hwm.evaluate.camera import episode_of
from hwm.evaluate.predict import Truth
from hwm.evaluate.results import MOVING_DB, Example
from hwm.pictures.stack import side_by_side
from hwm.pictures.video import to_uint8


class Examples:
    """Keeps a random choice of the moving clips, then of the others; scores play no part.

    Args:
        wanted: how many are kept.
        seed: of the choice, which depends on nothing else.
    """

    def __init__(self, clips: Clips, wanted: int, seed: int) -> None:
        self.clips, self.wanted, self.seed = clips, wanted, seed
        self.kept: list[tuple[tuple[bool, float], Example]] = []

    def __iter__(self) -> Iterator[Example]:
        return (example for _, example in self.kept)

    def shown(self, video_FCHW: Tensor) -> np.ndarray:
        """Frames as people look at them, (F, H, W, 3) uint8: of several cameras side by side."""
        return side_by_side(to_uint8(video_FCHW), len(self.clips.store.header.views))

    def consider(
        self, truth: Truth, video: Tensor, swapped: Tensor | None, figures: dict[str, np.ndarray | None]
    ) -> None:
        """Keep those of a batch that rank among the wanted ones; of several scenarios the first's pictures are kept.

        Args:
            video, swapped: context and prediction, (B, F, 3, H, W), under the true actions and under wrong ones.
            figures: (B, T) each.
        """
        psnr, copy, rebuilt = (figures[name] for name in ("psnr", "psnr_copy", "psnr_copy_reconstruction"))
        assert psnr is not None
        assert copy is not None
        assert rebuilt is not None
        for i, index in enumerate(truth.indices):
            moving = bool(copy[i, -1] < MOVING_DB)
            key = (not moving, float(np.random.default_rng((self.seed, int(index))).random()))
            ranks = [rank for rank, _ in self.kept]
            if key in ranks or (len(ranks) == self.wanted and (not ranks or key > ranks[-1])):
                continue
            episode = episode_of(self.clips, int(index))
            example = Example(
                episode=episode.id,
                start=int(self.clips.starts[index]) - episode.start,
                moving=moving,
                context=video.shape[1] - truth.future.shape[1] * truth.future.shape[2],
                truth=self.shown(truth.camera[i]),
                prediction=self.shown(video[i]),
                swapped=None if swapped is None else self.shown(swapped[i]),
                psnr=psnr[i],
                psnr_copy=copy[i],
                psnr_copy_reconstruction=rebuilt[i],
            )
            self.kept = sorted([*self.kept, (key, example)], key=lambda pair: pair[0])[: self.wanted]
