"""Evaluation by view: what is measured of one camera is of its pictures alone."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from hwm.data.clips import Clips
from hwm.data.sources import SourceOptions, open_source
from hwm.encode.episodes import EncodeConfig, encode
from hwm.evaluate.camera import camera_video
from hwm.evaluate.evaluate import EvaluateConfig, evaluate
from hwm.evaluate.obey import obey
from hwm.evaluate.report import write_report
from hwm.evaluate.results import Results
from hwm.tokenizers.pixels import Pixels
from hwm.tokenizers.views import for_views
from hwm.types import Tokenizer
from tests.conftest import make_store
from tests.evaluate.pan_world import CopyLast, build

VIEWS = ("top", "wrist")
HOW = EvaluateConfig(clips=6, horizon=3, prompt=2, batch_size=4, examples=2, progress=False)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tokenizer, Clips]]:
    """Windows of both cameras together, and of each alone."""
    root = tmp_path_factory.mktemp("views")
    recording = make_store(root / "r", [14, 12], latent=None, tokenizer="", video=True, views=VIEWS)
    pixels, found = Pixels((32, 32)), {}
    for name, cameras in (("both", VIEWS), ("top", ("top",)), ("wrist", ("wrist",))):
        source = open_source(recording.path, SourceOptions(camera=cameras))
        store = encode(source, pixels, root / name, EncodeConfig(keep_video=True))
        found[name] = for_views(pixels, store.header.views), Clips(store, 6)
    return found


def results(tokenizer: Tokenizer, clips: Clips) -> Results:
    return evaluate(build(CopyLast, clips), tokenizer, clips, HOW)


def test_figures_of_a_view_are_those_of_its_camera_alone(opened) -> None:
    both = results(*opened["both"]).json()
    assert list(both["by_view"]) == list(VIEWS)
    for view in VIEWS:
        alone, mine = results(*opened[view]).json(), both["by_view"][view]
        assert "by_view" not in alone
        for name in ("psnr", "ssim", "psnr_copy", "ssim_reconstruction", "delta_psnr", "gain_copy", "psnr_stderr"):
            assert mine[name] == pytest.approx(alone[name], abs=1e-4), name
            assert mine["by_scenario"]["autoregressive"][name] == mine[name]
        assert "ce" not in mine
        assert "perplexity" not in mine
    top, wrist = (np.array(both["by_view"][view]["psnr"]) for view in VIEWS)
    assert abs(top - wrist).max() > 0.05, "they do not see the same"
    error = (10 ** (-top / 10) + 10 ** (-wrist / 10)) / 2
    assert abs(-10 * np.log10(error) - both["psnr"]).max() < 1, "the whole picture's error lies between"


def test_the_camera_is_resized_view_by_view(opened) -> None:
    clips = opened["both"][1]
    small = camera_video(clips, np.array([0]), 3, (32, 16))
    each = [camera_video(opened[view][1], np.array([0]), 3, (16, 16)) for view in VIEWS]
    assert torch.equal(small, torch.cat(each, -2))


def test_tables_pictures_and_the_report_tell_views_apart(opened, tmp_path: Path) -> None:
    found = results(*opened["both"])
    assert found.examples[0].truth.shape[1:] == (32, 64, 3)
    assert found.examples[0].prediction.shape == found.examples[0].truth.shape
    out = io.StringIO()
    Console(file=out, width=100).print(found.table())
    assert "wrist: all 6 clips" in out.getvalue()
    found.save(tmp_path / "found.json")
    assert set(json.loads((tmp_path / "found.json").read_bytes())["by_view"]) == set(VIEWS)
    page = write_report(tmp_path / "page.html", found).read_text(encoding="utf-8")
    assert "<h2>By view</h2>" in page
    assert "<h3>wrist</h3>" in page


def test_obedience_is_that_of_the_first_view(opened) -> None:
    motion = {}
    for name in ("both", "top"):
        tokenizer, clips = opened[name]
        commands = {"a": {clips.store.header.action_names[0]: 0.5}}
        found = obey(build(CopyLast, clips), tokenizer, clips, commands, starts=2, prompt=2, steps=2, reference=8)
        motion[name] = found
    assert np.allclose(motion["both"].motion["a"], motion["top"].motion["a"])
    assert motion["both"].videos["a"].shape[-3:] == (32, 64, 3)
