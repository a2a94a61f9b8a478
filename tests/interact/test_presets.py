"""Presets: read, refused when they do not fit, measured and noted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hwm.assets import resolve_store
from hwm.cli import main
from hwm.data.clips import Clips
from hwm.data.readers import open_store
from hwm.errors import HwmError
from hwm.evaluate.evaluate import EvaluateConfig, evaluate
from hwm.interact.presets import FILE, Preset, choose, frames_per_second, load_presets, measure, save_presets, settle
from hwm.interact.session import World
from hwm.loading import MODELS, load
from hwm.train.checkpoint import save_model
from tests.interact.conftest import a_start, build_world

COLUMNS = {"psnr": " dB", "psnr_8": " dB", "delta_psnr": " dB", "fps": ""}
"""Figures in the table of docs/play.md, with their units."""


def test_without_a_file_there_is_the_models_own_way(tmp_path: Path) -> None:
    world = build_world()
    (preset,) = load_presets(tmp_path, world.model).values()
    assert preset.build(world.model) == world.model.config.sampler


def test_without_a_file_there_are_the_familys_ways(tmp_path: Path, world: World) -> None:
    """In terms of its own sampler, whatever that has: each differs from the others, and says what it trades."""
    presets = load_presets(tmp_path, world.model)
    assert list(presets) == ["default", *world.model.ways]
    built = [preset.build(world.model) for preset in presets.values()]
    assert all(one != other for i, one in enumerate(built) for other in built[:i])
    assert all(preset.describe()["about"].endswith(".") for preset in presets.values())


def test_ways_of_a_diffusion_are_steps_and_noise(tmp_path: Path) -> None:
    presets = load_presets(tmp_path, build_world("diffusion").model)
    assert presets["quick"].sampler == {"steps": 1}
    assert presets["steady"].sampler["context_noise"] > 0


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[", "list of presets"),
        ("{}", "no preset"),
        ("[]", "no preset"),
        ('[{"name": "a"}]', "label"),
        ('[{"name": "a", "label": "A", "sampler": {"stepz": 2}}]', "steps"),
        ('[{"name": "a", "label": "A", "sampler": {"steps": "two"}}]', "steps"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    with pytest.raises(HwmError, match=word):
        load_presets(tmp_path, build_world().model)


def test_saved_presets_come_back(tmp_path: Path) -> None:
    presets = [Preset("a", "A", {"steps": 3}, {"psnr": 20.5}), Preset("b", "B", {})]
    save_presets(tmp_path, presets)
    world = build_world()
    again = load_presets(tmp_path, world.model)
    assert list(again.values()) == presets
    assert again["a"].build(world.model).steps == 3


def test_the_shipped_presets_have_figures_that_an_evaluation_gives() -> None:
    world = World.open()
    from hwm.loading import find_model

    presets = load_presets(find_model("masked_hwm_mini"), world.model)
    assert len(presets) > 1
    page = (Path(__file__).parents[2] / "docs" / "play.md").read_text(encoding="utf-8")
    for preset in presets.values():
        assert preset.figures is not None
        assert set(COLUMNS) <= set(preset.figures)
        assert preset.figures["split"] == "test"
        row = " | ".join(f"{preset.figures[key]:.2f}{unit}" for key, unit in COLUMNS.items())
        assert f"| `{preset.name}` | {row} |" in page
    clips = Clips(open_store(resolve_store("mini_heldout")), world.model.config.past + 8)
    name = "smooth"
    found = evaluate(
        world.model, world.tokenizer, clips, EvaluateConfig(clips=3, swaps=(), sampler=presets[name].build(world.model))
    )
    new = measure(presets[name], world, clips, count=3, seconds=0.1, threads=1)
    assert new.figures is not None
    psnr = found.mean("psnr")
    assert psnr is not None
    assert new.figures["psnr"] == pytest.approx(psnr[0], abs=0.006)
    assert new.figures["psnr_8"] == pytest.approx(psnr[-1], abs=0.006)
    assert new.figures["fps"] > 0


def named(name: str, live: float | None, psnr: float, apart: float | None) -> Preset:
    return Preset(name, name, {}, {"liveliness_3s": live, "psnr_0.5s": psnr, "perceptual_3s": apart})


def test_the_default_is_alive_then_true_then_looks_best() -> None:
    frozen, mush, noise = named("frozen", 0.02, 19, 0.1), named("mush", 0.6, 16, 0.2), named("noise", 3.0, 19, 0.1)
    good, better = named("good", 0.8, 18, 1.2), named("better", 1.2, 17.5, 1.1)
    assert choose([frozen, mush, noise, good, better]) is better
    assert choose([frozen, mush, noise, good]) is good, "a dB of PSNR more than mush"
    assert choose([frozen, noise]) is frozen, "none is alive: the one that comes nearest"
    assert choose([named("a", 0.9, 18, None), named("b", 0.9, 18.5, 1.0)]).name == "b", "PSNR where no eyes are"
    assert choose([frozen, named("unmeasured", None, 20, 1.0)]) is frozen, "it stays the first"


def test_the_chosen_sampler_becomes_the_models_own_and_comes_first(tmp_path: Path) -> None:
    world = build_world()
    save_model(tmp_path, world.model)
    own = world.model.sampler
    slow = replace(named("slow", 0.9, 18, 1.0), sampler={"steps": 5})
    presets = settle(tmp_path, world.model, [named("still", 0.0, 19, 1.0), slow])
    assert [p.name for p in presets] == ["slow", "still"]
    again = load(tmp_path)
    assert again.sampler == replace(own, steps=5)
    assert [dict(p.sampler) for p in presets] == [{}, {"steps": own.steps}]
    save_presets(tmp_path, presets)
    assert load_presets(tmp_path, again)["still"].build(again) == own
    before = (tmp_path / "hwm.json").read_bytes()
    settle(tmp_path, again, presets)
    assert (tmp_path / "hwm.json").read_bytes() == before


def test_the_shipped_models_own_sampler_is_its_first_preset() -> None:
    """What play takes first is what `Session`, the Gymnasium environment, policies and `hwm evaluate` take."""
    for folder in MODELS.values():
        if (folder / FILE).exists():
            model = load(folder)
            assert next(iter(load_presets(folder, model).values())).build(model) == model.sampler


def test_frames_are_counted() -> None:
    world = build_world()

    class OneStart:
        def __getitem__(self, name: str) -> object:
            return a_start(world)

    world.gallery = OneStart()  # type: ignore[assignment]
    assert frames_per_second(world, Preset("a", "A", {"steps": 1}), 0.2, threads=1) > 0


def test_the_verb_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from hwm.loading import find_model

    for file in find_model("masked_hwm_mini").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_presets(tmp_path, [Preset("only", "Only", {"steps": 1})])
    assert main(["presets", "--model", str(tmp_path), "--clips", "2", "--seconds", "0.1", "--json", "--write"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / FILE).read_text(encoding="utf-8"))[0]["figures"] == printed["only"]
    assert (printed["only"]["clips"], printed["only"]["split"]) == (2, "test")
