"""The page of `hwm play`, in a real browser: played with keys, fingers and a gamepad, and looked at pixel by pixel."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("playwright.sync_api")
from playwright.sync_api import sync_playwright

from hwm.assets import ROOT as ASSETS
from hwm.data.video import read_video
from hwm.evaluate.obey import MOTIONS, motion_by_step
from hwm.interact.replay import Replay

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed"),
    pytest.mark.skipif(
        not (ASSETS / "masked_hwm_mini" / "model.safetensors").exists(), reason="needs the shipped model"
    ),
]

DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
PATIENCE = 60_000  # ms; tests run beside others
PRESETS = [
    {"name": "quick", "label": "Quick", "sampler": {}, "figures": {"psnr": 20.2, "fps": 23.0, "device": "a machine"}},
    {"name": "careful", "label": "Careful", "sampler": {"steps": 2, "temperature": 1.0, "pick": "sample"}},
]


@contextmanager
def play(model: Path, port: int = 0) -> Iterator[str]:
    """`hwm play` in a process of its own; its address."""
    command = [sys.executable, "-m", "hwm.cli", "play", "--model", str(model), "--port", str(port), "--no-open"]
    process = subprocess.Popen([*command, "--threads", "1"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, "the server did not start"
        yield found[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model with presets of our own."""
    folder = tmp_path_factory.mktemp("models") / "shipped"
    shutil.copytree(ASSETS / "masked_hwm_mini", folder)
    (folder / "presets.json").write_text(json.dumps(PRESETS))
    return folder


@pytest.fixture(scope="module")
def address(model: Path) -> Iterator[str]:
    with play(model) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER)
        yield browser
        browser.close()


@contextmanager
def page_of(browser: Any, address: str, init: str = "", **context: Any) -> Iterator[Any]:
    """A page that is connected. In the end nothing may have gone wrong in it, and nothing been asked of other hosts."""
    made = browser.new_context(**(context or DESKTOP))
    made.set_default_timeout(PATIENCE)
    page, problems, asked = made.new_page(), list[str](), list[str]()
    page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    if init:
        page.add_init_script(init)
    page.goto(address)
    wait(page, "hwm.connected")
    yield page
    assert problems == []
    assert all(url.startswith((address, "blob:")) for url in asked), asked
    made.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    with page_of(browser, address) as page:
        yield page


def wait(page: Any, condition: str) -> None:
    """Until a JavaScript expression is true; `hwm` is what the page tells of itself."""
    page.wait_for_function(f"() => window.hwm && ({condition})")


def hold(page: Any, key: str, steps: int = 4) -> None:
    """Hold a key for some steps."""
    n = page.evaluate("hwm.n")
    page.keyboard.down(key)
    wait(page, f"hwm.n >= {n + steps}")
    page.keyboard.up(key)


@contextmanager
def begun(page: Any) -> Iterator[None]:
    """What is done inside begins the world anew; time stands still until a key is pressed."""
    before = page.evaluate("hwm.begins")
    yield
    wait(page, f"hwm.begins > {before} && (hwm.idle || (hwm.paused && hwm.inFlight === 0))")


def begin(page: Any, start: int) -> None:
    """From a start of the gallery."""
    with begun(page):
        page.locator("#gallery button").nth(start).click()


def canvas(page: Any, name: str = "model") -> np.ndarray:
    """What a picture of the page shows, (128, 128, 3) in 0..1."""
    page.evaluate("() => new Promise(requestAnimationFrame)")
    url = page.evaluate(f"() => document.getElementById('{name}-view').toDataURL()")
    picture = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB").resize((128, 128), 1)
    return np.asarray(picture, np.float32) / 255


def film(page: Any, start: int, key: str, steps: int = 8) -> np.ndarray:
    """What the page shows from a start while a key is held, step by step, (steps + 1, 128, 128, 3)."""
    begin(page, start)
    if not page.evaluate("hwm.paused"):
        page.keyboard.press("Space")
    page.keyboard.down(key)
    seen = [canvas(page)]
    for n in range(1, steps + 1):
        drawn = page.evaluate("hwm.drawn")
        page.keyboard.press(".")
        wait(page, f"hwm.n === {n} && hwm.drawn > {drawn}")
        seen.append(canvas(page))
    page.keyboard.up(key)
    return np.stack(seen)


