"""Evaluation of a world model on held-out clips, against the baselines that it has to beat."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from hwm.config import to_json
from hwm.data.arrays import pieces
from hwm.data.clips import Clips
from hwm.data.store import Store
from hwm.devices import device_of
from hwm.errors import HwmError, unknown
from hwm.evaluate import metrics
from hwm.evaluate.camera import camera_video, decode, episode_of, future, per_step
from hwm.evaluate.frechet import Distances, Features
from hwm.evaluate.metrics import METRICS, Metric
from hwm.evaluate.results import MOVING_DB, Example, Results
from hwm.evaluate.rollout import rollout_clips
from hwm.evaluate.scenarios import SCENARIOS
from hwm.evaluate.swaps import SWAPS, Bounds, distance
from hwm.models.base import WorldModel
from hwm.pictures.video import to_uint8
from hwm.types import Batch, Prediction, Tokenizer

SWAPPED = {"jump_free": "swapped_actions", "random": "random_actions", "other_clip": "other_clip_actions"}
DELTA = {"jump_free": "delta_psnr", "random": "delta_psnr_random", "other_clip": "delta_psnr_other_clip"}
"""How the figures of a swap are called."""

Figures = dict[str, np.ndarray | None]
"""Name -> a value for each clip and step, (B, T); None for a figure that does not apply."""


def evaluate(
    model: WorldModel,
    tokenizer: Tokenizer,
    clips: Clips,
    *,
    clips_count: int = 64,
    prompt: int | None = None,
    horizon: int = 8,
    scenarios: Sequence[str] = ("autoregressive",),
    swaps: Sequence[str] = tuple(SWAPS),
    batch_size: int = 8,
    seed: int = 0,
    sampler: Any = None,
    extra_metrics: Mapping[str, Metric] | None = None,
    features: Mapping[str, Features] | None = None,
    draws: int = 1,
    examples: int = 4,
    checkpoint: str = "",
    command: str = "",
    progress: bool = True,
) -> Results:
    """Predict held-out clips and compare with what the camera saw.

    The clips are spread evenly over the store. Everything random follows from `seed`; a model that samples may give
    other samples at another `batch_size`, nothing else depends on it.

    Args:
        clips: windows of at least prompt + horizon steps; the first so many of them are used.
        clips_count: how many windows, at most all.
        prompt: steps of context; None is all that the model looks back on.
        horizon: steps to predict.
        scenarios: names out of `SCENARIOS`; the first is the one that headlines quote.
        swaps: names out of `SWAPS`.
        sampler: passed on to the model; None is the model's own.
        extra_metrics: metrics of pictures besides those of `METRICS`, such as `LPIPS`.
        features: Frechet distances to take, by name: "fid" and the features of pictures, "fvd" and those of videos.
        draws: predictions whose mean, in pixels, is judged and shown. Of a model that samples, the mean of several has
            a smaller squared error than any of them.
        examples: how many clips to keep as pictures.
        checkpoint, command: recorded in the results.
        progress: show a progress bar where the output is a terminal.

    Raises:
        HwmError: clips that are too short, or parts that do not belong together.
    """
    prompt = model.config.past if prompt is None else prompt
    _check(model, tokenizer, clips, prompt, horizon, scenarios, swaps)
    count = min(clips_count, len(clips))
    indices = np.unique(np.linspace(0, len(clips) - 1, count).round().astype(int))
    table = {**METRICS, **(extra_metrics or {})}
    if draws < 1:
        raise HwmError(f"draws must be at least 1, got {draws}")
    run = _Run(model, tokenizer, clips, table, prompt, horizon, sampler, seed, examples, draws)
    distances = {name: Distances(dict(features or {})) for name in scenarios}
    wrong = run.wrong_actions(indices, batch_size, swaps)

    parts: dict[str, list[Figures]] = {name: [] for name in scenarios}
    seconds: dict[str, list[float]] = {name: [] for name in scenarios}
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), _progress(len(indices) * len(scenarios), progress) as advance:
            for first in range(0, len(indices), batch_size):
                rows = slice(first, first + batch_size)
                shown = run.look(indices[rows])
                for name in scenarios:
                    swapped = {k: v[rows] for k, v in wrong.items()}
                    figures, took = run.score(name, shown, swapped, first, distances[name])
                    parts[name].append(figures)
                    seconds[name].append(took)
                    advance(len(indices[rows]))
    finally:
        model.train(training)

    joined = {name: _join(p) for name, p in parts.items()}
    first_scenario = joined[scenarios[0]]
    copy = first_scenario["psnr_copy"]
    assert copy is not None
    spec = clips.spec()
    return Results(
        model=str(getattr(model, "name", type(model).__name__)),
        config=_describe(model.config),
        parameters=sum(p.numel() for p in model.parameters()),
        embodiment=clips.embodiment,
        store=clips.store.path.name,
        source=clips.store.header.source,
        tokenizer=tokenizer.id,
        prompt=prompt,
        horizon=horizon,
        seed=seed,
        batch_size=min(batch_size, len(indices)),
        sampler=_describe(sampler),
        device=_device_name(run.device),
        torch=torch.__version__,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        reference="camera" if clips.store.has_video else "reconstruction",
        steps_per_second=spec.fps,
        frames_per_step=spec.latent.stride,
        moving=copy[:, -1] < MOVING_DB,
        episodes=np.array([episode_of(clips, int(i)).id for i in indices]),
        figures=joined,
        seconds_per_step={name: float(np.median(values)) for name, values in seconds.items()},
        metrics=table,
        swap_distance=run.swap_distance,
        draws=draws,
        distances={name: d.figures() for name, d in distances.items() if features},
        examples=[example for _, example in run.examples],
        checkpoint=checkpoint,
        command=command,
    )


class _Look:
    """A batch of clips with the pictures that predictions are compared with, computed once for all scenarios."""

    def __init__(
        self,
        indices: np.ndarray,
        batch: Batch,
        camera: Tensor,
        reconstruction: Tensor,
        prompt: int,
        stride: int,
        table: Mapping[str, Metric],
    ) -> None:
        last = (prompt - 1) * stride
        self.indices, self.batch, self.camera, self.reconstruction = indices, batch, camera, reconstruction
        self.truth, self.rebuilt = future(camera, prompt, stride), future(reconstruction, prompt, stride)
        copy, copy_rebuilt = camera[:, None, last : last + 1], reconstruction[:, None, last : last + 1]
        target = batch.latents[:, prompt:]
        self.copies = {"copy": copy, "copy_reconstruction": copy_rebuilt}
        kept = batch.latents[:, prompt - 1 : prompt].expand_as(target)
        matched = metrics.accuracy(kept, target)
        self.figures: Figures = {"accuracy_copy": None if matched is None else _numpy(matched)}
        for name, metric in table.items():
            for figure, pictures, truth in (
                ("copy", copy, self.truth),
                ("copy_reconstruction", copy_rebuilt, self.truth),
                ("copy_reconstruction_reference", copy_rebuilt, self.rebuilt),
                ("reconstruction", self.rebuilt, self.truth),
            ):
                self.figures[f"{name}_{figure}"] = _numpy(per_step(metric.of, pictures.expand_as(truth), truth))


class _Run:
    """The parts of one evaluation that its batches share."""

    def __init__(
        self,
        model: WorldModel,
        tokenizer: Tokenizer,
        clips: Clips,
        table: Mapping[str, Metric],
        prompt: int,
        horizon: int,
        sampler: Any,
        seed: int,
        examples: int,
        draws: int,
    ) -> None:
        self.draws = draws
        self.model, self.tokenizer, self.clips, self.table, self.sampler = model, tokenizer, clips, table, sampler
        self.prompt, self.steps, self.seed = prompt, prompt + horizon, seed
        self.stride = tokenizer.latent.stride
        self.device = device_of(model, torch.device("cpu"))
        self.swap_distance: dict[str, np.ndarray] = {}
        self.examples: list[tuple[tuple[bool, float], Example]] = []
        self.examples_wanted = examples
        self.apart: bool | None = None  # whether steps decode apart from those before them; found out by trying

    def batch(self, indices: np.ndarray) -> Batch:
        return self.clips.batch(indices).window(0, self.steps, self.steps)

    def wrong_actions(self, indices: np.ndarray, batch_size: int, swaps: Sequence[str]) -> dict[str, Tensor]:
        """Swapped actions of all clips at once, and those that follow, (N, T + 1, K, A) each: they do not depend on the
        batches."""
        if not swaps:
            return {}
        groups = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
        ahead = torch.cat([self.batch(group).actions_ahead for group in groups])
        spec = self.clips.spec().actions[self.clips.embodiment]
        bounds = action_bounds(self.clips.store)
        wrong = {}
        for number, name in enumerate(swaps):
            # those that follow are swapped in a second draw: what is drawn for the steps does not depend on them
            found, further = (
                SWAPS[name](right, self.prompt, spec, torch.Generator().manual_seed(self.seed * 1009 + number), bounds)
                for right in (ahead[:, :-1], ahead)
            )
            wrong[name] = torch.cat([found, further[:, -1:]], 1)
            self.swap_distance[name] = distance(ahead[:, :-1], found, self.prompt, spec).numpy()
        return wrong

    def look(self, indices: np.ndarray) -> _Look:
        batch = self.batch(indices).to(self.device)
        reconstruction = decode(self.tokenizer, batch.latents).to(self.device)
        if self.apart is None:
            self.apart = self.decodes_apart(batch.latents[:1])
        camera = reconstruction
        if self.clips.store.has_video:
            camera = camera_video(self.clips, indices, self.steps, self.tokenizer.size).to(self.device)
        return _Look(indices, batch, camera, reconstruction, self.prompt, self.stride, self.table)

    def predict(self, scenario: str, batch: Batch, first: int, draw: int, logits: bool) -> tuple[Prediction, float]:
        """A prediction, always with the same random numbers for the same clips, and its seconds a step and clip."""
        generator = self.generator(first, draw)
        _wait(self.device)
        start = time.perf_counter()
        prediction = SCENARIOS[scenario](
            self.model, batch, self.prompt, sampler=self.sampler, logits=logits, generator=generator
        )
        _wait(self.device)
        took = (time.perf_counter() - start) / (len(batch.latents) * (self.steps - self.prompt))
        return prediction, took

    def generator(self, first: int, draw: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + draw * 7_919_001 + first)

    def pictured(
        self, scenario: str, shown: _Look, batch: Batch, first: int, logits: bool
    ) -> tuple[Prediction, Tensor, float]:
        """The first of the predictions drawn, the mean of their pictures, and seconds a step and clip of all."""
        prediction, video, took = self.drawn(scenario, shown, batch, first, 0, logits)
        for draw in range(1, self.draws):
            _, other, more = self.drawn(scenario, shown, batch, first, draw, logits=False)
            video, took = video + other, took + more
        return prediction, video / self.draws, took

    def drawn(
        self, scenario: str, shown: _Look, batch: Batch, first: int, draw: int, logits: bool
    ) -> tuple[Prediction, Tensor, float]:
        """One prediction, its pictures, and seconds a step and clip."""
        clips = self.stride > 1 and self.tokenizer.latent.channels is not None
        if scenario == "autoregressive" and clips and self.steps > self.model.config.past + self.model.config.horizon:
            return self.drawn_by_clips(shown, batch, first, draw)
        prediction, took = self.predict(scenario, batch, first, draw, logits)
        return prediction, self.video(shown, prediction), took

    def drawn_by_clips(self, shown: _Look, batch: Batch, first: int, draw: int) -> tuple[Prediction, Tensor, float]:
        """As `drawn`, where latents depend on their clip and the window moves on; the time is that of decoding too."""
        start = time.perf_counter()
        known = batch.window(0, self.prompt, self.steps)
        prediction, video = rollout_clips(
            self.model, self.tokenizer, known, sampler=self.sampler, generator=self.generator(first, draw)
        )
        took = (time.perf_counter() - start) / (len(batch.latents) * (self.steps - self.prompt))
        context = shown.reconstruction[:, : self.tokenizer.latent.frames(self.prompt)]
        return prediction, torch.cat([context, video.to(self.device)], 1), took

    def video(self, shown: _Look, prediction: Prediction) -> Tensor:
        """Context and prediction as pictures, (B, F, 3, H, W).

        Tokenizers may be causal over a clip, so the context is decoded along, unless it makes no difference.
        """
        if self.apart:
            context = shown.reconstruction[:, : self.prompt]
            return torch.cat([context, decode(self.tokenizer, prediction.latents).to(self.device)], 1)
        latents = torch.cat([shown.batch.latents[:, : self.prompt], prediction.latents], 1)
        return decode(self.tokenizer, latents).to(self.device)

    def decodes_apart(self, latents: Tensor) -> bool:
        """Whether the tokenizer shows steps alike without context and after another context, here one upside down."""
        if self.stride > 1:
            return False
        context, rest = latents[:, : self.prompt].flip(-2), latents[:, self.prompt :]
        after = decode(self.tokenizer, torch.cat([context, rest], 1))[:, self.prompt :]
        return torch.allclose(decode(self.tokenizer, rest), after, atol=1e-4)

    def score(
        self, scenario: str, shown: _Look, wrong: dict[str, Tensor], first: int, distances: Distances
    ) -> tuple[Figures, float]:
        """All figures of one batch in one scenario, each (B, T), and seconds a step and clip."""
        batch, truth = shown.batch, shown.truth
        prediction, video, took = self.pictured(scenario, shown, batch, first, logits=True)
        target, out = batch.latents[:, self.prompt :], dict(shown.figures)
        for name, values in (
            ("ce", metrics.cross_entropy(prediction, target)),
            ("accuracy", metrics.accuracy(prediction.latents, target)),
        ):
            out[name] = None if values is None else _numpy(values)
        prediction.logits = None  # over a large vocabulary the largest thing there is
        pictures = future(video, self.prompt, self.stride)
        for name, frames in {"prediction": pictures, "camera": truth, "reconstruction": shown.rebuilt}.items():
            distances.add(name, frames)
        for name, frames in shown.copies.items():
            distances.add(name, frames.expand_as(truth))
        for name, metric in self.table.items():
            out[name] = _numpy(per_step(metric.of, pictures, truth))
            out[f"{name}_reconstruction_reference"] = _numpy(per_step(metric.of, pictures, shown.rebuilt))
        psnr, swapped = _numpy(per_step(metrics.psnr, pictures, truth)), None
        for swap, actions in wrong.items():
            # the same random numbers, so that only the actions differ; no logits, so that its time is that of playing
            told = replace(batch, actions=actions.to(self.device)).window(0, self.steps, self.steps)
            _, other_video, took = self.pictured(scenario, shown, told, first, logits=False)
            swapped = other_video if swap == "jump_free" else swapped
            other_psnr = _numpy(per_step(metrics.psnr, future(other_video, self.prompt, self.stride), truth))
            out[f"psnr_{SWAPPED[swap]}"], out[DELTA[swap]] = other_psnr, psnr - other_psnr
        for baseline in ("copy", "copy_reconstruction"):
            theirs = shown.figures[f"psnr_{baseline}"]
            out[f"gain_{baseline}"] = psnr - theirs
            out[f"win_rate_{baseline}"] = (psnr > theirs).astype(np.float64)
        self._keep(shown, video, swapped, out)
        return out, took

    def _keep(self, shown: _Look, video: Tensor, swapped: Tensor | None, figures: Figures) -> None:
        """Remember a few clips: a random choice of the moving ones, then of the others; scores play no part."""
        psnr, copy, rebuilt = (figures[name] for name in ("psnr", "psnr_copy", "psnr_copy_reconstruction"))
        assert psnr is not None
        assert copy is not None
        assert rebuilt is not None
        for i, index in enumerate(shown.indices):
            moving = bool(copy[i, -1] < MOVING_DB)
            key = (not moving, float(np.random.default_rng((self.seed, int(index))).random()))
            taken = sorted(k for k, _ in self.examples)[: self.examples_wanted]
            if key in taken or (len(taken) == self.examples_wanted and (not taken or key > taken[-1])):
                continue  # a later scenario shows the same clips; the first one's pictures are kept
            episode = episode_of(self.clips, int(index))
            example = Example(
                episode=episode.id,
                start=int(self.clips.starts[index]) - episode.start,
                moving=moving,
                context=video.shape[1] - shown.truth.shape[1] * self.stride,
                truth=to_uint8(shown.camera[i]),
                prediction=to_uint8(video[i]),
                swapped=None if swapped is None else to_uint8(swapped[i]),
                psnr=psnr[i],
                psnr_copy=copy[i],
                psnr_copy_reconstruction=rebuilt[i],
            )
            self.examples = sorted([*self.examples, (key, example)], key=lambda pair: pair[0])[: self.examples_wanted]


def action_bounds(store: Store) -> Bounds:
    """Lowest and highest value of each action dimension of a store, read in pieces."""
    dims = store.actions.shape[-1]
    low, high = np.full(dims, np.inf), np.full(dims, -np.inf)
    for part in pieces(store.actions):
        low, high = np.minimum(low, part.min(0)), np.maximum(high, part.max(0))
    return Bounds(torch.from_numpy(low).float(), torch.from_numpy(high).float())


def _check(
    model: WorldModel,
    tokenizer: Tokenizer,
    clips: Clips,
    prompt: int,
    horizon: int,
    scenarios: Sequence[str],
    swaps: Sequence[str],
) -> None:
    """Raise `HwmError` for parts that do not belong together, before anything is computed."""
    for kind, names, known in (("scenario", scenarios, SCENARIOS), ("action swap", swaps, SWAPS)):
        for name in names:
            if name not in known:
                raise unknown(kind, name, known)
    if not scenarios:
        raise HwmError(f"name at least one scenario: {', '.join(SCENARIOS)}")
    if prompt < 1 or horizon < 1:
        raise HwmError(f"prompt and horizon must be at least 1, got {prompt} and {horizon}")
    if clips.length < prompt + horizon:
        raise HwmError(
            f"windows of {clips.length} steps are too short for {prompt} steps of context and {horizon} to predict: "
            f"make them {prompt + horizon} long"
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


def _numpy(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()


def _describe(sampler: Any) -> Any:
    try:
        return to_json(sampler)
    except TypeError:
        return repr(sampler)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Rate(ProgressColumn):
    """Clips a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} clips/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def _progress(total: int, wanted: bool) -> Iterator[Any]:
    """A function that moves the bar on; there is no bar where the output is not a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("evaluate"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not (wanted and console.is_terminal), transient=True) as bar:
        task = bar.add_task("evaluate", total=total)
        yield lambda n: bar.advance(task, n)
