"""What an evaluation found: a figure for every clip and step, and the means that are quoted from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from hwm.data.store import write_atomically
from hwm.evaluate.metrics import METRICS, Metric
from hwm.evaluate.uncertainty import Estimate, estimate, estimates
from hwm.tables import Figures

MOVING_DB = 20.0
"""A clip moves when the copy of its last context frame scores below this at the last step of the horizon."""

MOVING_RULE = (
    f"A clip counts as moving when its last context frame, repeated, scores below {MOVING_DB:g} dB PSNR against the "
    "truth at the last step of the horizon. The rule looks at the recording only, never at a prediction."
)

ONE_EPISODE = "All clips are of one episode: how certain the figures are cannot be told, and standard errors are n/a."

PICTURED = {
    "": "prediction",
    "_copy": "last camera frame repeated",
    "_copy_reconstruction": "its reconstruction repeated",
    "_reconstruction": "tokenizer alone (ceiling)",
    "_reconstruction_reference": "against the reconstruction",
    "_copy_reconstruction_reference": "repeated, against it",
}
"""What a metric of pictures is taken of: the end of the figure's name, and what its row is called."""

LABELS = {
    **{f"{metric}{end}": label for metric in ("psnr", "ssim", "lpips") for end, label in PICTURED.items()},
    "psnr_swapped_actions": "prediction, wrong actions",
    "delta_psnr": "jump-free swap",
    "delta_psnr_other_clip": "another clip's actions",
    "delta_psnr_random": "random actions",
    "win_rate_copy": "against the repeated frame",
    "win_rate_copy_reconstruction": "against its reconstruction",
    "ce": "cross-entropy in nats",
    "perplexity": "perplexity",
    "accuracy": "accuracy",
    "accuracy_copy": "accuracy of repeating",
}
"""What the rows of tables and the lines of charts are called."""

DELTAS = ("delta_psnr", "delta_psnr_other_clip", "delta_psnr_random")
AFTER_PSNR = {"delta-PSNR in dB": DELTAS}
AT_THE_END = {
    "share of clips won": ("win_rate_copy", "win_rate_copy_reconstruction"),
    "tokens": ("ce", "perplexity", "accuracy", "accuracy_copy"),
}
"""Groups of rows that are of no metric of pictures."""


@dataclass
class Example:
    """One clip, for showing.

    Attributes:
        episode, start: where it is from: episode and its first step there.
        moving: whether it counts as moving.
        context: how many of the frames are context.
        truth, prediction, swapped: (F, H, W, 3) uint8; the context of `prediction` and `swapped` is what the model
            saw, the tokenizer's reconstruction. `swapped` is None when that swap was not evaluated.
        psnr, psnr_copy, psnr_copy_reconstruction: dB of each predicted step, (T,).
    """

    episode: str
    start: int
    moving: bool
    context: int
    truth: np.ndarray
    prediction: np.ndarray
    swapped: np.ndarray | None
    psnr: np.ndarray
    psnr_copy: np.ndarray
    psnr_copy_reconstruction: np.ndarray

    @property
    def rival(self) -> np.ndarray:
        """The better of the two copies for this clip, dB by step, (T,)."""
        return max(self.psnr_copy, self.psnr_copy_reconstruction, key=np.mean)


class Further(Protocol):
    """Measurements of another kind that are shown along with an evaluation's."""

    def json(self) -> dict[str, Any]:
        """Plain values."""
        ...

    def table(self) -> RenderableType:
        """For a terminal."""
        ...

    def html(self) -> str:
        """A section of the report."""
        ...


