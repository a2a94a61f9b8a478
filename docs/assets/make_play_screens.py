"""Make the pictures of docs/play.md: drive for a minute by a fixed script, and see what is on the screen on the way.

python docs/assets/make_play_screens.py OUT [--model runs/mine] [--store data/heldout] [--start start:0] [--twin]

The robot turns about, drives ahead and looks around; seconds are the world's, whatever the machine's speed. OUT gets
the page at each of the times and `sheet.png`, what the robot sees then, with the simulator's pictures below if they
are wanted. Without a browser the same is driven by `hwm.interact.client`, and the sheet is all that comes of it.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from play_browser import find_browser, missing
from play_load import server

DRIVE = ((2, "a"), (2, "w"), (3, "d"), (2, "w"), (1, "i"), (2, "s"), (2, "a"), (1, "k"), (1, "u"), (3, "d"), (1, "j"))
"""Seconds in the world and the key that is held meanwhile, again and again."""
MOVES = {
    "w": ("LINEAR_VELOCITY", 1), "s": ("LINEAR_VELOCITY", -1), "a": ("ANGULAR_VELOCITY", 1),
    "d": ("ANGULAR_VELOCITY", -1), "i": ("NECK_PITCH", -1), "k": ("NECK_PITCH", 1),
    "u": ("LEFT_SHOULDER_PITCH", -1), "j": ("LEFT_SHOULDER_PITCH", 1),
}  # fmt: skip
"""What a key does to which action, without the page."""
EASY = 0.65
"""Of the fastest in the data, as keys of the page drive."""
SIDE = 256
"""Pixels of a picture in the sheet."""

Seen = dict[float, list[Image.Image]]
"""By the seconds driven: what the model shows, and what the simulator shows if it runs."""


def keys_by_step(steps: int, fps: float) -> Iterator[str]:
    """The key that is held at each step."""
    done = 0
    for seconds, key in cycle(DRIVE):
        for _ in range(round(seconds * fps)):
            if done == steps:
                return
            done += 1
            yield key


def by_page(address: str, out: Path, o: argparse.Namespace) -> tuple[Seen, dict[str, Any]]:
    """Drive in the page; also saves the page itself."""
    from playwright.sync_api import sync_playwright

    seen, figures = Seen(), dict[str, Any]()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser())
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(120_000)
        page.goto(f"http://{address}/")
        page.wait_for_function("() => window.hwm?.connected")
        if o.preset:
            page.locator(f'#presets input[value="{o.preset}"]').check()
        if o.twin:
            page.keyboard.press("b")
            page.wait_for_function("() => document.getElementById('twin-hint').textContent.includes('joins')")
        begins = page.evaluate("hwm.begins")
        page.locator(f'#gallery [data-start="{o.start}"]').click()
        page.wait_for_function(f"() => hwm.begins > {begins} && hwm.idle")
        fps, held = page.evaluate("hwm.stepsPerSecond"), ""
        at = {round(t * fps): t for t in o.times}
        for step, key in enumerate(keys_by_step(max(at) + 1, fps)):
            if step in at or key != held:
                page.wait_for_function(f"() => hwm.n >= {step}")
            if step in at:
                seen[at[step]] = look(page, out / f"page_{at[step]:g}s.png", o.twin)
                figures[f"{at[step]:g}"] = page.evaluate("hwm.likeness")
            if key != held:
                if held:
                    page.keyboard.up(held)
                page.keyboard.down(key)
                held = key
        browser.close()
    return seen, figures


def look(page: Any, path: Path, twin: bool) -> list[Image.Image]:
    """Save the page as it is; the robot's views in it."""
    screen = Image.open(io.BytesIO(page.screenshot(path=path))).convert("RGB")
    views = []
    for name in ["model", "twin"][: 1 + twin]:
        box = page.locator(f"#{name}-view").bounding_box()
        left, top = round(box["x"]), round(box["y"])
        views.append(screen.crop((left, top, left + round(box["width"]), top + round(box["height"]))))
    return views


def by_client(address: str, o: argparse.Namespace) -> tuple[Seen, dict[str, Any]]:
    """The same without a page."""
    from hwm.interact.client import Client

    seen, figures = Seen(), dict[str, Any]()
    with Client(f"ws://{address}") as client:
        if o.preset:
            client.preset(o.preset)
        if o.twin:
            client.twin()
        client.reset(o.start)
        actions = {a["name"]: a for a in client.welcome["actions"]}
        fps = client.welcome["fps"]
        at, wanted = {round(t * fps): t for t in o.times}, dict[str, float]()
        for step, key in enumerate(keys_by_step(max(at), fps), 1):
            name, sign = MOVES[key]
            if (action := actions[name])["rest"] is None:
                stride = sign * EASY * client.welcome["actions_per_step"] * action["change"]
                wanted[name] = float(np.clip(wanted.get(name, 0.0) + stride, action["low"], action["high"]))
            now = {n: a["rest"] for n, a in actions.items() if a["rest"] is not None} | wanted
            if action["rest"] is not None:
                now[name] = EASY * action["high" if sign > 0 else "low"]
            shown = client.step(now)
            if step in at:
                views = [shown.frames[-1]] + ([shown.twin] if shown.twin is not None else [])
                seen[at[step]] = [Image.fromarray(view) for view in views]
                figures[f"{at[step]:g}"] = client.likeness or None
    return seen, figures


def sheet(seen: Seen) -> Image.Image:
    """A column for each time: the model's picture, and the simulator's below."""
    rows = max(map(len, seen.values()))
    made = Image.new("RGB", (len(seen) * (SIDE + 4) - 4, rows * (SIDE + 4) + 16), "white")
    pen = ImageDraw.Draw(made)
    for column, (seconds, views) in enumerate(sorted(seen.items())):
        pen.text(
            (column * (SIDE + 4) + 2, 2), f"{seconds:g} s" + (", below: the true simulator" if rows > 1 else ""), 0
        )
        for row, view in enumerate(views):
            made.paste(
                view.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (column * (SIDE + 4), 20 + row * (SIDE + 4))
            )
    return made


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path)
    p.add_argument("--model", default="masked_hwm_mini")
    p.add_argument("--store", default="mini_heldout")
    p.add_argument("--start", default="start:0")
    p.add_argument("--preset", default="", help="how to sample; by default as the page does")
    p.add_argument("--times", type=float, nargs="+", default=[5, 15, 30, 60], help="seconds of driving")
    p.add_argument("--twin", action="store_true", help="with the true simulator beside it")
    p.add_argument("--no-page", action="store_true", help="without a browser, even where there is one")
    o = p.parse_args()
    o.out.mkdir(parents=True, exist_ok=True)
    with server("--threads", "1", "--model", o.model, "--store", o.store) as (address, _):
        seen, figures = by_client(address, o) if o.no_page or missing() else by_page(address, o.out, o)
    sheet(seen).save(o.out / "sheet.png")
    print(json.dumps({"out": str(o.out), "likeness": figures}, indent=1))


if __name__ == "__main__":
    main()