def motion(frames: np.ndarray) -> dict[str, float]:
    moved = motion_by_step(torch.from_numpy(frames).permute(0, 3, 1, 2)[None], 1)[0].mean(0)
    return dict(zip(MOTIONS, moved.tolist(), strict=True))


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

    plain = json.loads(path.read_text())
    plain["hashes"][2] += 1
    path.write_text(json.dumps(plain))
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
    assert "steps 1 " in page.inner_text("#sampler")
    page.get_by_label("Careful").check()
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
    button.click()
    wait(page, "document.getElementById('twin').hidden")


# ---------------------------------------------------------------------- hands and eyes
def test_a_gamepad(browser: Any, address: str) -> None:
    init = """
        const buttons = Array.from({length: 16}, () => ({pressed: false, value: 0}));
        window.pad = {axes: [0, 0, 0, 0], buttons, connected: true};
        navigator.getGamepads = () => [window.pad];
    """
    with page_of(browser, address, init) as page:
        page.evaluate("() => { dispatchEvent(new Event('gamepadconnected')); }")
        page.evaluate("() => { pad.axes[1] = -1; pad.axes[0] = 0.6; pad.buttons[5] = {pressed: true, value: 1}; }")
        wait(page, "hwm.applied.LINEAR_VELOCITY > 0.85 && hwm.n > 5")
        velocity, arm = page.evaluate("[hwm.wanted.ANGULAR_VELOCITY, hwm.wanted.RIGHT_SHOULDER_PITCH]")
        assert -1 < velocity < -0.5  # as far as the stick is tilted
        page.evaluate("() => { pad.axes = [0.1, 0.05, 0, 0]; pad.buttons[5] = {pressed: false, value: 0}; }")
        wait(page, "hwm.idle")
        assert page.evaluate("hwm.applied.RIGHT_SHOULDER_PITCH") < max(arm, -1.0)
        page.evaluate("() => { pad.buttons[9] = {pressed: true, value: 1}; }")
        wait(page, "hwm.paused")


def test_a_phone(browser: Any, address: str, tmp_path: Path) -> None:
    for scheme in ("light", "dark"):
        with page_of(browser, address, **PHONE, color_scheme=scheme) as page:
            page.evaluate("() => document.querySelectorAll('details').forEach((one) => (one.open = true))")
            page.screenshot(path=tmp_path / f"phone_{scheme}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth") == 360
            assert not page.locator("#keys-left").is_visible()
            stick = page.locator("#stick-one")
            stick.scroll_into_view_if_needed()
            box = stick.bounding_box()
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            page.mouse.move(x, y)
            page.mouse.down()
            page.mouse.move(x, y - box["height"] / 2, steps=3)
            wait(page, "hwm.applied.LINEAR_VELOCITY > 0.8")
            page.mouse.up()
            wait(page, "hwm.idle && hwm.applied.LINEAR_VELOCITY === 0")
            page.get_by_role("button", name="Left hand").tap()
            wait(page, "hwm.applied.LEFT_HAND_CLOSURE > 0.4 || hwm.wanted.LEFT_HAND_CLOSURE === 0")


TABBABLE = """() => {
    const seen = (one) => one.checkVisibility({visibilityProperty: true}) && !one.disabled && one.tabIndex >= 0;
    const all = [...document.querySelectorAll('a[href], button, input, summary, select, textarea')].filter(seen);
    const chosen = (one) => one.type !== 'radio' || one.checked;  // of a group, the tab key reaches one
    return all.filter(chosen).map((one, i) => {
        one.dataset.tab = i;
        return (one.ariaLabel || one.labels?.[0]?.textContent || one.textContent).trim();
    });
}"""
FOCUS = """() => {
    const one = document.activeElement;
    const ring = (other) => other && getComputedStyle(other).outlineStyle !== 'none';
    return [one.dataset.tab ?? null, ring(one) || ring(one.nextElementSibling) || ring(one.closest('label'))];
}"""