@dataclass
class Results:
    """Figures of N clips over a horizon of T steps. Figures are kept clip by clip, (N, T); `json` gives means.

    Attributes:
        model, config, parameters, embodiment, store, source, tokenizer: what was evaluated, and on what.
        split: which part of the store: `test`, `validation` or `all`.
        prompt, horizon: context frames and predicted ones, in latent steps.
        seed, batch_size, sampler, device, dtype, torch, date: how; `dtype` is the number format of matrix products.
        reference: what predictions are compared with, `camera` or, for a store without video, `reconstruction`.
        steps_per_second, frames_per_step: of the latents.
        moving: (N,) bool, see `MOVING_RULE`.
        episodes: (N,) which episode each clip is from: standard errors are clustered by it, see `uncertainty`.
        figures: scenario -> name -> (N, T), or None for a figure that does not apply.
        seconds_per_step: scenario -> wall time of one step of one clip at `batch_size`, without decoding.
        metrics: the metrics of pictures that were taken, by name.
        swap_distance: swap -> (N, T), see `swaps.distance`.
        draws: of how many predictions the mean was judged.
        distances: scenario -> Frechet distance -> value, with the number of its examples, see `frechet.Distances`.
        by_view: of several cameras, view -> what `figures` is of that view's part of the pictures.
        distances_by_view: the same of `distances`.
        examples: some clips to look at, drawn at random among the moving ones without regard to any score.
        checkpoint: which weights, where that is known: a shipped model's name or a folder.
        command: how it was started, where that is known.
        further: what else was measured, by the key that it has in the JSON.
    """

    model: str
    config: Any
    parameters: int
    embodiment: str
    store: str
    source: str
    split: str
    tokenizer: str
    prompt: int
    horizon: int
    seed: int
    batch_size: int
    sampler: Any
    device: str
    dtype: str
    torch: str
    date: str
    reference: str
    steps_per_second: float
    frames_per_step: int
    moving: np.ndarray
    episodes: np.ndarray
    figures: dict[str, dict[str, np.ndarray | None]]
    seconds_per_step: dict[str, float]
    metrics: Mapping[str, Metric] = field(default_factory=lambda: dict(METRICS))
    swap_distance: dict[str, np.ndarray] = field(default_factory=dict)
    draws: int = 1
    distances: dict[str, dict[str, float]] = field(default_factory=dict)
    by_view: dict[str, dict[str, dict[str, np.ndarray | None]]] = field(default_factory=dict)
    distances_by_view: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    checkpoint: str = ""
    command: str = ""
    further: dict[str, Further] = field(default_factory=dict)

    @property
    def clips(self) -> int:
        return len(self.moving)

    def views(self) -> dict[str, Results]:
        """By view, the figures of its pictures; none where there is one camera. Which clips move the whole tells."""
        return {
            view: replace(
                self, figures=figures, distances=self.distances_by_view[view], by_view={}, examples=[], further={}
            )
            for view, figures in self.by_view.items()
        }

    @property
    def data(self) -> str:
        """The store, with the part of it that was evaluated."""
        return self.store if self.split == "all" else f"{self.store}, {self.split}"

    @property
    def scenario(self) -> str:
        """The first scenario: the one that the flat keys of `json` are of."""
        return next(iter(self.figures))

    def seconds_per_frame(self, scenario: str | None = None) -> float:
        """Wall time of one frame of one clip at `batch_size`, without decoding."""
        return self.seconds_per_step[scenario or self.scenario] / self.frames_per_step

    def mean(self, name: str, moving: bool = False, scenario: str | None = None) -> list[float] | None:
        """Mean over the clips, by step; None for a figure that does not apply or when no clip moves.

        `perplexity` is exp of the mean `ce`.
        """
        if name == "perplexity":
            nats = self.mean("ce", moving, scenario)
            return None if nats is None else [perplexity(v) for v in nats]
        found = self.by_step(name, moving, scenario)
        return None if found is None else [each.mean for each in found]

    def by_step(self, name: str, moving: bool = False, scenario: str | None = None) -> list[Estimate] | None:
        """Mean over the clips with its standard error, by step; None as for `mean`."""
        values = self._values(name, moving, scenario)
        return None if values is None else estimates(values, self.episodes_of(moving))

    def overall(self, name: str, moving: bool = False, scenario: str | None = None) -> Estimate | None:
        """Mean over clips and steps with its standard error; None as for `mean`."""
        values = self._values(name, moving, scenario)
        return None if values is None else estimate(values.mean(1), self.episodes_of(moving))

    def episodes_of(self, moving: bool = False) -> np.ndarray:
        """The episode of each clip, of all or of those that move."""
        return self.episodes[self.moving] if moving else self.episodes

    def rival(self, moving: bool = False, scenario: str | None = None) -> str:
        """The copy that is harder to beat, by mean PSNR: `copy` or `copy_reconstruction`.

        It need not be the camera's frame: a tokenizer's blur raises PSNR where the picture has moved.
        """
        names = ("copy", "copy_reconstruction")
        means = {n: self.overall(f"psnr_{n}", moving, scenario) for n in names}
        return max(names, key=lambda n: 0.0 if (found := means[n]) is None else found.mean)

    def _values(self, name: str, moving: bool, scenario: str | None) -> np.ndarray | None:
        values = self.figures[scenario or self.scenario].get(name)
        values = values if values is None or not moving else values[self.moving]
        return None if values is None or not len(values) else values

    # ------------------------------------------------------------------ out
    def json(self) -> dict[str, Any]:
        """Everything but the pictures as plain values: lists go over the steps of the horizon."""
        about = {
            name: getattr(self, name)
            for name in (
                "model", "parameters", "embodiment", "store", "source", "split", "tokenizer", "prompt", "horizon",
                "seed", "batch_size", "device", "dtype", "torch", "date", "reference", "steps_per_second",
                "frames_per_step", "draws", "distances", "checkpoint", "command",
            )
        }  # fmt: skip
        return {
            **about,
            "config": self.config,
            "sampler": self.sampler,
            "scenario": self.scenario,
            "scenarios": list(self.figures),
            "clips": self.clips,
            "clips_moving": int(self.moving.sum()),
            "episodes": len(set(self.episodes)),
            "episodes_moving": len(set(self.episodes_of(moving=True))),
            "share_moving": plain(float(self.moving.mean())),
            "moving_rule": MOVING_RULE,
            "metrics": {name: {"lower_is_better": metric.lower_is_better} for name, metric in self.metrics.items()},
            **self._means(False, self.scenario),
            "rival": self.rival(),
            "moving": {**self._means(True, self.scenario), "rival": self.rival(True)},
            "seconds_per_step": self.seconds_per_step[self.scenario],
            "seconds_per_frame": self.seconds_per_frame(),
            "swap_distance": {k: [plain(float(x)) for x in v.mean(0)] for k, v in self.swap_distance.items()},
            "by_scenario": {
                name: {
                    **self._means(False, name),
                    "moving": self._means(True, name),
                    "seconds_per_step": self.seconds_per_step[name],
                    "seconds_per_frame": self.seconds_per_frame(name),
                }
                for name in self.figures
            },
            **({"by_view": {view: of.view_json() for view, of in self.views().items()}} if self.by_view else {}),
            **{name: found.json() for name, found in self.further.items()},
        }

    def view_json(self) -> dict[str, Any]:
        """The means alone, as in `json`."""
        return {
            **self._means(False, self.scenario),
            "rival": self.rival(),
            "moving": {**self._means(True, self.scenario), "rival": self.rival(True)},
            "distances": self.distances,
            "by_scenario": {
                name: {**self._means(False, name), "moving": self._means(True, name)} for name in self.figures
            },
        }

    def _means(self, moving: bool, scenario: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for name in self.figures[scenario]:
            mean = self.mean(name, moving, scenario)
            by_step = None if mean is None else [plain(v) for v in mean]
            if name in ("ce", "accuracy", "accuracy_copy"):
                out[name] = None if mean is None else plain(float(np.mean(mean)))
                out[f"{name}_by_step"] = by_step
            else:
                out[name] = by_step
            if name in ("psnr", "gain_copy", "gain_copy_reconstruction", *DELTAS):
                found = self.by_step(name, moving, scenario)
                known = found is not None and found[0].known_error is not None
                out[f"{name}_stderr"] = [plain(each.error) for each in found] if found is not None and known else None
        if "ce" not in self.figures[scenario]:  # of one view: tokens are counted of all views together
            return out
        nats, each = self.overall("ce", moving, scenario), self.mean("perplexity", moving, scenario)
        out["perplexity"] = None if nats is None else plain(perplexity(nats.mean))
        out["perplexity_by_step"] = None if each is None else [plain(v) for v in each]
        return out

    def save(self, path: str | Path) -> Path:
        """Write `json` to a file, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(self.json(), indent=1, allow_nan=False) + "\n").encode())
        return path

    def table(self) -> Group:
        """Tables for a terminal: the model among its baselines, for all clips and for those that move."""
        parts: list[Any] = []
        for scenario in self.figures:
            title = f"{self.model} on {self.data}, {scenario.replace('_', ' ')}"
            count = int(self.moving.sum())
            parts.append(self._table(scenario, False, f"{title}: all {self.clips} clips, {count} of which move"))
            if 0 < count < self.clips:
                parts.append(self._table(scenario, True, f"{title}: the {count} clips that move"))
            for view, of in self.views().items():
                parts.append(of._table(scenario, False, f"{title}, {view}: all {self.clips} clips"))
            step, frame = self.seconds_per_step[scenario] * 1e3, self.seconds_per_frame(scenario) * 1e3
            each = f" ({frame:.1f} ms a frame)" if self.frames_per_step > 1 else ""
            for name, value in self.distances.get(scenario, {}).items():
                parts.append(Text(f"{name}: {value:,.2f}"))
            how = f"on {self.device} in {self.dtype}, without decoding"
            parts.append(Text(f"{step:.1f} ms a step and clip{each} at batch {self.batch_size} {how}"))
        parts.append(Text(MOVING_RULE, style="dim"))
        if len(set(self.episodes)) < 2:
            parts.append(Text(ONE_EPISODE, style="yellow"))
        parts.append(Text("* best of the rows that compete; ceilings and swapped actions do not compete", style="dim"))
        if self.reference != "camera":
            parts.append(Text("The store has no video: the decoded latents stand in for the camera.", style="yellow"))
        return Group(*parts, *(found.table() for found in self.further.values()))

    def _table(self, scenario: str, moving: bool, title: str) -> Figures:
        columns = shown_steps(self.horizon, 6)
        some = f"step ({len(columns)} of {self.horizon})" if len(columns) < self.horizon else "step"
        table = Figures(some, *(f"{step + 1} " for step in columns), title=title)
        for group, rows in self.groups(moving, scenario).items():
            table.add(Text(group, style="dim"))
            for name, row in rows.items():
                cells = [
                    _cell(self.quoted(name, row[t]), name in self.best(rows, t), self.loses(name, row[t]))
                    for t in columns
                ]
                table.add(f"  {label(name)}", *cells)
        return table

    def groups(self, moving: bool = False, scenario: str | None = None) -> dict[str, dict[str, list[float]]]:
        """The means of the tables, in their order: heading -> figure -> values by step, of those that apply."""
        groups: dict[str, tuple[str, ...]] = {}
        for metric, about in self.metrics.items():
            heading = (about.title or metric.replace("_", " ")) + ", lower is better" * about.lower_is_better
            groups[heading] = pictured(metric)
            if metric == "psnr":
                groups |= {heading: (*pictured(metric)[:4], "psnr_swapped_actions", *pictured(metric)[4:])} | AFTER_PSNR
        found = {
            heading: {name: row for name in names if (row := self.mean(name, moving, scenario)) is not None}
            for heading, names in (groups | AT_THE_END).items()
        }
        return {heading: rows for heading, rows in found.items() if rows}

    def best(self, rows: Mapping[str, Sequence[float]], step: int) -> set[str]:
        """Names of the rows that are the best of those that they compete with; ties within a thousandth share it.

        Ceilings and swapped actions do not compete. Which way is better is declared with the metric.
        """
        contests: list[tuple[int, tuple[str, ...]]] = [(1, ("accuracy", "accuracy_copy"))]
        for metric, about in self.metrics.items():
            figure, sign = pictured(metric), -1 if about.lower_is_better else 1
            contests += [(sign, figure[:3]), (sign, figure[4:])]
        winners: set[str] = set()
        for sign, contest in contests:
            values = {name: sign * rows[name][step] for name in contest if name in rows}
            if len(values) > 1:
                winners |= {name for name, value in values.items() if value > max(values.values()) - 1e-3}
        return winners

    @staticmethod
    def loses(name: str, value: float) -> bool:
        """Whether wrong actions cost nothing."""
        return name in DELTAS and value <= 0

    def quoted(self, name: str, value: float) -> str:
        """A figure with as many decimals as it is quoted with."""
        return quoted(name, value, self.metrics)


def shown_steps(horizon: int, most: int = 8) -> list[int]:
    """At most `most` steps of a horizon, the first and the last among them, counted from 0."""
    return sorted({int(x) for x in np.linspace(0, horizon - 1, min(most, horizon)).round()})


def quoted(name: str, value: float, metrics: Mapping[str, Metric] = METRICS) -> str:
    """A figure with as many decimals as it is quoted with."""
    if name == "perplexity":
        return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"
    places = 3 if name in ("accuracy", "accuracy_copy") else 2
    for metric, about in metrics.items():
        if name in pictured(metric):
            places = about.places
    return f"{value:.{places}f}"


def label(name: str) -> str:
    """What a figure's row is called."""
    ends = sorted(PICTURED, key=len, reverse=True)
    return LABELS.get(name) or next(PICTURED[end] for end in ends if name.endswith(end))


def pictured(metric: str) -> tuple[str, ...]:
    """The figures of a metric of pictures, in the order of the tables."""
    return tuple(f"{metric}{end}" for end in PICTURED)


def _cell(value: str, wins: bool, loses: bool) -> Text:
    style = "bold green" if wins else "red" if loses else ""
    return Text(value + ("*" if wins else " "), style=style)


def perplexity(nats: float) -> float:
    """exp of a mean cross-entropy: among how many equally likely tokens the model is as unsure."""
    with np.errstate(over="ignore"):
        return float(np.exp(nats))


def plain(value: float) -> float | None:
    """A number as JSON knows it: rounded, and None for what is not finite."""
    return round(value, 5) if np.isfinite(value) else None
