"""What the headers of H.264 tell and its decoder keeps to itself: that pictures are missing (ITU-T H.264, 7.3 and 7.4).

Pictures that others are made from are numbered, `frame_num`. Where one is missing, the decoder makes up what it needs
and marks nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

SLICE, IDR, SPS, PPS = 1, 5, 7, 8
PLANES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
"""Profiles whose parameter sets say how colours are stored."""


class Bits:
    """The bits of a unit, from the one after its first byte on."""

    def __init__(self, unit: bytes) -> None:
        plain = unit[1:].replace(b"\0\0\3", b"\0\0")
        self.value, self.left = int.from_bytes(plain, "big"), 8 * len(plain)

    def read(self, count: int) -> int:
        self.left -= count
        if self.left < 0:
            raise EOFError
        return self.value >> self.left & (1 << count) - 1

    def number(self) -> int:
        """An unsigned Exp-Golomb code."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)


class Parameters(NamedTuple):
    """Of a sequence: bits of a frame number, whether planes are coded apart, and whether numbers may be left out."""

    bits: int
    apart: bool
    gaps: bool


def parameters(unit: bytes) -> tuple[int, Parameters]:
    """The number of a sequence parameter set, and what it says."""
    bits = Bits(unit)
    profile, _, number, apart = bits.read(8), bits.read(16), bits.number(), False
    if profile in PLANES:
        chroma = bits.number()
        apart = chroma == 3 and bool(bits.read(1))
        bits.number(), bits.number(), bits.read(1)
        if bits.read(1):
            for i in range(12 if chroma == 3 else 8):
                if bits.read(1):
                    _pass_scaling(bits, 16 if i < 6 else 64)
    length, order = bits.number() + 4, bits.number()
    if order == 0:
        bits.number()
    elif order == 1:
        bits.read(1), bits.number(), bits.number()
        for _ in range(bits.number()):
            bits.number()
    bits.number()
    return number, Parameters(length, apart, bool(bits.read(1)))


def _pass_scaling(bits: Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            code = bits.number()
            following = (last + (code + 1) // 2 * (1 if code % 2 else -1)) % 256
        last = following or last


def header_of(stream: Any) -> bytes:
    """The header that a container keeps for a stream."""
    return bytes(stream.codec_context.extradata or b"")


class References:
    """Follows the numbers of pictures, packet by packet in the order of decoding.

    Args:
        header: of the stream: `avcC` (ISO/IEC 14496-15), units after start codes, or nothing.
    """

    def __init__(self, header: bytes) -> None:
        self.sequences: dict[int, Parameters] = {}
        self.pictures: dict[int, int] = {}
        self.last: int | None = None
        self.length = 0
        if header[:1] != b"\1" or len(header) < 7:
            for unit in self.units(header):
                self._learn(unit)
            return
        self.length = (header[4] & 3) + 1
        at, count = 6, header[5] & 31
        for _ in range(2):  # the sets of sequences, and those of pictures
            for _ in range(count):
                size = int.from_bytes(header[at : at + 2], "big")
                self._learn(header[at + 2 : at + 2 + size])
                at += 2 + size
            count, at = (header[at] if at < len(header) else 0), at + 1

    def units(self, data: bytes) -> Iterator[bytes]:
        """The units of a packet, without what separates them."""
        if not self.length:
            yield from (unit for unit in data.split(b"\0\0\1")[1:] if unit)
            return
        at = 0
        while at + self.length < len(data):
            size = int.from_bytes(data[at : at + self.length], "big")
            yield data[at + self.length : at + self.length + size]
            at += self.length + size

    def _learn(self, unit: bytes) -> None:
        try:
            if unit[0] & 31 == SPS:
                number, about = parameters(unit)
                self.sequences[number] = about
            elif unit[0] & 31 == PPS:
                bits = Bits(unit)
                self.pictures[bits.number()] = bits.number()
        except (EOFError, IndexError):
            pass  # what cannot be read is for the decoder to tell

    def begins(self, data: bytes) -> bool:
        """Whether all from this packet on can be decoded; from other key frames on, it may take some frames."""
        return any(unit[0] & 31 == IDR for unit in self.units(data))

    def missing(self, data: bytes) -> bool:
        """Whether pictures are missing that this packet's, or those shown just before it, may be made from."""
        for unit in self.units(data):
            if unit[0] & 31 in (SPS, PPS):
                self._learn(unit)
            elif unit[0] & 31 in (SLICE, IDR):
                return self._follow(unit)
        return False

    def _follow(self, unit: bytes) -> bool:
        bits = Bits(unit[:32])
        try:
            bits.number(), bits.number()
            about = self.sequences[self.pictures[bits.number()]]
            if about.apart:
                bits.read(2)
            number = bits.read(about.bits)
        except (EOFError, KeyError):
            self.last = None
            return False
        last = number if self.last is None or unit[0] & 31 == IDR else self.last
        ahead = (number - last) % (1 << about.bits)
        if unit[0] >> 5 & 3:  # others are made from it
            self.last = number
        # they may begin anew with any picture (memory_management_control_operation 5), so low ones say little
        return ahead > 1 and not about.gaps and (number > 1 or ahead < 4)
