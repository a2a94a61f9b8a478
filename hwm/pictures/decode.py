"""Decoding the frames of a video file, each known by its number, and none of them damaged."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from itertools import islice
from typing import Any

import av
from av.codec.hwaccel import HWAccel

from hwm.errors import HwmError
from hwm.pictures.h264 import References, header_of
from hwm.pictures.index import FrameIndex, Key, open_video, video_stream

TELLS_BY_ERRORS = ("mjpeg",)
"""Decoders that mark no picture as damaged, but can be made to fail. Others would fail on harmless oddities as well."""


class DamageError(Exception):
    """A frame is not as it was encoded, or does not come. Its number and why."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.number = number


def decoded(index: FrameIndex, start: int = 0) -> Iterator[tuple[int, Any]]:
    """Yield the frames of a file from `start` on, with their numbers; decoding begins at the last possible key frame.

    A frame that is missed after a jump, or damaged, is looked for again from the beginning: not every frame that is
    called a key frame is one.

    Raises:
        HwmError: a frame is damaged or missing.
    """
    key = index.key(start)
    while True:
        try:
            with closing(_opened(index.path)) as container:
                for number, frame in _from(index, container, key):
                    if number >= start:
                        start = number + 1
                        yield number, frame
            return
        except (DamageError, av.FFmpegError) as error:
            if key is None:
                raise HwmError(_wrong(index, error)) from error
            key = None


def _wrong(index: FrameIndex, error: Exception) -> str:
    if isinstance(error, DamageError):
        return f"the video {index.path} is damaged at frame {error.number} of {len(index)}: {error}"
    return f"cannot read the video {index.path}: {error}"


def _from(index: FrameIndex, container: Any, key: Key | None) -> Iterator[tuple[int, Any]]:
    """Frames from a key frame on, or from the beginning, of which none is missing."""
    stream = video_stream(container, index.path)
    if stream.codec_context.name in TELLS_BY_ERRORS:
        stream.codec_context.options = {"err_detect": "explode"}
    number, exact = key.number if key else 0, len(index.stamps) > 0
    began, first = (key.stamp if key else index.keys[0, 1]), (index.stamps[number] if exact else 0)
    references = References(header_of(stream)) if stream.codec_context.name == "h264" else None
    for packet in _after(container, stream, key) if key else islice(container.demux(stream), index.skipped, None):
        if packet.is_corrupt:
            raise DamageError(number, "its data are incomplete")
        if references and references.missing(bytes(packet)):
            raise DamageError(number, "frames that it is made from are missing from the file")
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            if exact and packet.pts is not None and packet.pts < began:
                continue  # it is shown before the key frame, and needs what lies before that
            raise DamageError(number, f"the decoder says: {error.strerror}") from error
        for frame in frames:
            if exact and frame.pts is not None and frame.pts < first:
                continue
            if number == len(index):
                raise DamageError(number, "more frames are decoded than there are packets")
            if exact and frame.pts != index.stamps[number]:
                raise DamageError(number, "it does not come out of the decoder")
            if frame.is_corrupt:
                raise DamageError(number, "the decoder had to make up parts of it")
            yield number, frame
            number += 1
    if number < len(index):
        raise DamageError(number, "it does not come out of the decoder")


def _after(container: Any, stream: Any, key: Key) -> Iterator[Any]:
    """Packets from a key frame on. What is met on the way to it is passed over: few containers seek exactly."""
    container.seek(key.seek, stream=stream)
    packets = container.demux(stream)
    for packet in packets:
        if packet.pts == key.stamp:
            yield packet
            yield from packets
            return
        if packet.pts is not None and packet.pts > key.stamp:
            break
    raise DamageError(key.number, "its key frame is not found")


@cache
def _cannot(device: str, why: str) -> None:
    print(f"videos are not decoded on {device} ({why}), but in software", file=sys.stderr)


def _opened(path: str) -> Any:
    """A video, opened to be decoded by the hardware that HWM_DECODE names (such as `cuda`), or in software."""
    device = os.environ.get("HWM_DECODE", "")
    if device:
        try:
            hardware = HWAccel(device_type=device, allow_software_fallback=True)
            return av.open(path, hwaccel=hardware, metadata_errors="replace")
        except (av.FFmpegError, ValueError) as error:
            _cannot(device, str(error))
    return open_video(path)
