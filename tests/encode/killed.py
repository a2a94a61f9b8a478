"""What `test_encode_killed` runs in a process of its own, to be killed."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from hwm.encode.episodes import EncodeConfig, encode
from hwm.tokenizers.pixels import Pixels


class Slow(Pixels):
    """Pixels that take their time, so that there is time to be killed in."""

    def encode(self, video_BFCHW: torch.Tensor) -> torch.Tensor:
        time.sleep(0.004)
        return super().encode(video_BFCHW)


def run(source: Path, out: Path) -> None:
    torch.set_num_threads(1)
    encode(source, Slow((16, 16)), out, EncodeConfig(keep_video=True, batch=4))
