"""Wrong actions for the same clips: what delta-PSNR compares the right ones with.

A model that listens to its actions predicts worse when they are wrong. How they are made wrong matters more than it
seems: a swap that makes a command jump shows the model a thing that never happens in its data, the pictures blur, and
even a model that ignores which way it is told to turn appears to listen. Hence three swaps, of which `jump_free`
is the one to trust.

All take the actions (N, T, K, A) of N clips and return a copy whose steps before `prompt` are untouched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hwm.data.arrays import pieces
from hwm.data.store import Store
from hwm.errors import HwmError
from hwm.types import ActionSpec


@dataclass(frozen=True)
class Bounds:
    """Lowest and highest value of each action dimension, both (A,), in the robot's units."""

    low: Tensor
    high: Tensor

    def clip(self, actions: Tensor) -> Tensor:
        """Actions (..., A) held within the range."""
        return torch.minimum(torch.maximum(actions, self.low), self.high)


def random_actions(
    actions_NTKA: Tensor, prompt: int, spec: ActionSpec, generator: torch.Generator, bounds: Bounds | None = None
) -> Tensor:
    """Future actions drawn anew, each from a normal distribution with the spec's mean and standard deviation.

    Commands become white noise: every one of them jumps. The crudest of the swaps.
    """
    future = actions_NTKA[:, prompt:]
    noise = torch.randn(future.shape, generator=generator)
    drawn = noise * torch.tensor(spec.std) + torch.tensor(spec.mean)
    return _with_future(actions_NTKA, prompt, drawn, bounds)


def other_clip(
    actions_NTKA: Tensor, prompt: int, spec: ActionSpec, generator: torch.Generator, bounds: Bounds | None = None
) -> Tensor:
    """Another clip's future actions: each command is real, but it jumps once, where the future begins."""
    donor = actions_NTKA[donors(len(actions_NTKA), generator)]
    return _with_future(actions_NTKA, prompt, donor[:, prompt:], bounds)


def jump_free(
    actions_NTKA: Tensor, prompt: int, spec: ActionSpec, generator: torch.Generator, bounds: Bounds | None = None
) -> Tensor:
    """Another clip's *changes* of command, added onto the clip's own last command: nothing jumps at the swap.

    The change from one action to the next is everywhere one that the donor really made. Clipping to the range cannot
    make a change larger, as long as the own last command lies in it.
    """
    return carried_on(actions_NTKA, actions_NTKA[donors(len(actions_NTKA), generator)], prompt, bounds)


def carried_on(actions_NTKA: Tensor, donor_NTKA: Tensor, prompt: int, bounds: Bounds | None = None) -> Tensor:
    """Actions that go on after `prompt` steps by the donors' changes, added onto the own last commands."""
    offset_NA = actions_NTKA[:, prompt - 1, -1] - donor_NTKA[:, prompt - 1, -1]
    return _with_future(actions_NTKA, prompt, donor_NTKA[:, prompt:] + offset_NA[:, None, None], bounds)


Swap = Callable[[Tensor, int, ActionSpec, torch.Generator, Bounds | None], Tensor]
SWAPS: dict[str, Swap] = {"jump_free": jump_free, "random": random_actions, "other_clip": other_clip}


def donors(clips: int, generator: torch.Generator) -> Tensor:
    """For each clip the index of another, (N,).

    A shift by a quarter to three quarters of the clips: they are in the order of the store, so the donor comes from
    far away, where possible from another episode.

    Raises:
        HwmError: there is only one clip.
    """
    if clips < 2:
        raise HwmError("swapping actions between clips takes two clips or more: give more, or no swaps")
    low, high = max(1, clips // 4), max(1, 3 * clips // 4)
    shift = int(torch.randint(low, high + 1, (1,), generator=generator))
    return (torch.arange(clips) + shift) % clips


def distance(actions_NTKA: Tensor, swapped_NTKA: Tensor, prompt: int, spec: ActionSpec) -> Tensor:
    """How far a swap is from the truth: root mean square over slots and dimensions, in standard deviations, (N, T').

    A swap that hardly changes the actions cannot show whether a model listens to them.
    """
    std = torch.tensor(spec.std)
    varies = std > 0
    if not bool(varies.any()):
        return torch.zeros(len(actions_NTKA), actions_NTKA.shape[1] - prompt)
    difference = (swapped_NTKA - actions_NTKA)[:, prompt:, :, varies] / std[varies]
    return difference.square().mean((-2, -1)).sqrt()


def _with_future(actions_NTKA: Tensor, prompt: int, future: Tensor, bounds: Bounds | None) -> Tensor:
    if prompt < 1:
        raise HwmError("a swap needs at least one step of context, prompt >= 1")
    future = bounds.clip(future) if bounds is not None else future
    return torch.cat([actions_NTKA[:, :prompt], future.to(actions_NTKA)], 1)


def action_bounds(store: Store) -> Bounds:
    """Lowest and highest value of each action dimension of a store, read in pieces."""
    dims = store.actions.shape[-1]
    low, high = np.full(dims, np.inf), np.full(dims, -np.inf)
    for part in pieces(store.actions):
        low, high = np.minimum(low, part.min(0)), np.maximum(high, part.max(0))
    return Bounds(torch.from_numpy(low).float(), torch.from_numpy(high).float())
