"""Playing in a browser: frames a second and the time from key to picture, against the model alone in one process.

Headless Chromium opens the page of `hwm play`, holds W and turns left and right, once as fast as frames come and once
in the world's real time. The latency is the page's own: from a key going down to the first picture drawn of a step that
was sent after it. The baseline is a session stepped in a loop, each step computed and decoded, with neither server nor
browser. Server, browser and page share this machine's cores.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from typing import Any

import torch
from common import parser, report
from play_load import server

from hwm.interact.session import Session

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PRESS_MS, PAUSE_MS = 400, 350  # of the turns


def find_browser() -> str | None:
    """A Chromium of this machine, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def missing() -> str | None:
    """What this benchmark lacks on this machine, or None."""
    if find_browser() is None:
        return f"none of the browsers {', '.join(BROWSERS)} is installed"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError as error:
        return f"{error} (extra `dev`)"
    return None


def model_alone(seconds: float, threads: int) -> float:
    """Frames a second of a session that nobody watches."""
    torch.set_num_threads(threads)
    session = Session.open()
    shown = len(session.reset("start:1"))
    drive = {"LINEAR_VELOCITY": 0.5}
    session.step(drive)
    steps, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds:
        session.step(drive, ramp=True)
        steps += 1
    return steps * shown / spent


def drive(page: Any, pace: str, seconds: float) -> dict[str, float]:
    """Hold W and turn; frames a second and latencies in ms of that time."""
    page.get_by_label(pace).check()
    page.keyboard.press("n")
    page.keyboard.down("w")
    page.wait_for_timeout(1000)
    drawn, before, begun = page.evaluate("[hwm.drawn, hwm.keyLatencies.length, performance.now()]")
    turns = 0
    while page.evaluate("performance.now()") - begun < 1e3 * seconds:
        page.keyboard.down("ad"[turns % 2])
        page.wait_for_timeout(PRESS_MS)
        page.keyboard.up("ad"[turns % 2])
        page.wait_for_timeout(PAUSE_MS)
        turns += 1
    figures = page.evaluate("({drawn: hwm.drawn, keys: hwm.keyLatencies, now: performance.now(), server: hwm.server})")
    page.keyboard.up("w")
    latencies = sorted(figures["keys"][before:])
    return {
        "fps": 1e3 * (figures["drawn"] - drawn) / (figures["now"] - begun),
        "median_latency_ms": statistics.median(latencies),
        "p95_latency_ms": latencies[int(0.95 * len(latencies))],
        "keys": len(latencies),
        **{f"{name}_ms": value for name, value in figures["server"].items()},
    }


def measure(seconds: float, threads: int) -> dict[str, dict[str, float]]:
    """Both paces: name -> figures."""
    from playwright.sync_api import sync_playwright

    problems: list[str] = []
    with server("--threads", str(threads)) as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser())
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"http://{address}/")
        page.wait_for_function("() => window.hwm?.connected")
        found = {
            "fast": drive(page, "As fast as possible", seconds),
            "real": drive(page, "Real time", seconds),
        }
        browser.close()
    if problems:
        raise SystemExit(f"the page has errors: {problems[:3]}")
    return found


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--seconds", type=float, default=60, help="of driving, at each of the two paces")
    a = p.parse_args()
    if lacking := missing():
        print(json.dumps({"skipped": lacking}))
        return
    seconds = 3.0 if a.quick else a.seconds
    threads = a.threads or max(1, torch.get_num_threads() - 1)  # as the server chooses them
    alone = model_alone(max(2.0, seconds / 6), threads)
    found = measure(seconds, threads)
    fast, real = found["fast"], found["real"]
    report(
        a.json,
        ours=fast.pop("fps"),
        baseline=alone,
        unit="frames a second in the browser (baseline: the model alone, in process); more is better",
        seconds=seconds,
        threads=threads,
        **fast,
        **{f"real_time_{name}": value for name, value in real.items()},
    )


if __name__ == "__main__":
    main()
