"""Obedience for as long as one likes: what turning and driving do to the dream, and what they do in the simulator.

Every start is gone on from under a few constant speeds, in the dream and in the simulator, and the motion of both is
measured (`hwm.evaluate.obey.MOTIONS`), less what it is under the speeds zero from the same start. Turning should shift
the picture, driving should expand it:

- the *response* is the slope, through the origin, of the dreamed motion on the true one: 1 as far, 0 not at all;
- the *cross-talk* is what a command does to the other motion beyond what it does there in truth, as a share of what
  that motion's own commands do in truth: root mean squares over the commands, of means over the starts.

Shape suffixes: Q commands, N starts, T steps, M motions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwm.data.clips import Clips
from hwm.evaluate.judge import judge, starts_of, unit
from hwm.evaluate.obey import MOTIONS, motion_by_step
from hwm.evaluate.scripts import Base
from hwm.evaluate.uncertainty import Estimate, estimate
from hwm.models.base import WorldModel
from hwm.progress import bar
from hwm.types import Tokenizer

SECONDS = (0.1, 0.5, 1.0, 3.0)
"""Horizons; what is said of each is of the steps after the one before."""

COMMANDS = {
    "shift": (-1.2, -0.8, -0.4, 0.4, 0.8, 1.2),
    "expansion": (-0.4, 0.3, 0.6, 0.8),
}
"""By the motion that they should cause: rates of turning in rad/s, and speeds in m/s."""

STILL = 0.25
"""Pixels a step: where the true motion is less, no response can be told."""


@dataclass
class Responses:
    """What the pictures did under each command.

    Attributes:
        steps: the horizons, in steps; `seconds` the same in seconds.
        commands: by motion of `MOTIONS`, the speeds that should cause it, as they were told.
        dreamed, true: by motion, (Q, N, T, M): pixels a step under those speeds, less those under the speeds zero.
        episodes: (N,) of the starts.
    """

    steps: Sequence[int]
    seconds: Sequence[float]
    commands: Mapping[str, Sequence[float]]
    dreamed: Mapping[str, np.ndarray]
    true: Mapping[str, np.ndarray]
    episodes: np.ndarray

    def response(self, motion: str, horizon: int) -> Estimate | None:
        """The slope at a horizon, given by its number, with its standard error; None where the truth hardly moves."""
        m = MOTIONS.index(motion)
        dreamed, true = (self._during(x[motion], horizon)[..., m] for x in (self.dreamed, self.true))
        if np.sqrt((true**2).mean()) < STILL:
            return None
        slope = (dreamed * true).sum() / (true**2).sum()
        # a start's own part in the slope, so that their mean is the slope and their spread its error
        parts = slope + (true * (dreamed - slope * true)).sum(0) / (true**2).sum(0).mean()
        return estimate(parts, self.episodes)

    def cross_talk(self, motion: str, horizon: int) -> float | None:
        """What the commands of the other motion do to this one that they should not; None where there is no scale."""
        m, (other,) = MOTIONS.index(motion), (name for name in MOTIONS if name != motion)
        wrong = (self.dreamed[other] - self.true[other])[..., m]
        scale = np.sqrt((self._during(self.true[motion], horizon)[..., m].mean(1) ** 2).mean())
        if scale < STILL:
            return None
        return float(np.sqrt((self._during(wrong, horizon).mean(1) ** 2).mean()) / scale)

    def _during(self, values_QNT: np.ndarray, horizon: int) -> np.ndarray:
        """The mean over the steps of a horizon."""
        first = self.steps[horizon - 1] if horizon else 0
        return values_QNT[:, :, first : self.steps[horizon]].mean(2)

    def json(self) -> dict[str, Any]:
        """Plain values for a report or a file: lists go over the horizons."""
        out: dict[str, Any] = {"starts": len(self.episodes), "seconds": list(self.seconds), "commands": {}}
        for motion in MOTIONS:
            found = [self.response(motion, h) for h in range(len(self.steps))]
            talk = [self.cross_talk(motion, h) for h in range(len(self.steps))]
            errors = [None if x is None else x.known_error for x in found]
            out["commands"][motion] = list(self.commands[motion])
            out[f"response_{motion}"] = [None if x is None else round(x.mean, 4) for x in found]
            out[f"response_{motion}_stderr"] = [None if e is None else round(e, 4) for e in errors]
            out[f"cross_talk_{motion}"] = [None if x is None else round(x, 4) for x in talk]
        return out


def respond(
    model: WorldModel,
    tokenizer: Tokenizer,
    clips: Clips,
    *,
    starts: int = 8,
    prompt: int | None = None,
    seconds: Sequence[float] = SECONDS,
    commands: Mapping[str, Sequence[float]] = COMMANDS,
    progress: bool = False,
    **how: Any,
) -> Responses:
    """Turn and drive at constant speeds from the same starts, in the dream and in the simulator.

    Args:
        starts: windows to start from, spread evenly over the clips.
        seconds: horizons; each is at least one step after the one before.
        commands: as `COMMANDS`; speeds beyond those of the data are held to them.
        progress: show a progress bar where the output is a terminal.
        how: further options of `hwm.evaluate.judge.dream`.

    Raises:
        HwmError: the store is of no simulator, MuJoCo or a way to draw is missing, or the robot does not drive.
    """
    begin = starts_of(clips, starts, model.config.past if prompt is None else prompt)
    base, fps = Base.of(clips), clips.spec().fps
    steps = sorted({max(1, round(s * fps)) for s in seconds})
    wanted = [("still", 0.0, 0.0)]
    for motion, action in zip(MOTIONS, (base.turn, base.drive), strict=True):
        for speed in np.unique(np.clip(commands[motion], base.low[action], base.high[action])):
            told = (0.0, float(speed)) if action == base.turn else (float(speed), 0.0)
            wanted.append((motion, *told))

    def moved(drive: float, turn: float) -> tuple[Tensor, Tensor]:
        actions = base.approach(begin.context.actions, {base.drive: drive, base.turn: turn}, steps[-1])
        found = judge(model, tokenizer, begin, actions, **how)
        return motion_by_step(unit(found.dream), 1), motion_by_step(unit(found.truth), 1)

    motions = []
    with bar("commands", len(wanted) * len(begin), "rollouts", progress) as advance:
        for _, drive, turn in wanted:
            motions.append(moved(drive, turn))
            advance(len(begin))
    names = np.array([name for name, _, _ in wanted])
    dreamed, true = (torch.stack([pair[i] - motions[0][i] for pair in motions]).double().numpy() for i in (0, 1))
    return Responses(
        steps=steps,
        seconds=[s / fps for s in steps],
        commands={m: [round(drive + turn, 4) for name, drive, turn in wanted if name == m] for m in MOTIONS},
        dreamed={m: dreamed[names == m] for m in MOTIONS},
        true={m: true[names == m] for m in MOTIONS},
        episodes=begin.episodes,
    )
