"""Evaluation of a world model on held-out clips, against the baselines that it has to beat.

Shapes: N clips, B of them in a batch, T steps to predict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hwm.config import to_json
from hwm.data.clips import Clips
from hwm.devices import name_of
from hwm.errors import HwmError, unknown
from hwm.evaluate import metrics
from hwm.evaluate.camera import episode_of, future, per_step
from hwm.evaluate.examples import Examples
from hwm.evaluate.frechet import Distances, Features
from hwm.evaluate.metrics import METRICS, Metric
from hwm.evaluate.predict import Predictor, Truth, judged
from hwm.evaluate.results import MOVING_DB, Results
from hwm.evaluate.scenarios import SCENARIOS
from hwm.evaluate.swaps import SWAPS, action_bounds, distance
from hwm.evaluate.views import cuts
from hwm.models.base import WorldModel
from hwm.progress import bar
from hwm.types import Prediction, Tokenizer

SWAPPED = {"jump_free": "swapped_actions", "random": "random_actions", "other_clip": "other_clip_actions"}
DELTA = {"jump_free": "delta_psnr", "random": "delta_psnr_random", "other_clip": "delta_psnr_other_clip"}
"""How the figures of a swap are called."""

Figures = dict[str, np.ndarray | None]
"""Name -> a value for each clip and step, (B, T); None for a figure that does not apply."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How a model is evaluated.

    Attributes:
        clips: how many windows, spread evenly over the store, at most all.
        prompt: context frames (latent steps); None is all that the model looks back on.
        horizon: steps to predict.
        scenarios: names out of `SCENARIOS`; the first is the one that headlines quote.
        swaps: names out of `SWAPS`.
        batch_size: clips at once.
        seed: everything random follows from it; a model that samples may give other samples at another `batch_size`,
            nothing else depends on that.
        sampler: passed on to the model; None is the model's own.
        metrics: metrics of pictures besides those of `METRICS`, such as LPIPS.
        features: Frechet distances to take, by name: "fid" and the features of pictures, "fvd" and those of videos.
        draws: predictions whose mean, in pixels, is judged and shown. Of a model that samples, the mean of several has
            a smaller squared error than any of them.
        examples: how many clips to keep as pictures.
        checkpoint, command: recorded in the results.
        progress: show a progress bar where the output is a terminal.
        dtype: number format of the model's matrix products, as `hwm.devices.choose_format`; where its weights are
            narrower than float32, theirs. The tokenizer and the metrics stay in float32.
    """

    clips: int = 64
    prompt: int | None = None
    horizon: int = 8
    scenarios: tuple[str, ...] = ("autoregressive",)
    swaps: tuple[str, ...] = tuple(SWAPS)
    batch_size: int = 8
    seed: int = 0
    sampler: Any = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    features: Mapping[str, Features] = field(default_factory=dict)
    draws: int = 1
    examples: int = 4
    checkpoint: str = ""
    command: str = ""
    progress: bool = True
    dtype: str | torch.dtype = "auto"

    def __post_init__(self) -> None:
        for kind, names, known in (("scenario", self.scenarios, SCENARIOS), ("action swap", self.swaps, SWAPS)):
            for name in names:
                if name not in known:
                    raise unknown(kind, name, known)
        if not self.scenarios:
            raise HwmError(f"name at least one scenario: {', '.join(SCENARIOS)}")
        for name in ("clips", "horizon", "batch_size", "draws"):
            if getattr(self, name) < 1:
                raise HwmError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.prompt is not None and self.prompt < 1:
            raise HwmError(f"prompt must be at least 1, got {self.prompt}")


def evaluate(model: WorldModel, tokenizer: Tokenizer, clips: Clips, config: EvaluateConfig | None = None) -> Results:
    """Predict held-out clips and compare with what the camera saw.

    Args:
        clips: windows of at least prompt + horizon steps; the first so many of them are used.

    Raises:
        HwmError: clips that are too short, or parts that do not belong together.
    """
    c = config or EvaluateConfig()
    prompt = model.config.past if c.prompt is None else c.prompt
    check(model, tokenizer, clips, prompt + c.horizon)
    run = _Run(model, tokenizer, clips, c, prompt)
    with judged(model), bar("evaluate", len(run.indices) * len(c.scenarios), "clips", c.progress) as advance:
        for first in range(0, len(run.indices), c.batch_size):
            truth = run.truth(first)
            for scenario in c.scenarios:
                run.score(scenario, truth, first)
                advance(len(truth.indices))
    return run.results()


class _Run:
    """One evaluation, scored batch by batch.

    Attributes:
        indices: (N,) which windows are evaluated.
        wrong: swap -> actions of all of them and those that follow, (N, steps + 1, K, A), which do not depend on the
            batches.
        views: by view, what cuts its part out of pictures; under the empty name the whole.
        parts, seconds, distances: what was found so far, by scenario, and figures of pictures by view too.
    """

    def __init__(
        self, model: WorldModel, tokenizer: Tokenizer, clips: Clips, config: EvaluateConfig, prompt: int
    ) -> None:
        c = self.config = config
        self.model, self.tokenizer, self.clips, self.prompt = model, tokenizer, clips, prompt
        self.indices = clips.spread(c.clips)
        self.metrics = {**METRICS, **c.metrics}
        self.predictor = Predictor(
            model, tokenizer, clips, prompt, c.horizon, sampler=c.sampler, seed=c.seed, draws=c.draws, dtype=c.dtype
        )
        self.examples = Examples(clips, c.examples, c.seed)
        self.swap_distance: dict[str, np.ndarray] = {}
        self.wrong = self.wrong_actions()
        self.views = cuts(tokenizer.latent.views)
        self.parts: dict[str, dict[str, list[Figures]]] = {v: {name: [] for name in c.scenarios} for v in self.views}
        self.seconds: dict[str, list[float]] = {name: [] for name in c.scenarios}
        self.distances = {v: {name: Distances(dict(c.features)) for name in c.scenarios} for v in self.views}
        self.truths: dict[str, Truth] = {}  # of the batch at hand, by view
        self.baselines: dict[str, Figures] = {}

    def wrong_actions(self) -> dict[str, Tensor]:
        c = self.config
        if not c.swaps:
            return {}
        groups = [self.indices[i : i + c.batch_size] for i in range(0, len(self.indices), c.batch_size)]
        ahead = torch.cat([self.predictor.batch(group).actions_ahead for group in groups])
        spec, bounds = self.clips.spec().actions[self.clips.embodiment], action_bounds(self.clips.store)
        wrong = {}
        for number, name in enumerate(c.swaps):
            # those that follow are swapped in a second draw: what is drawn for the steps does not depend on them
            found, further = (
                SWAPS[name](right, self.prompt, spec, torch.Generator().manual_seed(c.seed * 1009 + number), bounds)
                for right in (ahead[:, :-1], ahead)
            )
            wrong[name] = torch.cat([found, further[:, -1:]], 1)
            self.swap_distance[name] = distance(ahead[:, :-1], found, self.prompt, spec).numpy()
        return wrong

    def truth(self, first: int) -> Truth:
        """The batch that begins at this clip, and the figures of its baselines, which all scenarios share."""
        truth = self.predictor.truth(self.indices[first : first + self.config.batch_size])
        target = truth.batch.latents[:, self.prompt :]
        kept = truth.batch.latents[:, self.prompt - 1 : self.prompt].expand_as(target)
        self.truths = {view: truth.part(cut) for view, cut in self.views.items()}
        self.baselines = {view: self.baseline_figures(part) for view, part in self.truths.items()}
        self.baselines[""]["accuracy_copy"] = _numpy(metrics.accuracy(kept, target))
        return truth

    def baseline_figures(self, truth: Truth) -> Figures:
        """The metrics of copies of the last frame, and of the tokenizer alone."""
        out: Figures = {}
        copy, rebuilt_copy = truth.copies["copy"], truth.copies["copy_reconstruction"]
        for name, metric in self.metrics.items():
            for figure, pictures, against in (
                ("copy", copy, truth.future),
                ("copy_reconstruction", rebuilt_copy, truth.future),
                ("copy_reconstruction_reference", rebuilt_copy, truth.rebuilt),
                ("reconstruction", truth.rebuilt, truth.future),
            ):
                found = per_step(metric.of, pictures.expand_as(against), against)
                out[f"{name}_{figure}"] = _numpy(found)
        return out

    def score(self, scenario: str, truth: Truth, first: int) -> None:
        """Predict a batch in a scenario, under the true actions and under wrong ones, and keep all figures."""
        prediction, video, took = self.predictor.pictured(scenario, truth, truth.batch, first, logits=True)
        pictures = future(video, self.prompt, self.predictor.stride)
        figures: dict[str, Figures] = {"": self.token_figures(prediction, truth)}
        prediction.logits = None  # over a large vocabulary the largest thing there is
        for view, cut in self.views.items():
            figures[view] = self.baselines[view] | figures.get(view, {}) | self.picture_figures(cut(pictures), view)
            self.compare_sets(self.distances[view][scenario], cut(pictures), self.truths[view])
        swapped = None
        for swap, actions in self.wrong.items():
            # the same random numbers, so that only the actions differ; no logits, so that its time is that of playing
            mine = actions[first : first + len(truth.indices)].to(self.predictor.device)
            told = replace(truth.batch, actions=mine).window(0, self.predictor.steps, self.predictor.steps)
            _, other, took = self.predictor.pictured(scenario, truth, told, first, logits=False)
            swapped = other if swap == "jump_free" else swapped
            for view, cut in self.views.items():
                figures[view] |= self.swap_figures(swap, cut(other), self.truths[view], figures[view]["psnr"])
        self.examples.consider(truth, video, swapped, figures[""])
        for view, found in figures.items():
            self.parts[view][scenario].append(found)
        self.seconds[scenario].append(took)

    def token_figures(self, prediction: Prediction, truth: Truth) -> Figures:
        target = truth.batch.latents[:, self.prompt :]
        return {
            "ce": _numpy(metrics.cross_entropy(prediction, target)),
            "accuracy": _numpy(metrics.accuracy(prediction.latents, target)),
        }

    def picture_figures(self, pictures: Tensor, view: str) -> Figures:
        """The metrics of the predicted pictures, and what they are above the copies."""
        out: Figures = {}
        truth = self.truths[view]
        for name, metric in self.metrics.items():
            out[name] = _numpy(per_step(metric.of, pictures, truth.future))
            out[f"{name}_reconstruction_reference"] = _numpy(per_step(metric.of, pictures, truth.rebuilt))
        for baseline in truth.copies:
            mine, theirs = out["psnr"], self.baselines[view][f"psnr_{baseline}"]
            assert mine is not None
            assert theirs is not None
            out[f"gain_{baseline}"] = mine - theirs
            out[f"win_rate_{baseline}"] = (mine > theirs).astype(np.float64)
        return out

    def swap_figures(self, swap: str, video: Tensor, truth: Truth, psnr: np.ndarray | None) -> Figures:
        """What wrong actions cost."""
        pictures = future(video, self.prompt, self.predictor.stride)
        other = _numpy(per_step(metrics.psnr, pictures, truth.future))
        assert psnr is not None
        assert other is not None
        return {f"psnr_{SWAPPED[swap]}": other, DELTA[swap]: psnr - other}

    @staticmethod
    def compare_sets(distances: Distances, pictures: Tensor, truth: Truth) -> None:
        """Add a batch to the sets of pictures that Frechet distances are between."""
        sets = {"prediction": pictures, "camera": truth.future, "reconstruction": truth.rebuilt}
        sets |= {name: frames.expand_as(truth.future) for name, frames in truth.copies.items()}
        for name, frames in sets.items():
            distances.add(name, frames)

    def results(self) -> Results:
        c, clips, spec = self.config, self.clips, self.clips.spec()
        by_view = {v: {name: _join(parts) for name, parts in each.items()} for v, each in self.parts.items()}
        distances = {
            v: {name: d.figures() for name, d in each.items() if c.features} for v, each in self.distances.items()
        }
        figures = by_view.pop("")
        copy = figures[c.scenarios[0]]["psnr_copy"]
        assert copy is not None
        return Results(
            model=str(getattr(self.model, "name", type(self.model).__name__)),
            config=describe(self.model.config),
            parameters=sum(p.numel() for p in self.model.parameters()),
            embodiment=clips.embodiment,
            store=clips.store.path.name,
            source=clips.store.header.source,
            split=clips.part,
            tokenizer=self.tokenizer.id,
            prompt=self.prompt,
            horizon=c.horizon,
            seed=c.seed,
            batch_size=min(c.batch_size, len(self.indices)),
            sampler=describe(c.sampler),
            device=name_of(self.predictor.device),
            dtype=self.predictor.runtime.format,
            torch=torch.__version__,
            date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            reference="camera" if clips.store.has_video else "reconstruction",
            steps_per_second=spec.fps,
            frames_per_step=spec.latent.stride,
            moving=copy[:, -1] < MOVING_DB,
            episodes=np.array([episode_of(clips, int(i)).id for i in self.indices]),
            figures=figures,
            seconds_per_step={name: float(np.median(values)) for name, values in self.seconds.items()},
            metrics=self.metrics,
            swap_distance=self.swap_distance,
            draws=c.draws,
            distances=distances.pop(""),
            by_view=by_view,
            distances_by_view=distances,
            examples=list(self.examples),
            checkpoint=c.checkpoint,
            command=c.command,
        )


def check(model: WorldModel, tokenizer: Tokenizer, clips: Clips, steps: int) -> None:
    """Raise `HwmError` for parts that do not belong together, before anything is computed."""
    if clips.length < steps:
        raise HwmError(
            f"windows of {clips.length} steps are too short for the {steps} of context and prediction: make them "
            f"{steps} long"
        )
    header = clips.store.header
    if tokenizer.latent != header.latent:
        raise HwmError(
            f"{clips.store.path} holds {header.latent}, the tokenizer {tokenizer.id!r} makes {tokenizer.latent}"
        )
    for owner, name in ((f"the store {clips.store.path}", header.tokenizer), ("the model", model.spec.tokenizer)):
        if name and tokenizer.id and not tokenizer.answers_to(name):
            raise HwmError(f"{owner} was made with the tokenizer {name!r}, not with {tokenizer.id!r}")
    model.check(clips.batch([0]))


def _join(parts: list[Figures]) -> Figures:
    """Figures of batches -> figures of all clips; a figure that one batch lacks is lacking."""
    out: Figures = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        present = [v for v in values if v is not None]
        out[name] = np.concatenate(present) if len(present) == len(values) else None
    return out


def _numpy(values: Tensor | None) -> np.ndarray | None:
    return None if values is None else values.cpu().double().numpy()


def describe(sampler: Any) -> Any:
    try:
        return to_json(sampler)
    except TypeError:
        return repr(sampler)
