"""Commands that nobody recorded: a robot comes to rest, turns away and comes back, or drives, and never jumps.

All follow on the actions of a context, (N, T, K, A), whose last values joints and hands keep; what they change are the
two speeds of a wheeled base. None is changed by more than `limit` from one slot to the next.

Shape suffixes: N starts, T steps, K actions a step, A their values, S slots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hwm.data.clips import Clips
from hwm.errors import HwmError
from hwm.evaluate.obey import ramp_to, usual_changes
from hwm.evaluate.swaps import action_bounds

DRIVE, TURN = "LINEAR_VELOCITY", "ANGULAR_VELOCITY"
REST = 2
"""Steps of rest after coming to a stop, and after a turn."""


@dataclass(frozen=True)
class Base:
    """What must be known of a robot's base to write commands for it.

    Attributes:
        drive, turn: which actions are its speeds, in m/s and rad/s.
        limit: the most that each action changes from one slot to the next, (A,).
        low, high: the range of each action in the data, (A,).
        slots: actions a step, and `seconds` from one slot to the next.
    """

    drive: int
    turn: int
    limit: Tensor
    low: Tensor
    high: Tensor
    slots: int
    seconds: float

    @classmethod
    def of(cls, clips: Clips) -> Base:
        """Of the robot of a store.

        Raises:
            HwmError: it has no such base.
        """
        names, spec = clips.store.header.action_names, clips.spec()
        missing = [name for name in (DRIVE, TURN) if name not in names]
        if missing:
            raise HwmError(f"{clips.store.path}: {clips.embodiment!r} has no action {missing[0]} to command it by")
        bounds, slots = action_bounds(clips.store), spec.actions[clips.embodiment].per_step
        return cls(
            names.index(DRIVE), names.index(TURN), usual_changes(clips.store), bounds.low, bounds.high, slots,
            1 / (spec.fps * slots),
        )  # fmt: skip

    def stop(self, actions_NTKA: Tensor) -> Tensor:
        """Come to rest within as many whole steps as it takes the fastest, and rest, (N, T', K, A)."""
        last = actions_NTKA[:, -1, -1]
        slowest = max(float((last[:, i].abs() / self.limit[i]).max()) for i in (self.drive, self.turn))
        steps = math.ceil(math.ceil(slowest) / self.slots) + REST
        return self.approach(actions_NTKA, {self.drive: 0.0, self.turn: 0.0}, steps)

    def approach(self, actions_NTKA: Tensor, speeds: dict[int, float], steps: int) -> Tensor:
        """Change these actions towards these values and hold them, (N, steps, K, A)."""
        target = actions_NTKA[:, -1, -1].clone()
        for action, value in speeds.items():
            target[:, action] = value
        return ramp_to(actions_NTKA, target, self.limit, steps)

    def turned(self, actions_NTKA: Tensor, degrees: Sequence[float], rate: float) -> tuple[Tensor, list[int]]:
        """Turn by these angles one after the other, from rest and to rest, (N, T', K, A).

        Args:
            degrees: to the left where they are above 0.
            rate: of turning, in rad/s, at most.

        Returns:
            the actions, and the number of steps after which each turn has ended.
        """
        last, parts, ends = actions_NTKA[:, -1, -1], list[Tensor](), list[int]()
        for angle in degrees:
            profile = trapezoid(math.radians(angle), rate, float(self.limit[self.turn]), self.seconds)
            steps = math.ceil(len(profile) / self.slots) + REST
            part = last[:, None].repeat(1, steps * self.slots, 1)
            part[:, : len(profile), self.turn] = torch.from_numpy(profile).to(part)
            part[:, len(profile) :, self.turn] = 0.0
            parts.append(part.unflatten(1, (steps, self.slots)))
            ends.append(steps + (ends[-1] if ends else 0))
        return torch.cat(parts, 1), ends


def trapezoid(angle: float, rate: float, limit: float, seconds: float) -> np.ndarray:
    """Rates of turning by slot, (S,), from and to 0, which add up to an angle in radians.

    Args:
        rate: the highest, in rad/s.
        limit: the most by which it changes from slot to slot.
        seconds: of a slot.
    """
    rise = math.ceil(rate / limit)
    hold = math.ceil(max(0.0, abs(angle) / (rate * seconds) - rise))
    shape = np.concatenate([np.arange(1, rise + 1), np.full(hold, rise), np.arange(rise - 1, 0, -1)]) / rise
    return shape * angle / (shape.sum() * seconds)
