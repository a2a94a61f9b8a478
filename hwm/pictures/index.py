"""Which frame of a video file is which: the times at which its frames are shown, read from its packets.

A container says when each packet's picture is shown, and numbers none: frames may have been dropped, begin late, be cut
away by an edit list, or lie unevenly. So frames are numbered in the order of these times, and after a jump are known by
their times alone. Nothing is decoded for it: besides reading the file, an hour takes under a second.
"""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from hwm.errors import HwmError
from hwm.pictures.h264 import References, header_of
from hwm.pictures.turn import Turn, turn_of

GUESSED = "avi"
"""The container that stores no times of showing; FFmpeg's guesses are wrong where frames are reordered."""


class Key(NamedTuple):
    """A key frame to jump to: its time stamp, where to seek for it, and the number of the first frame that it shows."""

    stamp: int
    seek: int
    number: int


@dataclass(frozen=True, eq=False)
class FrameIndex:
    """The frames that a video file shows, in order.

    Attributes:
        times: (N,) seconds at which they are shown, counted from the first one.
        start: seconds at which the first is shown on the file's own timeline.
        rate: frames a second, as declared where their times agree; 0 where nothing tells.
        stored: width and height of the pictures before they are turned.
        pixel_aspect: width of a pixel as shown over its height.
        stamps: (N,) the times as time stamps of the stream; empty where the container has none to be relied on, so that
            its frames are known only by counting from the first.
        skipped: packets at the beginning that come before any key frame and so cannot be decoded.
        keys: (K, 3) position among the packets, time stamp and where to seek of each key frame.
        least: (N,) the first position among the packets of this or any later frame.
    """

    path: str
    times: np.ndarray
    start: float
    rate: float
    stored: tuple[int, int]
    pixel_aspect: float
    stamps: np.ndarray
    skipped: int
    keys: np.ndarray
    least: np.ndarray

    def __len__(self) -> int:
        return len(self.times)

    def key(self, number: int) -> Key | None:
        """The last key frame from which a frame and all after it can be decoded; None if this is the beginning.

        Pictures that come after a key frame in the file but are shown before it need what lies before it.
        """
        if not len(self.stamps) or not 0 < number < len(self):
            return None
        by_position = np.searchsorted(self.keys[:, 0], self.least[number], "right")
        by_time = np.searchsorted(self.keys[:, 1], self.stamps[number], "right")
        k = int(min(by_position, by_time)) - 1
        if k < 1:
            return None
        stamp, seek = (int(x) for x in self.keys[k, 1:])
        return Key(stamp, seek, int(np.searchsorted(self.stamps, stamp)))

    def nearest(self, times: np.ndarray, within: float) -> np.ndarray:
        """(M,) numbers of the frames shown closest to some times, -1 where there is none within so many seconds."""
        after = np.searchsorted(self.times, times).clip(0, len(self) - 1)
        before = (after - 1).clip(0)
        number = np.where(times - self.times[before] <= self.times[after] - times, before, after)
        return np.where(np.abs(self.times[number] - times) <= within, number, -1)

    @cached_property
    def turn(self) -> Turn:
        """How a player turns the pictures; a frame is decoded to know it."""
        with closing(open_video(self.path)) as container:
            return turn_of(self.path, first_frame(container, self.path, self.skipped))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the pictures as a player turns them."""
        width, height = self.stored
        return (height, width) if self.turn.swap else (width, height)


def frame_index(path: str | Path) -> FrameIndex:
    """The index of a video file, kept in memory until the file changes.

    Raises:
        HwmError: the file is missing, holds no video, or ends before its last frame.
    """
    if not Path(path).is_file():
        raise HwmError(f"there is no video {path}")
    about = Path(path).stat()
    return _kept(str(path), about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=256)
def _kept(path: str, _size: int, _changed: int) -> FrameIndex:
    try:
        with closing(open_video(path)) as container:
            return _read(path, container, video_stream(container, path))
    except av.FFmpegError as error:
        raise HwmError(f"cannot read the video {path}: {error}") from error


def open_video(path: str | Path) -> Any:
    """A container to read from, whose frames are decoded in software."""
    return av.open(str(path), metadata_errors="replace")


def video_stream(container: Any, path: str | Path) -> Any:
    """The first video of a file, but for the picture of a cover."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    raise HwmError(f"{path} has no video stream")


def first_frame(container: Any, path: str | Path, skipped: int) -> Any:
    """The first frame that can be decoded."""
    packets = (p for p in container.demux(video_stream(container, path)))
    for i, packet in enumerate(packets):
        if i >= skipped:
            for frame in packet.decode():
                return frame
    raise HwmError(f"no frame of the video {path} can be decoded")


