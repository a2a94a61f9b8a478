"""A toy world whose truth is known: the camera pans over a wallpaper that closes on itself.

`TURN` is how many pixels the picture moves to the right in one action slot; `NOD` does nothing. The wallpaper is as
wide as the picture, so a pan is a roll, and a model that rolls the last picture by the commands is an oracle.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hwm.data.clips import Clips
from hwm.data.store import Header, Store
from hwm.data.writer import Writer
from hwm.loading import load_tokenizer
from hwm.models.base import WorldModel
from hwm.pictures.video import write_video
from hwm.tokenizers.pixels import Pixels
from hwm.tokenizers.tiny import TinyTokenizer
from hwm.train.checkpoint import save_model
from hwm.types import Batch, DataSpec, LatentSpec, Prediction, Tokenizer, join_digits, split_digits

SIZE, CELL, SLOTS = (32, 48), 4, 2


def pan(pictures: Tensor, pixels: Tensor) -> Tensor:
    """Roll pictures (B, ..., W) to the right by any number of pixels (B,); exact for smooth pictures."""
    width = pictures.shape[-1]
    phase = torch.exp(-2j * torch.pi * torch.fft.rfftfreq(width) * pixels[:, None])
    phase = phase.reshape(len(pictures), *[1] * (pictures.ndim - 2), -1)
    return torch.fft.irfft(torch.fft.rfft(pictures) * phase, width)


def wallpaper(rng: np.random.Generator) -> Tensor:
    """A smooth colourful picture, (1, 3, H, W), that closes on itself from left to right."""
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]] * 2 * np.pi / SIZE[1]
    out = np.zeros((3, *SIZE))
    for colour in out:
        for _ in range(6):
            kx, ky = rng.integers(1, 6), rng.integers(0, 4)
            colour += np.sin(kx * x + ky * y + rng.uniform(0, 6.28))
    out = (out - out.min()) / (out.max() - out.min())
    return torch.from_numpy(out).float()[None]


class Blocks(Tokenizer):
    """A coarse discrete tokenizer: the mean colour of 4 x 4 pixels in 4 x 4 x 4 shades."""

    def __init__(self) -> None:
        self.size, self.id = SIZE, "blocks"
        self.latent = LatentSpec(grid=(SIZE[0] // CELL, SIZE[1] // CELL), vocab=64, levels=(4, 4, 4))

    def encode(self, video_BFCHW: Tensor) -> Tensor:
        mean = video_BFCHW.unflatten(-2, (-1, CELL)).unflatten(-1, (-1, CELL)).mean((-3, -1))
        return join_digits((mean * 4).long().clamp(0, 3).movedim(2, -1), (4, 4, 4))

    def decode(self, latents: Tensor) -> Tensor:
        colours = (split_digits(latents, (4, 4, 4)).movedim(-1, 2).float() + 0.5) / 4
        return colours.repeat_interleave(CELL, -2).repeat_interleave(CELL, -1)


class Pairs(Tokenizer):
    """Two frames a step after the first, side by side as channels: a tokenizer with a stride."""

    def __init__(self) -> None:
        self.size, self.id = SIZE, "pairs"
        self.latent = LatentSpec(grid=SIZE, channels=6, stride=2)

    def encode(self, video_BFCHW: Tensor) -> Tensor:
        first = video_BFCHW[:, :1].repeat(1, 1, 2, 1, 1)
        return torch.cat([first, video_BFCHW[:, 1:].unflatten(1, (-1, 2)).flatten(2, 3)], 1)

    def decode(self, latents: Tensor) -> Tensor:
        return torch.cat([latents[:, :1, 3:], latents[:, 1:].unflatten(2, (2, 3)).flatten(1, 2)], 1).float()


class CopyLast(WorldModel):
    """Repeats the last step, and does not look at actions."""

    def predict(self, batch: Batch, *, sampler=None, logits=False, cache=None, generator=None) -> Prediction:
        return Prediction(batch.latents[:, -1:].expand(-1, batch.missing, *batch.latents.shape[2:]))


class Oracle(WorldModel):
    """Rolls the last step by the commands, in pixels or in cells; with token ids it is sure of itself."""

    def predict(self, batch: Batch, *, sampler=None, logits=False, cache=None, generator=None) -> Prediction:
        moves = batch.actions[:, batch.latents.shape[1] :, :, 0].sum(-1).cumsum(1)
        last, steps = batch.latents[:, -1], []
        for moved in moves.unbind(1):
            if self.spec.latent.vocab is None:
                steps.append(pan(last, moved))
            else:
                cells = (moved / CELL).round().long().tolist()
                steps.append(torch.stack([x.roll(c, -1) for x, c in zip(last, cells, strict=True)]))
        latents = torch.stack(steps, 1)
        if not logits or self.spec.latent.vocab is None:
            return Prediction(latents)
        digits = split_digits(latents, self.spec.latent.levels)
        sure = torch.cat([torch.nn.functional.one_hot(d, 4) * 8.0 for d in digits.unbind(-1)], -1)
        return Prediction(latents, sure, self.spec.latent.levels)


class Noisy(CopyLast):
    """Adds noise from the generator it is given."""

    def predict(self, batch: Batch, *, sampler=None, logits=False, cache=None, generator=None) -> Prediction:
        latents = super().predict(batch).latents
        return Prediction(latents + 0.1 * torch.randn(latents.shape, generator=generator))


def random_tokenizer(folder: Path) -> Tokenizer:
    """A tokenizer of tokens for these pictures, with weights at random, saved in a folder."""
    torch.manual_seed(0)
    save_model(folder, TinyTokenizer.tiny().build(DataSpec(LatentSpec(SIZE, channels=3), {})))
    return load_tokenizer(folder)


def record(path: Path, tokenizer: Tokenizer, *, episodes: int = 3, steps: int = 24, video: bool = True) -> Store:
    """Record and encode a store; its video has two camera frames a step, one an action slot."""
    discrete = tokenizer.latent.vocab is not None
    header = Header(
        embodiment="pan", action_names=("TURN", "NOD"), actions_per_step=SLOTS, fps=10.0, latent=tokenizer.latent,
        dtype="uint16" if discrete else "float16", tokenizer=tokenizer.id, source="a wallpaper",
    )  # fmt: skip
    writer = Writer(path, header)
    for number in range(episodes):
        rng = np.random.default_rng(number)
        slots = steps * SLOTS
        if discrete:  # whole cells, held for a while
            turn = np.repeat(rng.integers(-1, 2, slots // 4 + 1), 4)[:slots] * float(CELL)
        else:
            turn = np.convolve(rng.normal(0, 3, slots + 8), np.ones(9) / 3, "valid").clip(-4, 4)
        actions = np.stack([turn, rng.normal(size=slots)], -1).reshape(steps, SLOTS, 2).astype(np.float32)
        # the frame of slot s; the last slot of step t shows step t, and frame 0 is that of step 0
        offset = torch.from_numpy(np.r_[0.0, np.cumsum(turn[SLOTS:])]).float()
        frames = pan(wallpaper(rng).expand(len(offset), -1, -1, -1), offset).clamp(0, 1)
        shown = frames if tokenizer.latent.stride == SLOTS else frames[::SLOTS]
        latents = tokenizer.encode(shown[None])[0].numpy()
        file = None
        if video:
            file = writer.partial / f".{number}.mp4"
            pictures = (frames * 255).round().byte().permute(0, 2, 3, 1).numpy()
            write_video(file, pictures, 20, crf=8)
        writer.add(f"episode_{number}", actions, latents, file, {"frames_per_step": SLOTS})
    return writer.finish()


def build(model: type[WorldModel], clips: Clips, past: int = 2) -> WorldModel:
    return model(WorldModel.Config(past=past), clips.spec())


TOKENIZERS = {"pixels": lambda: Pixels(SIZE), "blocks": Blocks, "pairs": Pairs}
