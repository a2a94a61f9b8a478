"""Which plan was it? Of several action sequences, one of which was carried out, which leads to this end picture?

The others are jump-free (`hwm.evaluate.swaps`): other clips' changes of command, added onto the clip's own last ones.
The model rolls all of them out with the same random numbers, and the one whose picture is nearest to the true one is
taken for the plan. A model that ignores its actions finds the true one by chance alone. It takes no simulator.

Shape suffixes: N clips, H horizons, P plans, T steps, K actions a step, A their values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwm.data.clips import Clips
from hwm.errors import HwmError
from hwm.evaluate.camera import decode, episode_of
from hwm.evaluate.judge import dream, unit
from hwm.evaluate.metrics import METRICS, Metric
from hwm.evaluate.swaps import action_bounds, carried_on
from hwm.evaluate.uncertainty import Estimate, estimate
from hwm.models.base import WorldModel
from hwm.progress import bar
from hwm.types import Batch, Tokenizer

SECONDS = (0.3, 0.6, 1.0, 3.0)
"""Horizons."""

ALIKE = 1e-6
"""Pictures whose figures differ by no more than this share count as equally near."""


@dataclass
class Plans:
    """How often the true plan was found.

    Attributes:
        plans: how many there were to choose from.
        seconds: the horizons.
        first: by metric, (N, H): whether the true plan's picture was the nearest; of several equally near ones the
            chance that it is the one taken.
        rank: by metric, (N, H): how many were nearer, those equally near counted half.
        episodes: (N,) of the clips.
    """

    plans: int
    seconds: Sequence[float]
    first: Mapping[str, np.ndarray]
    rank: Mapping[str, np.ndarray]
    episodes: np.ndarray

    @property
    def chance(self) -> float:
        """How often it would be found by guessing."""
        return 1 / self.plans

    def found(self, metric: str, horizon: int) -> Estimate:
        """How often it was found at a horizon, given by its number."""
        return estimate(self.first[metric][:, horizon], self.episodes)

    def json(self) -> dict[str, Any]:
        """Plain values for a report or a file: lists go over the horizons."""
        out: dict[str, Any] = {
            "clips": len(self.episodes), "plans": self.plans, "chance": round(self.chance, 4),
            "chance_rank": (self.plans - 1) / 2, "seconds": list(self.seconds),
        }  # fmt: skip
        for metric in self.first:
            found = [self.found(metric, h) for h in range(len(self.seconds))]
            out[metric] = {
                "found": [round(x.mean, 4) for x in found],
                "found_stderr": [None if x.known_error is None else round(x.error, 4) for x in found],
                "rank": [round(float(x), 4) for x in self.rank[metric].mean(0)],
            }
        return out


def which_plan(
    model: WorldModel,
    tokenizer: Tokenizer,
    clips: Clips,
    *,
    count: int = 12,
    plans: int = 12,
    prompt: int | None = None,
    seconds: Sequence[float] = SECONDS,
    metrics: Mapping[str, Metric] | None = None,
    seed: int = 0,
    progress: bool = False,
    **how: Any,
) -> Plans:
    """Choose among plans by their end pictures, at each horizon that the clips reach.

    Args:
        count: clips, spread evenly over all.
        plans: how many to choose from, with the true one; at most as many as there are clips.
        metrics: of pictures, by which the nearest is found; PSNR alone by default.
        progress: show a progress bar where the output is a terminal.
        how: further options of `hwm.evaluate.judge.dream`.

    Raises:
        HwmError: fewer than two clips or plans, or clips that reach no horizon.
    """
    prompt = model.config.past if prompt is None else prompt
    indices, fps = clips.spread(max(count, plans)), clips.spec().fps
    steps = [s for s in sorted({max(1, round(s * fps)) for s in seconds}) if prompt + s <= clips.length]
    plans = min(plans, len(indices))
    if plans < 2 or not steps:
        raise HwmError(
            f"{clips.store.path}: {len(indices)} clips of {clips.length} steps: to tell plans apart takes two and more "
            f"of them, of more than the {prompt} steps of context"
        )
    metrics = {"psnr": METRICS["psnr"]} if metrics is None else metrics
    total = prompt + steps[-1]
    full, bounds = clips.batch(indices).window(0, total, total), action_bounds(clips.store)
    rng = np.random.default_rng(seed)
    chosen = np.unique(np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int))
    first, rank = ({name: np.empty((len(chosen), len(steps))) for name in metrics} for _ in range(2))
    with bar("telling plans apart", len(chosen) * plans, "rollouts", progress) as advance:
        for n, c in enumerate(chosen):
            others = rng.permutation(np.delete(np.arange(len(indices)), c))[: plans - 1]
            actions = candidates(full.actions, int(c), others, prompt, bounds)
            same = torch.full((plans,), int(c))
            context = Batch(full.latents[same, :prompt], full.actions[same, :prompt], full.embodiment)
            made = dream(model, tokenizer, context, actions[:, prompt:], seed=seed, batch_size=plans, **how)
            with torch.inference_mode():
                truth = decode(tokenizer, full.latents[c : c + 1])[0, :: tokenizer.latent.stride].cpu()[prompt - 1 :]
            for h, step in enumerate(steps):
                for name, metric in metrics.items():
                    near = metric.of(unit(made[:, step]), truth[step]).double().cpu().numpy()
                    first[name][n, h], rank[name][n, h] = place(near if metric.lower_is_better else -near)
            advance(plans)
    episodes = np.array([episode_of(clips, int(indices[c])).id for c in chosen])
    return Plans(plans, [s / fps for s in steps], first, rank, episodes)


def candidates(actions_NTKA: Tensor, own: int, others: np.ndarray, prompt: int, bounds: Any) -> Tensor:
    """The actions of a clip, the true ones first, then as others' changes would have them go on, (P, T, K, A)."""
    mine = actions_NTKA[own : own + 1]
    donors = actions_NTKA[torch.from_numpy(others)]
    return torch.cat([mine, carried_on(mine.expand_as(donors), donors, prompt, bounds)])


def place(far_P: np.ndarray) -> tuple[float, float]:
    """The chance that the first is taken for the nearest, and its rank from 0, where ties are broken by lot."""
    slack = ALIKE * np.abs(far_P).max()
    nearer, equal = int((far_P < far_P[0] - slack).sum()), int((np.abs(far_P - far_P[0]) <= slack).sum())
    return (0.0 if nearer else 1 / equal), nearer + (equal - 1) / 2
