"""The moments of a long rollout at which it is judged, and the figures that are taken of its pictures there.

A moment is a horizon: so many seconds after the model was left alone. Its pictures are the few frames that end there,
of the dream and of all that stands beside it. To add a figure is to add a function of a moment to `FIGURES`.

Shape suffixes: B clips, F frames, C colours, H W places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from hwm.data.clips import Clips
from hwm.errors import HwmError
from hwm.evaluate import metrics
from hwm.evaluate.metrics import Metric
from hwm.networks.efficientnet import load_efficientnet
from hwm.networks.features import Features, lite_pictures, lite_windows

FRAMES = 8
"""Frames of a moment; of one that lies nearer to the context those since its last frame, and that frame."""

SOURCES = {
    "prediction": "prediction",
    "copy": "last camera frame repeated",
    "copy_reconstruction": "its reconstruction repeated",
    "random": "random moment of the episode",
    "reconstruction": "tokenizer alone (ceiling)",
}
"""What figures are taken of, and what its row is called."""

BASELINES = ("copy", "copy_reconstruction", "random")
"""What a prediction has to beat."""


@dataclass(frozen=True)
class Moment:
    """A batch of clips at one horizon.

    Attributes:
        clips, indices: which windows of which store these are, (B,).
        prompt, step: steps of context, and how many steps after them the horizon is.
        seconds: how long after the context that is.
        frames: of each of `SOURCES` and of the `camera`, (B, F, 3, H, W) in [0, 1]; the last frame is the horizon's.
    """

    clips: Clips
    indices: np.ndarray
    prompt: int
    step: int
    seconds: float
    frames: Mapping[str, Tensor]


@dataclass(frozen=True)
class Figure:
    """A figure of a moment, and what tables must know of it.

    Attributes:
        of: a moment and a source to a value a clip, (B,).
        title: what it is called above its rows.
        share_of: it is quoted as a share of this source's: the mean over clips by that source's mean.
        lower_is_better: whether the smallest value is the best; None where the best is a share of 1.
        places: decimals that it is quoted with.
        sources: of what it is taken, out of `SOURCES`.
    """

    of: Callable[[Moment, str], Tensor]
    title: str
    share_of: str = ""
    lower_is_better: bool | None = None
    places: int = 2
    sources: tuple[str, ...] = tuple(SOURCES)


def compared(metric: Metric, name: str = "", reference: str = "camera") -> Figure:
    """A metric of pictures as a figure: the horizon's frame against the true one, as the camera or the tokenizer
    shows it."""

    def of(moment: Moment, source: str) -> Tensor:
        return metric.of(moment.frames[source][:, -1], moment.frames[reference][:, -1])

    title = metric.title or name.replace("_", " ")
    if reference == "camera":
        return Figure(of, title, lower_is_better=metric.lower_is_better, places=metric.places)
    sources = ("prediction", "copy_reconstruction")
    return Figure(of, f"{title}, against the reconstruction", "", metric.lower_is_better, metric.places, sources)


def gradient(pictures: Tensor) -> Tensor:
    """How sharp pictures are: the mean absolute difference of neighbouring pixels, (..., C, H, W) -> (...)."""
    down, right = pictures.diff(dim=-2).abs(), pictures.diff(dim=-1).abs()
    return (down.mean((-3, -2, -1)) + right.mean((-3, -2, -1))) / 2


def change(video_BFCHW: Tensor) -> Tensor:
    """How much moves: the mean absolute change of a pixel from one frame to the next, (B,)."""
    return video_BFCHW.diff(dim=1).abs().mean((1, 2, 3, 4))


def _sharpness(moment: Moment, source: str) -> Tensor:
    return gradient(moment.frames[source][:, -1])


def _liveliness(moment: Moment, source: str) -> Tensor:
    return change(moment.frames[source])


def _colour(moment: Moment, source: str) -> Tensor:
    """By how many of 255 levels the mean colour is off, averaged over the three colours."""
    mine, true = (moment.frames[s][:, -1].mean((-2, -1)) for s in (source, "camera"))
    return 255 * (mine - true).abs().mean(-1)


def _contrast(moment: Moment, source: str) -> Tensor:
    """By how many of 255 levels the standard deviation of a picture is off, averaged over the three colours."""
    mine, true = (moment.frames[s][:, -1].flatten(-2).std(-1, correction=0) for s in (source, "camera"))
    return 255 * (mine - true).abs().mean(-1)


PSNR = metrics.METRICS["psnr"]

FIGURES: dict[str, Figure] = {
    "psnr": compared(PSNR),
    "psnr_reconstruction_reference": compared(PSNR, reference="reconstruction"),
    "sharpness": Figure(_sharpness, "sharpness, share of the camera's", "camera"),
    "sharpness_reconstruction_reference": Figure(
        _sharpness, "sharpness, share of the reconstruction's", "reconstruction", sources=("prediction",)
    ),
    "liveliness": Figure(
        _liveliness, "liveliness, share of the camera's", "camera",
        sources=("prediction", "random", "reconstruction"),
    ),
    "colour_drift": Figure(_colour, "drift of the mean colour, in 255ths", lower_is_better=True, places=1),
    "contrast_drift": Figure(_contrast, "drift of the contrast, in 255ths", lower_is_better=True, places=1),
}  # fmt: skip
"""The figures that need nothing but the pictures."""


@dataclass(frozen=True)
class Eyes:
    """What looks at the pictures.

    Attributes:
        figures: what is taken of them at each horizon.
        features: Frechet distances to take of the pictures of all horizons, by name.
        absent: figures that cannot be taken here: name -> what it is called above its rows.
        notes: why they cannot.
    """

    figures: Mapping[str, Figure] = field(default_factory=lambda: dict(FIGURES))
    features: Mapping[str, Features] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


def eyes(device: torch.device | str = "cpu", further: Mapping[str, Metric] | None = None) -> Eyes:
    """All that can look at pictures here: `FIGURES`, EfficientNet-Lite0 where its weights are installed, and others.

    Args:
        further: metrics of pictures by name, such as LPIPS.
    """
    title = "perceptual distance"
    figures = {name: compared(metric, name) for name, metric in (further or {}).items()}
    try:
        perceptual = Metric(load_efficientnet(device), lower_is_better=True, title=title)
    except HwmError as error:
        return Eyes({**figures, **FIGURES}, absent={"perceptual": title}, notes=[str(error)])
    features = {"lite_pictures": lite_pictures(device), "lite_windows": lite_windows(device)}
    return Eyes({"perceptual": compared(perceptual), **figures, **FIGURES}, features)
