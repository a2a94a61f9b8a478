"""The few frames of a long rollout that are looked at: those around moments, and all of some clips.

A rollout of half a minute has more pictures than memory; so what is not looked at is not decoded either. Frames are
counted from the last of the context, which is 0.

Shape suffixes: B clips, T steps, F frames, C colours, H W places.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hwm.evaluate.camera import decode
from hwm.pictures.video import to_uint8
from hwm.types import Prediction, Tokenizer


@dataclass(frozen=True)
class Shots:
    """Which frames are looked at.

    Attributes:
        moments: numbers of neighbouring frames that are wanted of all clips.
        films: rows of the batch of which all frames are wanted, from 0 to the last of the last moment.
    """

    moments: Sequence[range]
    films: Sequence[int] = ()


@dataclass
class Footage:
    """The frames that were looked at.

    Attributes:
        moments: one after the other (B, F, 3, H, W); decoded when they are asked for, where that can be.
        films: by row, (F, H, W, 3) uint8.
    """

    moments: Iterable[Tensor]
    films: dict[int, np.ndarray]


def footage(tokenizer: Tokenizer, latents: Tensor, prompt: int, shots: Shots) -> Footage:
    """The frames of the latents (B, T, ...) of context and rollout."""
    latent = tokenizer.latent

    def shown(rows: Tensor, numbers: range) -> Tensor:
        """These frames, the last of which ends a step."""
        first, last = (-(-n // latent.stride) + prompt - 1 for n in (numbers[0], numbers[-1]))
        # decoded alone a step of several frames shows one, as the first of a clip does
        begin = max(0, first - max(tokenizer.lookback, int(latent.stride > 1)))
        return decode(tokenizer, rows[:, begin : last + 1], last=len(numbers))

    whole = range(shots.moments[-1][-1] + 1)
    films = {row: to_uint8(shown(latents[row : row + 1], whole)[0]) for row in shots.films}
    return Footage((shown(latents, numbers) for numbers in shots.moments), films)


def footage_of_clips(
    tokenizer: Tokenizer, context: Tensor, windows: Iterable[tuple[Prediction, Tensor]], shots: Shots
) -> Footage:
    """The frames of a rollout whose windows are clips of their own (`clip_windows`), from its context (B, T, ...)."""
    wanted = {n for numbers in shots.moments for n in numbers}
    kept = {0: decode(tokenizer, context, last=1)[:, 0]}
    films = {row: [to_uint8(kept[0][row : row + 1])] for row in shots.films}
    begin = 1
    for part, clip in windows:
        end = begin + part.latents.shape[1] * tokenizer.latent.stride
        if films or not wanted.isdisjoint(range(begin, end)):
            frames = decode(tokenizer, clip, last=end - begin)
            kept |= {n: frames[:, n - begin] for n in range(begin, end) if n in wanted}
            for row, film in films.items():
                film.append(to_uint8(frames[row]))
        begin = end
    moments = [torch.stack([kept[n] for n in numbers], 1) for numbers in shots.moments]
    return Footage(moments, {row: np.concatenate(film) for row, film in films.items()})
