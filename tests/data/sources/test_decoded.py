"""Latents as a source: a frame a step, each with the actions that lead to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hwm.data.sources.decoded import Decoded
from hwm.encode.episodes import encode
from hwm.errors import HwmError
from hwm.pictures.video import to_uint8
from hwm.types import LatentSpec, Tokenizer
from tests.conftest import make_store


class Last(Tokenizer):
    """A step is the brightness of the last of its three frames; all three show it."""

    latent, id, size = LatentSpec((2, 2), 16, stride=3), "last", (16, 16)

    def encode(self, video_BFCHW: torch.Tensor) -> torch.Tensor:
        mean = video_BFCHW[:, ::3].mean(2).unflatten(-1, (2, 8)).unflatten(2, (2, 8)).mean((3, 5))
        return (mean * 16).long().clamp(0, 15)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        grey = (latents.float() / 15).repeat_interleave(8, -1).repeat_interleave(8, -2)[:, :, None]
        each = grey.repeat_interleave(3, 1)[:, 2:]
        return each.expand(-1, -1, 3, -1, -1)


@pytest.mark.parametrize("per_step", [1, 2])
def test_every_frame_has_the_actions_that_lead_to_it(tmp_path: Path, per_step: int) -> None:
    recording = make_store(
        tmp_path / "r", [10, 7, 9], latent=None, tokenizer="", video=True, actions_per_step=per_step, fps=30.0
    )
    store = encode(recording.path, Last(), tmp_path / "out")
    assert (store.header.actions_per_step, store.header.fps) == (3 * per_step, 10)
    source = Decoded(store, Last())
    assert (source.header.actions_per_step, source.header.fps, source.steps) == (per_step, 30, 10 + 7 + 7)
    for episode, raw, stretch in zip(source, recording.episodes, store.episodes, strict=True):
        assert episode.steps == 1 + (raw.steps - 1) // 3 * 3
        assert np.array_equal(episode.actions[1:], recording.actions[raw.start + 1 : raw.start + episode.steps])
        assert np.array_equal(episode.actions[0, -1], recording.actions[raw.start, -1])
        assert store.latents is not None
        latents = torch.from_numpy(store.latents[stretch.start : stretch.stop].astype(np.int64))
        whole = to_uint8(Last().decode(latents[None])[0])
        assert np.array_equal(np.stack(list(episode.frames())), whole)
        assert np.array_equal(np.stack(list(episode.frames(2, 1, 6))), whole[1:6:2])


def test_ids_of_no_vocabulary_are_told_before_they_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a device decodes is looked at by nobody."""
    store = make_store(tmp_path / "s", [4], latent=Last.latent, actions_per_step=3, tokenizer="last")
    np.memmap(store.path / "latents.bin", store.header.dtype, "r+", shape=(4, 2, 2))[2, 1, 0] = 16
    monkeypatch.setattr("hwm.data.sources.decoded.device_of", lambda *_: torch.device("meta"))
    with pytest.raises(HwmError, match=r"token ids must be in 0\.\.15, these reach from \d+ to 16"):
        list(Decoded(store, Last())[0].frames())


def test_actions_that_do_not_divide_among_frames(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", [4], latent=Last.latent, tokenizer="last", actions_per_step=4)
    with pytest.raises(HwmError, match="4 actions a step do not divide among its 3 frames"):
        Decoded(store, Last())
