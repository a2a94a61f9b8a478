"""Look away and come back: is what one turned from still there?

The robot comes to rest, turns away and back, or all the way round, and what it sees then is compared with what the
simulator's robot sees. That is what it saw before, so a repeated frame of the start would be no baseline but the
answer; the baselines are the last true frame of looking away, and one of a random moment of the same turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hwm.data.clips import Clips
from hwm.evaluate.judge import judge, rebuilt, starts_of, unit
from hwm.evaluate.metrics import METRICS, Metric
from hwm.evaluate.scripts import Base
from hwm.evaluate.uncertainty import estimate
from hwm.models.base import WorldModel
from hwm.progress import bar
from hwm.types import Tokenizer

ANGLES = (90, 180, 360)
"""Degrees; a full turn goes all the way round, the others there and back."""

SOURCES = ("prediction", "copy", "random", "reconstruction")
"""Whose pictures are compared with the simulator's last: the model's last; the simulator's at the turning point; the
simulator's at a random moment of the turn; the simulator's last as the tokenizer shows it."""


@dataclass
class LookAway:
    """How well the view is known after looking away.

    Attributes:
        rate: of turning, in rad/s, at most.
        seconds: by angle, from leaving the view to being back.
        values: by angle, metric and source (`SOURCES`), (N,).
        episodes: (N,) of the starts.
    """

    rate: float
    seconds: dict[int, float]
    values: dict[int, dict[str, dict[str, np.ndarray]]]
    episodes: np.ndarray

    def json(self) -> dict[str, Any]:
        """Plain values for a report or a file."""
        by_angle = {}
        for angle, metrics in self.values.items():
            figures: dict[str, Any] = {"seconds": round(self.seconds[angle], 2)}
            for metric, sources in metrics.items():
                means = {source: estimate(values, self.episodes) for source, values in sources.items()}
                figures[metric] = {source: round(mean.mean, 4) for source, mean in means.items()}
                error = means["prediction"].known_error
                figures[f"{metric}_stderr"] = None if error is None else round(error, 4)
            by_angle[str(angle)] = figures
        return {"starts": len(self.episodes), "rate": self.rate, "by_degrees": by_angle}


def look_away(
    model: WorldModel,
    tokenizer: Tokenizer,
    clips: Clips,
    *,
    starts: int = 8,
    prompt: int | None = None,
    angles: Sequence[int] = ANGLES,
    rate: float = 1.0,
    metrics: Mapping[str, Metric] = METRICS,
    seed: int = 0,
    progress: bool = False,
    **how: Any,
) -> LookAway:
    """Turn away from held-out views and back, in the dream and in the simulator.

    Args:
        starts: windows to start from, spread evenly over the clips.
        rate: of turning, in rad/s; at most what the data have.
        progress: show a progress bar where the output is a terminal.
        how: further options of `hwm.evaluate.judge.dream`.

    Raises:
        HwmError: the store is of no simulator, MuJoCo or a way to draw is missing, or the robot cannot turn.
    """
    begin = starts_of(clips, starts, model.config.past if prompt is None else prompt)
    base, context = Base.of(clips), begin.context.actions
    rate = min(rate, float(base.high[base.turn]), -float(base.low[base.turn]))
    stop = base.stop(context)
    values, seconds = {}, {}
    with bar("looking away", len(angles) * len(begin), "turns", progress) as advance:
        for angle in angles:
            turns, ends = base.turned(stop, (180, angle - 180) if angle == 360 else (angle, -angle), rate)
            found = judge(model, tokenizer, begin, torch.cat([stop, turns], 1), seed=seed, **how)
            rows, left = np.arange(len(begin)), stop.shape[1]
            drawn = np.random.default_rng((seed, angle)).integers(left, left + ends[-1], len(begin))
            last = found.truth[:, -1]
            pictures = {
                "prediction": found.dream[:, -1],
                "copy": found.truth[:, left + ends[0]],
                "random": found.truth[rows, drawn],
                "reconstruction": rebuilt(tokenizer, last),
            }
            values[angle] = {
                name: {source: metric.of(unit(pictures[source]), unit(last)).double().numpy() for source in SOURCES}
                for name, metric in metrics.items()
            }
            seconds[angle] = ends[-1] * base.slots * base.seconds
            advance(len(begin))
    return LookAway(rate, seconds, values, begin.episodes)
