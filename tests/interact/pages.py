"""A browser on the page of `hwm play`: what its tests share."""

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwm.assets import ROOT as ASSETS
from hwm.evaluate.obey import MOTIONS, motion_by_step

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS = [
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed"),
    pytest.mark.skipif(
        not (ASSETS / "masked_hwm_mini" / "model.safetensors").exists(), reason="needs the shipped model"
    ),
]
"""What a module of such tests is marked with."""

DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
PATIENCE = 60_000  # ms; tests run beside others
PRESETS = [
    {"name": "quick", "label": "Quick", "sampler": {}, "figures": {"psnr": 20.2, "fps": 23.0, "device": "a machine"}},
    {
        "name": "careful",
        "label": "Careful",
        "about": "Looks twice.",
        "sampler": {"steps": 2, "temperature": 1.0, "pick": "sample"},
    },
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
    (folder / "presets.json").write_text(json.dumps(PRESETS), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def address(model: Path) -> Iterator[str]:
    with play(model) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

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
    from PIL import Image

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


@contextmanager
def toy_server(folder: Path, port: int = 0, **options: Any) -> Iterator[str]:
    """A server of another robot in this process, made by `make_server`; its address."""
    import uvicorn

    from hwm.interact.server import application
    from hwm.interact.shared import LOCAL
    from tests.interact.test_server import make_server

    server = make_server(folder, **options)
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