def _read(path: str, container: Any, stream: Any) -> FrameIndex:
    rows, opening = [], b""
    for p in container.demux(stream):
        if p.size:
            rows.append((p.pts, p.dts, p.duration or 0, p.is_keyframe, p.is_discard))
            opening = opening or (bytes(p) if p.is_keyframe else b"")
    size = stream.codec_context.width, stream.codec_context.height
    if not all(size):
        raise HwmError(f"cannot read the video {path}: what it holds is no picture")
    if not rows:
        raise HwmError(f"{path} is truncated: it shows no frames")
    pts, dts, lasts, key, discarded = (list(column) for column in zip(*rows, strict=True))
    keys = np.flatnonzero(key) if any(key) else np.zeros(1, np.int64)
    skipped = int(keys[0])
    base, rate = stream.time_base or Fraction(1), stream.average_rate or 25
    exact = _exact(pts, keys, container.format.name)
    stamp = np.asarray(pts if exact else _counted(dts, float(1 / rate / base)), np.int64)
    shown = ~np.asarray(discarded) & (np.arange(len(rows)) >= skipped)
    late = opening and stream.codec_context.name == "h264" and not References(header_of(stream)).begins(opening)
    if exact and (late or (shown & (stamp < stamp[skipped])).any()):  # what can be made out, only decoding tells
        with closing(open_video(path)) as again:
            first = first_frame(again, path, skipped).pts
        shown &= stamp >= (stamp[skipped] if first is None else first)
    if not shown.any():
        raise HwmError(f"{path} shows no frames")
    order = np.flatnonzero(shown)
    order = order[np.argsort(stamp[order], kind="stable")]
    _check_end(path, stream, len(rows), stamp[order], lasts[order[-1]])
    seconds = (stamp[order] - stamp[order[0]]) * float(base)
    seek = [stamp[k] if dts[k] is None else min(stamp[k], dts[k]) for k in keys]
    return FrameIndex(
        path=path,
        times=seconds,
        start=float(stamp[order[0]] * base),
        rate=_rate(stream, np.diff(seconds), float(base)),
        stored=size,
        pixel_aspect=float(stream.sample_aspect_ratio or 1),
        stamps=stamp[order] if exact else np.zeros(0, np.int64),
        skipped=skipped,
        keys=np.stack([keys, stamp[keys], np.asarray(seek)], 1),
        least=np.minimum.accumulate(order[::-1])[::-1],
    )


def _exact(pts: list[int | None], keys: np.ndarray, container: str) -> bool:
    """Whether time stamps tell each frame from all others, and in which order they are shown."""
    if None in pts or len(set(pts)) < len(pts) or (container == GUESSED and len(keys) < len(pts)):
        return False
    return bool((np.diff([pts[k] for k in keys]) > 0).all())  # else the clock was set back in between


def _counted(dts: list[int | None], step: float) -> list[int]:
    """Time stamps of frames in the order in which they come, for want of those at which they are shown."""
    known = [t for t in dts if t is not None]
    return sorted(known) if len(known) == len(dts) else [round(i * step) for i in range(len(dts))]


def _check_end(path: str, stream: Any, packets: int, stamps: np.ndarray, last: int) -> None:
    """Raise if a file was cut: it ends before it declares.

    Where a number of packets is declared there are to be fewer as well, as edited files may keep an old duration. Fewer
    alone are no fault: edit lists hide packets, and AVI counts pauses, so that its number is its end.
    """
    until, gap = None, float(np.median(np.diff(stamps))) if len(stamps) > 1 else last
    end = stamps[-1] + max(last, gap)  # not all packets say how long they are shown
    if stream.frames > packets and stream.duration is not None:
        counts = stream.container.format.name == GUESSED
        until = stream.frames if counts else (stream.start_time or 0) + stream.duration
    elif tag := re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", "")):  # of Matroska
        hours, minutes, seconds = map(float, tag.groups())
        until = (3600 * hours + 60 * minutes + seconds) / float(stream.time_base or 1)
    if until is not None and end + gap / 2 < until:
        seconds_of = float(stream.time_base or 1)
        held = f"{packets} of {stream.frames} frames" if stream.frames else f"{packets} frames"
        raise HwmError(f"{path} is truncated: it holds {held}, {end * seconds_of:.2f} of {until * seconds_of:.2f} s")


def _rate(stream: Any, gaps: np.ndarray, tick: float) -> float:
    """Frames a second; where now and then one was dropped, that of the others."""
    declared = [float(r) for r in (stream.average_rate, stream.base_rate) if r]
    if not gaps.any():
        return declared[0] if declared else 0.0
    usual = float(np.median(gaps))
    near = gaps[np.abs(gaps - usual) <= max(1.5 * tick, 0.05 * usual)]
    even = 2 * len(near) > len(gaps) and gaps.mean() > 0.95 * usual  # what is dropped makes gaps longer, never shorter
    rate = float(1 / (near if even and usual else gaps).mean())
    fits = [r for r in declared if abs(r / rate - 1) < max(0.01, rate * tick)]
    return min(fits, key=lambda r: abs(r - rate), default=rate)
