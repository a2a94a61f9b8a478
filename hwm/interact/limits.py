"""What commands an embodiment may be given, and how fast they may change: what the data shows, no more."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hwm.errors import HwmError, unknown
from hwm.types import ActionSpec

VELOCITY = re.compile(r"(?<![A-Z])(VELOCITY|VEL|SPEED|TWIST|DELTA)(?![A-Z])")
"""A word in the name of an action that is a rate of something, not its place."""

Action = Mapping[str, float] | np.ndarray | list[float]


@dataclass(frozen=True)
class Limits:
    """Of A action dimensions, in the units of the robot.

    Attributes:
        names: of the dimensions.
        low, high: (A,) the range of the data.
        change: (A,) the most that a command changes from one action to the next.
    """

    names: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    change: np.ndarray

    @classmethod
    def of_store(cls, store: object) -> Limits:
        """Range and usual changes of the actions of a store (`Store`)."""
        from hwm.data.store import Store
        from hwm.evaluate.obey import usual_changes
        from hwm.evaluate.swaps import action_bounds

        assert isinstance(store, Store)
        bounds = action_bounds(store)
        return cls(store.header.action_names, bounds.low.numpy(), bounds.high.numpy(), usual_changes(store).numpy())

    @classmethod
    def of_spec(cls, spec: ActionSpec) -> Limits:
        """Where no data is at hand: three standard deviations around the mean, crossed in 50 actions at the fastest."""
        mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
        return cls(spec.names, mean - 3 * std, mean + 3 * std, 6 * std / 50)

    @property
    def rest(self) -> np.ndarray:
        """(A,) what a velocity falls back to when nobody asks for one: 0, or the nearest the data knows; NaN for
        dimensions that hold their value.

        A velocity is known by its name. Values do not tell: over half a second those of the simulated humanoid's joints
        and of its velocities are equally alike (correlations of 0.50 to 0.67, and of 0.45 and 0.60), and both scatter
        about zero.
        """
        velocity = np.array([VELOCITY.search(name.upper()) is not None for name in self.names])
        return np.where(velocity, np.clip(0.0, self.low, self.high), np.nan).astype(np.float32)

    def vector(self, action: Action, last: np.ndarray) -> np.ndarray:
        """A wanted command as (A,) float32 within the limits; dimensions that a mapping does not name keep their last
        value.

        Raises:
            HwmError: an unknown name, another width, or a value that is not a finite number.
        """
        if isinstance(action, Mapping):
            wanted = last.astype(np.float32)
            for name, value in action.items():
                if name not in self.names:
                    raise unknown("action", str(name), self.names)
                wanted[self.names.index(name)] = number(value, str(name))
        else:
            try:
                wanted = np.array(action, np.float32)
            except (TypeError, ValueError):
                raise HwmError(f"an action is {len(self.names)} numbers, got {short(action)}") from None
        if wanted.shape != (len(self.names),):
            raise HwmError(f"an action has {len(self.names)} values, got shape {wanted.shape}")
        if not np.isfinite(wanted).all():
            raise HwmError(f"action {self.names[int(np.argmin(np.isfinite(wanted)))]!r} is not a finite number")
        return np.clip(wanted, self.low, self.high)

    def towards(self, wanted: np.ndarray, last: np.ndarray, count: int) -> np.ndarray:
        """(count, A): from the last command to the wanted one, within the limits, no faster than commands change in the
        data."""
        steps = np.arange(1, count + 1, dtype=np.float32)[:, None] * self.change.astype(np.float32)
        way = wanted - last
        path = last + np.sign(way) * np.minimum(np.abs(way), steps)
        return np.clip(path, self.low, self.high).astype(np.float32)


def number(value: object, name: str) -> float:
    """A value that must be a real number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise HwmError(f"{name!r} must be a number, got {short(value)}")
    try:
        return float(value)
    except OverflowError:
        raise HwmError(f"{name!r} is too large a number") from None


def short(value: object, most: int = 60) -> str:
    """What was given, as an error message can show it."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."
