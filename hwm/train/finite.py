"""Whether an update's losses and gradients are finite: found out by the device, and read when it has long gone on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hwm.devices import Late
from hwm.train.distributed import World


class Verdict:
    """What is found of an update, the same in all processes. To make one waits for nothing; to read it may.

    Args:
        step: the update.
        losses: of its forward passes, in this process; scalars on the device.
        norm: of the gradient.

    Attributes:
        bad: scalar on the device: 1 where anything is not finite, else 0, as fused optimizers take it (`found_inf`).
    """

    def __init__(self, step: int, losses: Sequence[Tensor], norm: Tensor, world: World) -> None:
        self.step = step
        found = torch.stack([x.detach().float() for x in (*losses, norm)])
        self.bad = world.largest((~found.isfinite().all()).float())
        self.late = Late(torch.cat([found, self.bad[None]]))

    @property
    def finite(self) -> bool:
        return not self.late.read()[-1]

    def culprit(self) -> tuple[int, str]:
        """Of what is not finite: the forward pass that it came from, and words for it."""
        *losses, norm, _ = self.late.read()
        for i, loss in enumerate(losses):
            if not math.isfinite(loss):
                return i, f"loss became {loss}"
        what = f"norm of the gradient became {norm}" if not math.isfinite(norm) else "loss of another process did so"
        return len(losses) - 1, what


class LossScale:
    """A factor of the loss that keeps gradients in the range of float16 (arXiv 1710.03740).

    A power of two: it is halved when an update is not finite, which is then left out, and doubled after `PATIENCE`
    updates that are. In other formats it is 1, and stays.
    """

    BEGINS, LARGEST, PATIENCE = 2.0**16, 2.0**24, 2000

    def __init__(self, on: bool) -> None:
        self.on, self.value, self.good = on, self.BEGINS if on else 1.0, 0

    def unscale(self, gradients: Iterable[Tensor]) -> None:
        """Divide gradients of the scaled loss by the scale, in place."""
        if self.value != 1:
            torch._foreach_mul_(list(gradients), 1 / self.value)

    def heed(self, finite: bool) -> bool:
        """Go by what was found of an update; False where it is not finite and no smaller scale is left to try."""
        if not self.on or (self.value == 1 and not finite):
            return finite
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.good % self.PATIENCE == 0:
            self.value = min(2 * self.value, self.LARGEST)
        return True

    def state(self) -> list[float]:
        """What a checkpoint keeps; `restore` takes it."""
        return [self.value, self.good]

    def restore(self, state: Sequence[float]) -> None:
        if self.on:
            self.value, self.good = float(state[0]), int(state[1])
