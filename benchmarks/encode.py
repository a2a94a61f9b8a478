"""Encoding a recording against the plain way: each frame decoded, resized and encoded in turn, one a call.

The recording is made first. Decoding, resizing and the tokenizer are also timed apart, in frames a second; `overlap` is
how much shorter encoding took than these three one after the other. With `--source DIR` other data is encoded.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import parser, report

from hwm.data.sources import Source, SourceOptions, open_source
from hwm.data.store import Header
from hwm.data.writer import Writer
from hwm.devices import device_of
from hwm.encode.episodes import EncodeConfig, encode
from hwm.loading import load_tokenizer
from hwm.pictures.video import to_video, write_video
from hwm.types import Tokenizer


def record(folder: Path, episodes: int, frames: int, size: int) -> None:
    """Pictures of moving shapes, which cost a decoder about what a room does."""
    names = ("forward", "turn")
    writer = Writer(folder, Header(embodiment="toy", action_names=names, actions_per_step=1, fps=30.0))
    y, x = np.mgrid[:size, :size]
    for e in range(episodes):
        rng = np.random.default_rng(e)
        speeds, places = rng.uniform(-4, 4, (12, 2)), rng.uniform(0, size, (12, 2))
        colours, radii = rng.integers(40, 255, (12, 3)), rng.uniform(size / 20, size / 6, 12)

        def picture(
            t: int, places: Any = places, speeds: Any = speeds, colours: Any = colours, radii: Any = radii
        ) -> Any:
            frame = np.stack([x, y, (x + y) // 2], -1) * 120 // size
            for place, speed, colour, radius in zip(places, speeds, colours, radii, strict=True):
                at = (place + t * speed) % size
                frame[(y - at[0]) ** 2 + (x - at[1]) ** 2 < radius**2] = colour
            return frame.astype(np.uint8)

        film = folder / f"{e}.mp4"
        write_video(film, map(picture, range(frames)), 30)
        writer.add(f"e{e}", rng.normal(size=(frames, 1, 2)), video=film)
    writer.finish()


def plain(source: Source, tokenizer: Tokenizer) -> int:
    """One frame a call, and nothing at the same time as anything else."""
    device, count = device_of(tokenizer, torch.device("cpu")), 0
    for episode in source:
        with torch.inference_mode():
            for frame in episode.frames():
                tokenizer.encode(to_video([frame], tokenizer.size)[None].to(device)).cpu()
                count += 1
    return count


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("--tokenizer", default="tiny")
    p.add_argument("--source", type=Path, help="data to encode in place of shapes")
    p.add_argument("--camera", default="")
    p.add_argument("--size", type=int, default=256, help="of the pictures")
    p.add_argument("--batch", type=int, default=64)
    o = p.parse_args()
    if o.threads:
        torch.set_num_threads(o.threads)
    episodes, frames, size = (2, 12, 64) if o.quick else (4, 300, o.size)
    name = "pixels-32x32" if o.quick else o.tokenizer
    tokenizer = load_tokenizer(name, "auto")
    device = device_of(tokenizer, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as scratch:
        if o.source is None:
            record(Path(scratch) / "recording", episodes, frames, size)
        source = open_source(o.source or Path(scratch) / "recording", SourceOptions(camera=o.camera))
        films: list[list[np.ndarray]] = []
        decode = timed(lambda: films.extend(list(e.frames()) for e in source))
        count = sum(map(len, films))
        batches = [film[i : i + o.batch] for film in films for i in range(0, len(film), o.batch)]
        small: list[torch.Tensor] = []
        resize = timed(lambda: small.extend(to_video(b, tokenizer.size, device)[None] for b in batches))
        with torch.inference_mode():
            tokenizer.encode(small[0]).cpu()  # what is done once is not what is measured
            tokens = timed(lambda: [tokenizer.encode(x).cpu() for x in small])
        baseline = timed(lambda: plain(source, tokenizer))
        with contextlib.redirect_stdout(sys.stderr):  # where its progress belongs here
            ours = timed(lambda: encode(source, tokenizer, Path(scratch) / "out", EncodeConfig(batch=o.batch)))
    report(
        o.json, ours=ours / count * 1000, baseline=baseline / count * 1000, unit="ms a frame", tokenizer=tokenizer.id,
        frames=count, batch=o.batch, decode_frames_per_second=count / decode, resize_frames_per_second=count / resize,
        tokenizer_frames_per_second=count / tokens, ours_frames_per_second=count / ours,
        baseline_frames_per_second=count / baseline, overlap=1 - ours / (decode + resize + tokens),
    )  # fmt: skip


if __name__ == "__main__":
    main()
