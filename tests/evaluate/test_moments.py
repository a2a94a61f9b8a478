"""Figures of moments, on pictures whose figures are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hwm.errors import HwmError
from hwm.evaluate import moments
from hwm.evaluate.metrics import Metric
from hwm.evaluate.moments import FIGURES, SOURCES, Moment, change, eyes, gradient
from tests.evaluate import pan_world


def moment(**frames: torch.Tensor) -> Moment:
    """A moment of one clip of two frames, or more; the camera pans over a wallpaper by two pixels a frame."""
    paper = pan_world.wallpaper(np.random.default_rng(0))
    camera = torch.stack([pan_world.pan(paper, torch.tensor([2.0 * i])) for i in range(3)], 1).clamp(0, 1)
    every = dict.fromkeys((*SOURCES, "camera"), camera)
    return Moment(None, np.array([0]), 1, 2, 0.2, {**every, **frames})  # type: ignore[arg-type]


def figure(name: str, m: Moment, source: str = "prediction") -> float:
    return float(FIGURES[name].of(m, source))


def test_the_truth_itself_is_as_sharp_as_lively_and_does_not_drift() -> None:
    m = moment()
    for name in ("sharpness", "liveliness"):
        assert figure(name, m) == figure(name, m, "camera") > 0.01
    assert figure("colour_drift", m) == figure("contrast_drift", m) == 0
    assert figure("psnr", m) == figure("psnr_reconstruction_reference", m) == 100


def test_gradient_and_change_of_a_ramp() -> None:
    ramp = torch.arange(6.0).expand(1, 2, 3, 4, 6) / 10  # each pixel 0.1 above its left neighbour, and as its upper one
    assert float(gradient(ramp[0, 0])) == pytest.approx(0.1 / 2)
    video = torch.cat([ramp, ramp[:, -1:] + 0.3], 1)
    assert float(change(video)) == pytest.approx(0.3 / 2), "of two changes one is none"


def test_a_blur_is_less_sharp_and_as_bright() -> None:
    camera = moment().frames["camera"]
    blurred = F.avg_pool2d(F.pad(camera.flatten(0, 1), (2, 2, 2, 2), "circular"), 5, 1).unflatten(0, (1, 3))
    m = moment(prediction=blurred)
    assert figure("sharpness", m) < 0.8 * figure("sharpness", m, "camera")
    assert figure("colour_drift", m) < 5
    assert figure("contrast_drift", m) > 3, "what is blurred has lost contrast"


def test_a_still_has_no_life() -> None:
    still = moment().frames["camera"][:, :1].expand(-1, 3, -1, -1, -1)
    m = moment(prediction=still)
    assert figure("liveliness", m) == 0
    assert figure("sharpness", m) == pytest.approx(figure("sharpness", m, "camera"), rel=0.05)


def test_a_brighter_picture_has_drifted_in_colour_alone_and_a_flatter_one_in_contrast() -> None:
    camera = moment().frames["camera"]
    m = moment(prediction=camera + 0.1)
    assert figure("colour_drift", m) == pytest.approx(25.5, abs=1e-3)
    assert figure("contrast_drift", m) == pytest.approx(0, abs=1e-3)
    assert figure("psnr", moment(prediction=(camera * 0 + 0.6), camera=camera * 0 + 0.5)) == pytest.approx(20, abs=1e-3)
    middle = camera[:, -1:].mean((-2, -1), keepdim=True)
    m = moment(prediction=middle + (camera - middle) / 2)
    assert figure("colour_drift", m) == pytest.approx(0, abs=1e-3)
    spread = float(camera[:, -1].flatten(-2).std(-1, correction=0).mean())
    assert figure("contrast_drift", m) == pytest.approx(255 * spread / 2, rel=1e-4)


def test_the_horizons_frame_is_the_last() -> None:
    camera = moment().frames["camera"]
    m = moment(prediction=torch.cat([torch.zeros_like(camera[:, :2]), camera[:, 2:]], 1))
    assert figure("psnr", m) == 100
    assert figure("liveliness", m) > figure("liveliness", m, "camera")


def test_without_the_weights_the_perceptual_distance_is_missed_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(device: object) -> None:
        raise HwmError("pip install 'humanoid-world-models[eval]'")

    monkeypatch.setattr(moments, "load_efficientnet", missing)
    found = eyes()
    assert "perceptual" in found.absent
    assert "perceptual" not in found.figures
    assert "[eval]" in found.notes[0]
    assert not found.features


def test_metrics_of_pictures_become_figures() -> None:
    off = Metric(lambda x, y: (x - y).abs().mean((-3, -2, -1)), lower_is_better=True, places=1)
    found = eyes(further={"how_far": off}).figures["how_far"]
    assert found.title == "how far"
    assert found.lower_is_better
    camera = moment().frames["camera"]
    assert float(found.of(moment(prediction=camera + 0.25), "prediction")) == pytest.approx(0.25)
