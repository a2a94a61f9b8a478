"""Films of all kinds that cameras and editors leave behind, whose frames carry their number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

WIDTH, HEIGHT, RATE, GOP = 96, 64, 30, 9
CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"crf": "20", "preset": "ultrafast", "bf": "0"}),
    "h264-b": ("libx264", {"crf": "20", "preset": "veryfast", "bf": "3", "b_strategy": "0"}),
    "h264-open": ("libx264", {"crf": "20", "preset": "veryfast", "bf": "3", "x264-params": "open-gop=1"}),
    "h264-refresh": ("libx264", {"crf": "20", "preset": "veryfast", "bf": "0", "x264-params": "intra-refresh=1"}),
    "hevc-open": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none:pools=1:open-gop=1:bframes=3"}),
    "vp8": ("libvpx", {"b": "1M", "deadline": "realtime", "cpu-used": "8"}),
    "vp9": ("libvpx-vp9", {"b": "1M", "deadline": "realtime", "cpu-used": "8"}),
    "av1": ("libsvtav1", {"preset": "8", "crf": "15", "svtav1-params": "lp=1"}),
    "mpeg4": ("mpeg4", {"b": "2M", "bf": "2"}),
    "mpeg2": ("mpeg2video", {"b": "2M", "bf": "2"}),
    "mjpeg": ("mjpeg", {"q": "3"}),
}
MP4 = ("h264", "h264-b", "h264-open", "h264-refresh", "hevc-open", "vp9", "av1", "mpeg4")
CONTAINERS: dict[str, tuple[str, dict[str, str], Sequence[str]]] = {
    "mp4": ("mp4", {}, MP4),
    "mp4 without edit lists": ("mp4", {"use_editlist": "0"}, ("h264-b", "h264-open", "hevc-open", "mpeg4")),
    "mp4 in fragments": ("mp4", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}, MP4),
    "mov": ("mov", {}, ("h264-b", "mjpeg", "mpeg2")),
    "mkv": ("mkv", {}, tuple(CODECS)),
    "webm": ("webm", {}, ("vp8", "vp9", "av1")),
    "avi": ("avi", {}, ("h264", "h264-b", "h264-open", "vp8", "mpeg4", "mjpeg")),
    "ts": ("ts", {}, ("h264", "h264-b", "h264-open", "h264-refresh", "hevc-open", "mpeg4", "mpeg2")),
    "flv": ("flv", {}, ("h264-b", "hevc-open")),
}


def picture(number: int) -> np.ndarray:
    """A frame that shows its number below 256 as eight dark or bright bars, and something that moves."""
    frame = np.random.default_rng(5).integers(60, 190, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    frame = np.roll(frame.repeat(8, 0).repeat(8, 1), 3 * number, 1)
    for bit, bar in enumerate(np.split(np.arange(WIDTH), 8)):
        frame[HEIGHT // 4 : -HEIGHT // 4, bar] = 235 if number >> bit & 1 else 20
    return frame


def number_of(frame: np.ndarray) -> int:
    bars = np.split(frame[HEIGHT // 4 + 4 : -HEIGHT // 4 - 4].mean((0, 2)), 8)
    return sum((bar[3:-3].mean() > 128) << bit for bit, bar in enumerate(bars))


def film(
    path: Path, codec: str, shown: Iterable[tuple[int, int]], options: dict[str, str] | None = None,
    aspect: Fraction = Fraction(1), gop: int = GOP,
) -> Path:  # fmt: skip
    """Write frames as (tick of 1/30 s, number in the picture)."""
    encoder, settings = CODECS[codec]
    with av.open(str(path), "w", options=options or {}) as file:
        stream: Any = file.add_stream(encoder, rate=RATE)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.options = {**settings, **({"sc_threshold": "0"} if encoder == "libx264" else {})}
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = gop
        stream.codec_context.sample_aspect_ratio = aspect
        for tick, number in shown:
            frame = av.VideoFrame.from_ndarray(picture(number), "rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def remux(
    source: Path, path: Path, options: dict[str, str] | None = None, keep: Callable[[int, Any], bool] | None = None,
    shift: float = 0.0, prepare: Callable[[Any], None] | None = None,
) -> Path:  # fmt: skip
    """Copy packets without decoding them: those that `keep` says of (number, packet), `shift` seconds later."""
    with av.open(str(source)) as old, av.open(str(path), "w", options=options or {}) as new:
        stream: Any = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        if prepare:
            prepare(copy)
        later = round(shift / stream.time_base)
        for i, packet in enumerate(old.demux(stream)):
            if packet.size and (keep is None or keep(i, packet)):
                packet.pts = None if packet.pts is None else packet.pts + later
                packet.dts = None if packet.dts is None else packet.dts + later
                packet.stream = copy
                new.mux(packet)
    return path


def plain(path: Path) -> list[np.ndarray]:
    """The frames that decoding a file from its beginning gives."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
