"""Make `play.gif` of the README: drive through the page of `hwm play` in a headless browser, and film the page.

python docs/assets/make_play_gif.py

The film runs at the speed at which it was played.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from itertools import pairwise
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[1] / "benchmarks"))
from play_browser import find_browser  # noqa: E402
from play_load import server  # noqa: E402

FRAMES_A_SECOND = 8
WIDTH = 760
COLOURS = 256
MOST_BYTES = 2_500_000
DRIVE = (
    (0.5, ""), (0.8, "a"), (0.2, ""), (1.1, "d"), (0.2, ""), (0.5, "a"),
    (1.0, "w"), (0.9, "s"), (0.9, "u"), (0.9, "o"), (0.8, "ul"), (0.4, ""),
)  # fmt: skip
"""Seconds, and the keys that are held meanwhile."""


def film(page: Page, start: str) -> tuple[list[Image.Image], list[int]]:
    """Pictures of the page while it is driven, and how many ms each was to be seen."""
    page.locator(f'#gallery [data-start="{start}"]').click()
    page.wait_for_timeout(800)
    pictures, times = list[Image.Image](), list[float]()
    begun = time.perf_counter()
    until, held = 0.0, ""
    for seconds, keys in DRIVE:
        for key in set(held) - set(keys):
            page.keyboard.up(key)
        for key in set(keys) - set(held):
            page.keyboard.down(key)
        held, until = keys, until + seconds
        while time.perf_counter() - begun < until:
            times.append(time.perf_counter())
            pictures.append(Image.open(io.BytesIO(page.screenshot(type="png"))).convert("RGB"))
            page.wait_for_timeout(max(1.0, 1e3 * (times[-1] + 1 / FRAMES_A_SECOND - time.perf_counter())))
    times.append(time.perf_counter())
    return pictures, [round(1e3 * (b - a)) for a, b in pairwise(times)]


def save(path: Path, pictures: list[Image.Image], durations: list[int]) -> None:
    """Write a GIF with one palette for all pictures, so that nothing flickers."""
    height = round(WIDTH * pictures[0].height / pictures[0].width)
    small = [picture.resize((WIDTH, height), Image.Resampling.LANCZOS) for picture in pictures]
    sample = small[:: max(1, len(small) // 6)]
    sheet = Image.new("RGB", (WIDTH, height * len(sample)))
    for i, picture in enumerate(sample):
        sheet.paste(picture, (0, i * height))
    palette = sheet.quantize(COLOURS, method=Image.Quantize.MEDIANCUT)
    frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in small]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)
    size = path.stat().st_size
    print(f"{path}: {len(frames)} pictures, {sum(durations) / 1e3:.1f} s, {size / 1e6:.2f} MB")
    if size > MOST_BYTES:
        raise SystemExit(f"{path} is larger than {MOST_BYTES / 1e6} MB")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=HERE / "play.gif")
    p.add_argument("--start", default="start:5", help="of the gallery")
    p.add_argument("--scheme", choices=("light", "dark"), default="dark")
    a = p.parse_args()
    with server("--threads", "1") as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser())
        page = browser.new_page(viewport={"width": 1220, "height": 740}, color_scheme=a.scheme)
        page.goto(f"http://{address}/")
        page.wait_for_function("() => window.hwm?.connected")
        page.wait_for_timeout(1500)  # thumbnails
        pictures, durations = film(page, a.start)
        browser.close()
    save(a.out, pictures, durations)


if __name__ == "__main__":
    main()