def test_the_tab_key_reaches_everything_and_shows_where_it_is(page: Any) -> None:
    page.evaluate("() => document.querySelectorAll('details').forEach((one) => (one.open = true))")
    names = page.evaluate(TABBABLE)
    assert len(names) > 60
    assert all(names), names
    reached = set()
    for _ in range(len(names) + 3):
        page.keyboard.press("Tab")
        tab, marked = page.evaluate(FOCUS)
        if tab is not None:
            assert marked, names[int(tab)]
            reached.add(int(tab))
    assert {names[i] for i in range(len(names)) if i not in reached} == set()
    page.locator("#undo").focus()
    page.keyboard.down("w")  # letters drive wherever the focus is, but for boxes that one writes in
    wait(page, "hwm.wanted.LINEAR_VELOCITY > 0.5")
    page.keyboard.down("Shift")
    wait(page, "hwm.applied.LINEAR_VELOCITY > 0.89")
    page.keyboard.up("Shift")
    wait(page, "hwm.applied.LINEAR_VELOCITY < 0.6")
    page.keyboard.up("w")
    page.get_by_label("Drive: forward (W)").focus()
    page.keyboard.down("Enter")
    wait(page, "hwm.wanted.LINEAR_VELOCITY > 0.5")
    page.keyboard.up("Enter")
    wait(page, "hwm.idle")
    n = page.evaluate("hwm.n")
    page.get_by_label("Seed", exact=True).focus()
    page.keyboard.type("3w")
    page.wait_for_timeout(300)
    assert page.evaluate("hwm.n") == n


CONTRAST = """() => {
    const paint = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const rgba = (colour) => {
        paint.clearRect(0, 0, 1, 1);
        paint.fillStyle = colour;
        paint.fillRect(0, 0, 1, 1);
        return [...paint.getImageData(0, 0, 1, 1).data].map((c) => c / 255);
    };
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b) + 0.05;
    const behind = (one) => {
        const colour = rgba(getComputedStyle(one).backgroundColor);
        return colour[3] === 1 ? colour : behind(one.parentElement);
    };
    const text = (one) => [...one.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    const left_out = 'figure, .fixed, .over';  // on pictures, disabled, invisible
    const all = [...document.querySelectorAll('header *, #stage *, #panel *')];
    return all.filter((one) => one.checkVisibility() && text(one) && !one.closest(left_out)).map((one) => {
        const [ink, ground] = [light(rgba(getComputedStyle(one).color)), light(behind(one))];
        return [Math.max(ink, ground) / Math.min(ink, ground), one.textContent.trim().slice(0, 40)];
    });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(browser: Any, address: str, scheme: str, tmp_path: Path) -> None:
    with page_of(browser, address, **DESKTOP, color_scheme=scheme, reduced_motion="reduce") as page:
        page.evaluate("() => document.querySelectorAll('details').forEach((one) => (one.open = true))")
        page.screenshot(path=tmp_path / f"{scheme}.png")
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground))) > 384) == (scheme == "light")
        contrasts = page.evaluate(CONTRAST)
        assert len(contrasts) > 60
        assert [c for c in contrasts if c[0] < 4.5] == []
        assert page.evaluate("getComputedStyle(document.querySelector('button')).transitionDuration") == "0s"
        page.keyboard.press("?")
        assert page.get_by_role("dialog", name="All keys").is_visible()
        page.keyboard.press("Escape")
        assert not page.locator("#legend").is_visible()


# ---------------------------------------------------------------------- other worlds, other times
@contextmanager
def toy_server(folder: Path, port: int = 0) -> Iterator[str]:
    """A server of another robot in this process; its address."""
    import uvicorn

    from hwm.interact.server import LOCAL, application
    from tests.interact.test_server import make_server

    server = make_server(folder)
    server.hosts = LOCAL
    running = uvicorn.Server(uvicorn.Config(application(server), log_level="warning", timeout_graceful_shutdown=3))
    listening = socket.create_server(("127.0.0.1", port))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        running.should_exit = True
        thread.join(30)
        listening.close()


def test_a_robot_of_other_actions_has_sliders_alone(browser: Any, tmp_path: Path) -> None:
    with toy_server(tmp_path) as address, page_of(browser, address) as page:
        assert page.locator(".cap").count() == 0
        page.get_by_text("Every joint").click()
        assert page.locator("#joints input").count() == 3
        page.get_by_label("elbow").fill("0.5")
        wait(page, "hwm.n > 2 && Math.abs(hwm.applied.elbow - 0.5) < 0.05")


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
