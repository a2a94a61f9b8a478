"""How like the truth a dream still is: figures of its pictures beside the true simulator's, while both run.

They are computed outside the way that frames go, and where the weights of the perceptual distance are not installed
(extra `eval`) it is left out.
"""

from __future__ import annotations

import time
from collections import deque

import numpy as np
import torch
from torch import Tensor

from hwm.errors import HwmError
from hwm.evaluate.moments import gradient
from hwm.networks.efficientnet import EfficientNetLite0, load_efficientnet
from hwm.pictures.video import to_video

LOOK_SECONDS = 0.5
"""From one perceptual distance to the next at least; all else is compared at every step."""
LOOK_SHARE = 0.1
"""And they take at most this share of the time, for processors that the model and the browser want too."""
MOTION_STEPS = 10
"""Steps over which motion is compared: single ones of a robot that hardly moves say little."""
STILL = 1e-3
"""Mean change of a pixel a step, of 1, below which the truth stands still and nothing can be said of motion."""
CLOSEST = 60.0
"""PSNR in dB that the same pictures are said to have."""


class Likeness:
    """Compares the pictures of one session with its simulator's, step by step, from one thread at a time."""

    def __init__(self) -> None:
        self._n = -1
        self._before: Tensor | None = None
        self._moved: deque[tuple[float, float]] = deque(maxlen=MOTION_STEPS)
        self._network: EfficientNetLite0 | None = None
        self._look = 0.0

    def see(self, n: int, dream_HWC: np.ndarray, truth_HWC: np.ndarray) -> dict[str, float]:
        """The figures of step `n`, by name.

        Args:
            n: steps since the start; where it is not the one after the last, motion is forgotten.
            dream_HWC, truth_HWC: uint8 pictures; the truth is brought to the size of the dream.

        Returns:
            `psnr` in dB; `sharpness`, the mean difference of neighbouring pixels as a share of the truth's;
            `liveliness`, the mean change of a pixel a step as a share of the truth's, where the truth moves; and, at
            some steps, `perceptual`, the distance of `EfficientNetLite0.distance`: 0 for the same.
        """
        size = (dream_HWC.shape[0], dream_HWC.shape[1])
        pair_2CHW = torch.cat([to_video(picture[None], size) for picture in (dream_HWC, truth_HWC)])
        if n != self._n + 1:
            self._moved.clear()
        elif self._before is not None:
            dreamt, true = (pair_2CHW - self._before).abs().mean((1, 2, 3)).tolist()
            self._moved.append((dreamt, true))
        self._n, self._before = n, pair_2CHW
        error = float((pair_2CHW[0] - pair_2CHW[1]).square().mean())
        dreamt, true = gradient(pair_2CHW).tolist()
        found = {"psnr": min(CLOSEST, -10 * float(np.log10(max(error, 1e-12)))), "sharpness": dreamt / max(true, 1e-6)}
        if self._moved:
            dreamt, true = np.mean(self._moved, 0).tolist()
            if true > STILL:
                found["liveliness"] = dreamt / true
        if time.monotonic() >= self._look:
            found |= self._distance(pair_2CHW)
        return found

    @torch.inference_mode()
    def _distance(self, pair_2CHW: Tensor) -> dict[str, float]:
        try:
            self._network = self._network or load_efficientnet()
            begun = time.monotonic()
            dream_1CHW, truth_1CHW = pair_2CHW.split(1)
            apart = float(self._network.distance(dream_1CHW, truth_1CHW))
        except HwmError:  # its weights are not installed, or the pictures are too small for it
            self._look = float("inf")
            return {}
        now = time.monotonic()
        self._look = now + max(LOOK_SECONDS, (now - begun) * (1 / LOOK_SHARE - 1))
        return {"perceptual": apart}
