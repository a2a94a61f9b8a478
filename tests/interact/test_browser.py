"""The page of `hwm play`, in a real browser: played with keys, fingers and a gamepad, and looked at pixel by pixel."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("playwright.sync_api")

from hwm.evaluate.obey import MOTIONS
from hwm.interact.replay import Replay
from hwm.pictures.video import read_video
from tests.interact.pages import (
    DESKTOP,
    NEEDS,
    PATIENCE,
    begin,
    begun,
    canvas,
    film,
    hold,
    motion,
    page_of,
    toy_server,
    wait,
)

pytestmark = NEEDS


# ---------------------------------------------------------------------- playing
def test_drive_turn_raise_record_and_replay(page: Any, tmp_path: Path) -> None:
    begin(page, 1)
    first = canvas(page)
    page.keyboard.press("v")
    page.keyboard.down("w")
    page.wait_for_timeout(5000)
    driven = page.evaluate("hwm")
    page.keyboard.up("w")
    assert driven["n"] >= 5
    assert driven["applied"]["LINEAR_VELOCITY"] == pytest.approx(0.65 * 0.9, abs=0.01)
    assert driven["fps"] > 0
    assert len(driven["latencies"]) == driven["drawn"] > 0
    assert 0 < driven["keyLatencies"][0] < 10_000
    assert np.abs(canvas(page) - first).mean() > 0.02
    hold(page, "a")
    assert page.evaluate("hwm.applied.ANGULAR_VELOCITY") > 0.5
    before = page.evaluate("hwm.applied.LEFT_SHOULDER_PITCH")
    hold(page, "u")
    page.screenshot(path=tmp_path / "desktop.png")
    wait(page, "hwm.idle")  # after the key is let go velocities rest, and time stands still
    assert page.evaluate("hwm.applied.LEFT_SHOULDER_PITCH") < before - 0.2
    assert page.evaluate("[hwm.applied.LINEAR_VELOCITY, hwm.applied.ANGULAR_VELOCITY]") == [0, 0]

    page.keyboard.press("v")
    steps, hashes = page.evaluate("[hwm.n, hwm.hashes]")
    last = canvas(page)
    assert len(set(hashes)) > 10  # where nothing is left to see, the model may stand still
    with page.expect_download() as video:
        page.get_by_role("link", name="video").click()
    assert len(list(read_video(video.value.path()))) >= steps
    with page.expect_download() as store:
        page.get_by_role("link", name="store").click()
    assert any(name.endswith("actions.bin") for name in zipfile.ZipFile(store.value.path()).namelist())
    with page.expect_download() as shared:
        page.get_by_role("button", name="Share replay").click()
    path = tmp_path / "replay.json"
    shared.value.save_as(path)
    assert list(Replay.load(path).hashes) == hashes

    begin(page, 5)
    page.get_by_label("Load replay").set_input_files(path)
    wait(page, f"document.getElementById('replay-told').textContent.includes('all {steps} steps agree')")
    wait(page, "hwm.idle")
    assert page.evaluate("hwm.hashes") == hashes
    assert np.array_equal(canvas(page), last)

    plain = json.loads(path.read_text(encoding="utf-8"))
    plain["hashes"][2] += 1
    path.write_text(json.dumps(plain), encoding="utf-8")
    page.get_by_label("Load replay").set_input_files(path)
    wait(page, f"document.getElementById('replay-told').textContent.startsWith('Departed at step 3 of {steps}')")


@pytest.mark.parametrize(("one", "other", "kind", "least"), [("w", "s", 1, 0.5), ("a", "d", 0, 3.0)])
def test_opposite_commands_move_the_view_oppositely(page: Any, one: str, other: str, kind: int, least: float) -> None:
    """Pixels a step: forward expands the view more than backward, and to the left it moves right."""
    contrast = []
    for start in (1, 8):
        first, again, opposite = film(page, start, one), film(page, start, one), film(page, start, other)
        same, apart = np.abs(first[-1] - again[-1]).mean(), np.abs(first[-1] - opposite[-1]).mean()
        assert same < 0.002  # the same start, seed and commands: the same pixels
        assert apart > 0.02 > 10 * same
        contrast.append(motion(first)[MOTIONS[kind]] - motion(opposite)[MOTIONS[kind]])
    assert np.mean(contrast) > least


def test_undo_pause_and_start_anew(page: Any) -> None:
    begin(page, 3)
    hold(page, "ArrowUp", 9)
    wait(page, "hwm.idle")
    n, hashes = page.evaluate("[hwm.n, hwm.hashes]")
    page.keyboard.press("Backspace")
    wait(page, f"hwm.n === {n - 5}")
    assert page.evaluate("hwm.hashes") == hashes[: n - 5]
    page.keyboard.press("Space")
    page.keyboard.down("d")
    page.wait_for_timeout(400)
    assert page.evaluate("[hwm.paused, hwm.n]") == [True, n - 5]
    page.keyboard.press(".")
    wait(page, f"hwm.n === {n - 4}")
    page.keyboard.up("d")
    assert page.evaluate("hwm.applied.ANGULAR_VELOCITY") < 0
    with begun(page):
        page.keyboard.press("n")
    page.keyboard.press("Space")
    page.get_by_label("Time stands still while nothing is asked").uncheck()
    wait(page, "hwm.n > 3")  # by itself


def test_presets_pace_and_quality(page: Any) -> None:
    assert "20.2 dB" in page.inner_text("#presets")
    assert "23.0 frames/s" in page.inner_text("#presets")
    assert "steps 2 · temperature 0.7 " in page.inner_text("#sampler")  # as the shipped model samples by itself
    assert page.locator(".preset", has_text="Careful").get_attribute("title") == "Looks twice."
    assert not page.get_by_text("Looks twice.").is_visible()
    page.get_by_label("Careful").check()
    assert page.get_by_text("Looks twice.").is_visible()
    wait(page, "document.getElementById('sampler').textContent.includes('steps 2 · temperature 1 ')")
    page.get_by_label("As fast as possible").check()
    page.get_by_label("JPEG quality").fill("20")
    begin(page, 2)
    hold(page, "w", 6)
    wait(page, "hwm.idle")
    page.get_by_label("True pixels").check()
    blocks = canvas(page)
    page.get_by_label("Smooth").check()
    assert np.abs(canvas(page) - blocks).mean() < 0.03  # another interpolation of the same picture
    seeds = []
    for seed in ("7", "8"):  # which this preset draws with
        page.get_by_label("Seed", exact=True).fill(seed)
        with begun(page):
            page.keyboard.press("Enter")
        hold(page, "w", 3)
        wait(page, "hwm.idle")
        seeds.append(page.evaluate("hwm.hashes.slice(0, 3)"))
    assert seeds[0] != seeds[1]


def test_sliders_show_and_set_every_action(page: Any) -> None:
    page.get_by_text("Every joint").click()
    for title in ("Legs and hips", "Left arm", "Right arm", "Neck", "Hands"):
        page.locator(".group > summary", has_text=title).click()
    names = page.locator("#joints input").evaluate_all("all => all.map((one) => one.ariaLabel)")
    actions = page.evaluate("Object.keys(hwm.applied)")
    assert sorted(names) == sorted(name.replace("_", " ").lower() for name in actions)
    slider = page.get_by_label("right hand closure")
    slider.fill("1")
    wait(page, "hwm.applied.RIGHT_HAND_CLOSURE > 0.99 && hwm.idle")
    slider.press("Home")
    assert page.evaluate("hwm.wanted.RIGHT_HAND_CLOSURE") == 0
    page.get_by_label("linear velocity").fill("0.3")  # goes on by itself, until a key takes over
    n = page.evaluate("hwm.n")
    wait(page, f"hwm.n > {n + 8} && Math.abs(hwm.applied.LINEAR_VELOCITY - 0.3) < 0.01")
    hold(page, "w", 2)
    wait(page, "hwm.idle && hwm.applied.LINEAR_VELOCITY === 0")
    page.get_by_role("button", name="Back to the pose of the start").click()


def test_own_picture_and_what_is_refused(page: Any, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), (200, 40, 40), np.uint8)).save(file, "PNG")
    with begun(page):
        page.get_by_label("Own picture or video").set_input_files(
            {"name": "rot ünd grün.png", "mimeType": "image/png", "buffer": file.getvalue()}
        )
    assert "rot ünd grün.png" in page.locator("#gallery [aria-pressed=true]").get_attribute("aria-label")
    red, green, blue = canvas(page).mean((0, 1))
    assert red > green + 0.2 < blue + 0.4
    hold(page, "w", 2)


def test_the_true_simulator_side_by_side(page: Any) -> None:
    button = page.get_by_role("button", name="Side by side")
    if not button.is_visible():
        pytest.skip("no simulator can run here")
    begin(page, 1)
    button.click()
    wait(page, "document.getElementById('twin-hint').textContent.includes('joins')")
    hold(page, "a", 4)
    wait(page, "document.getElementById('twin-hint').hidden")
    dream, truth = canvas(page), canvas(page, "twin")
    assert truth.std() > 0.05
    assert 0.001 < np.abs(dream - truth).mean() < 0.3
    wait(page, "hwm.likeness && hwm.likeness.n === hwm.n && hwm.idle")  # the last step's comes too
    shown = page.evaluate("hwm.likeness")
    assert shown["psnr"] == pytest.approx(-10 * np.log10(np.square(dream - truth).mean()), abs=2)
    assert page.inner_text("#l-psnr") == f"{shown['psnr']:.1f}"
    assert page.inner_text("#l-sharpness") == f"{100 * shown['sharpness']:.0f} %"
    assert len(page.get_attribute("#l-psnr-line", "points").split()) == page.evaluate("hwm.n")
    page.keyboard.press("Backspace")
    wait(page, "!hwm.likeness || hwm.likeness.n <= hwm.n")
    button.click()
    assert not page.locator("#likeness").is_visible()
    wait(page, "document.getElementById('twin').hidden")


def test_a_robot_of_other_actions_has_keys_and_open_sliders(browser: Any, tmp_path: Path) -> None:
    """Seven joints and a velocity: a pair of keys for each, a slider for each in sight, nothing to be opened first."""
    names = (*(f"joint_{i}" for i in range(1, 8)), "rail_velocity")
    with toy_server(tmp_path, names=names) as address, page_of(browser, address) as page:
        sliders = page.locator("#joints input")
        assert sliders.evaluate_all("all => all.map((one) => one.ariaLabel)") == [
            "rail velocity",
            *(f"joint {i}" for i in range(1, 8)),
        ]
        assert all(sliders.nth(i).is_visible() for i in range(len(names)))
        assert page.locator("#joints summary").all_inner_texts() == ["Base\n1", "Joint\n7"]
        assert page.locator(".cap").count() == 2 * len(names)
        assert not page.locator("#sticks").is_visible()
        page.keyboard.press("?")
        assert page.locator("#legend-moves tr").count() == 2 * len(names)
        page.keyboard.press("Escape")
        begin(page, 0)
        before = page.evaluate("hwm.applied")
        hold(page, "s", 3)  # lowers the second joint, which stays there, and no other
        wait(page, "hwm.idle")
        after = page.evaluate("hwm.applied")
        assert after["joint_2"] < before["joint_2"] - 0.05
        others = [name for name in names if name not in ("joint_2", "rail_velocity")]
        assert [after[name] for name in others] == pytest.approx([before[name] for name in others], abs=1e-3)
        page.keyboard.down("o")  # a velocity runs while its key is held
        wait(page, "hwm.applied.rail_velocity > 0.2")
        page.keyboard.up("o")
        wait(page, "hwm.idle && hwm.applied.rail_velocity === 0")
        page.get_by_role("slider", name="joint 5").fill("0.5")
        wait(page, "Math.abs(hwm.applied.joint_5 - 0.5) < 0.05")


def test_it_comes_back_when_the_server_does(browser: Any, tmp_path: Path) -> None:
    page = browser.new_page(**DESKTOP)
    page.set_default_timeout(PATIENCE)
    with toy_server(tmp_path / "one") as address:
        page.goto(address)
        wait(page, "hwm.connected")
        begin(page, 3)
        session = page.evaluate("hwm.session")
    wait(page, "!hwm.connected")
    assert "Trying again" in page.inner_text("#gone")
    with toy_server(tmp_path / "two", int(address.rstrip("/").rpartition(":")[2])):
        wait(page, "hwm.connected && hwm.idle")
        assert page.evaluate("hwm.session") != session
        assert not page.locator("#gone").is_visible()
        assert page.locator("#gallery [aria-pressed=true]").get_attribute("data-start") == "start:3"
    page.close()
