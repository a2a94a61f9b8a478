"""What the files of a submission have to be, and what is wrong with one that is not.

Compression: what is public is a checker that came with github.com/qasim-ali0/humanoid_world_model: `<ID>.npz`, 450 of
them, each `indices` int32 and `values` float32 of shape (3, 32, 32, 500), ids from 0 to 63,999, beside a `README.txt`
that is a JSON object of six fields. Files that hold one id twice in a cell, or values that are not finite, would pass
it and be worth nothing: they count as broken here. Sampling: nothing is public about its files.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

FIELDS = ("method", "team", "authors", "e-mail", "institution", "country")
"""What `README.txt` says of a submission."""
ARRAYS = {"indices": np.dtype(np.int32), "values": np.dtype(np.float32)}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGB_8_BIT = (8, 2, 0, 0, 0)
"""Bit depth, colour type, compression, filter and interlace of a PNG header."""


class Format(Protocol):
    """The files of one track: how they end, how many the challenge has, and how to look one over."""

    suffix: str
    samples: int

    def problems(self, file: Path) -> list[str]:
        """What is wrong with a file, each as what was expected and what was found; empty where nothing is."""
        ...


@dataclass(frozen=True)
class TopFormat:
    """`<ID>.npz` of the compression track.

    Attributes:
        shape: latent steps, rows, columns, and ids kept.
        vocab: how many ids there are.
    """

    shape: tuple[int, ...] = (3, 32, 32, 500)
    vocab: int = 64_000
    suffix = ".npz"
    samples = 450

    @property
    def size(self) -> int:
        """Bytes of a file, but for its headers."""
        return math.prod(self.shape) * sum(dtype.itemsize for dtype in ARRAYS.values())

    def problems(self, file: Path) -> list[str]:
        try:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return ["expected an .npz archive of the arrays indices and values, found a single array"]
            with loaded as arrays:
                if missing := [f"expected an array {name}, found none" for name in ARRAYS if name not in arrays.files]:
                    return missing
                found = {name: arrays[name] for name in ARRAYS}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            return [f"expected an .npz archive of two arrays, it cannot be read: {error}"]
        wrong = []
        for name, dtype in ARRAYS.items():
            if found[name].shape != self.shape:
                wrong.append(f"{name}: expected shape {self.shape}, found {found[name].shape}")
            if found[name].dtype != dtype:
                wrong.append(f"{name}: expected {dtype}, found {found[name].dtype}")
        return wrong or [*self._wrong_ids(found["indices"]), *self._wrong_values(found["values"])]

    def _wrong_ids(self, ids: np.ndarray) -> list[str]:
        wrong = []
        if ids.min() < 0 or ids.max() >= self.vocab:
            wrong.append(f"indices: expected ids from 0 to {self.vocab - 1:,}, found {ids.min():,} to {ids.max():,}")
        ordered = np.sort(ids, -1)
        doubled = np.argwhere((ordered[..., 1:] == ordered[..., :-1]).any(-1))
        if len(doubled):
            wrong.append(
                f"indices: expected {self.shape[-1]} different ids in each cell, found some of them twice in "
                f"{len(doubled):,} cells, the first at {tuple(map(int, doubled[0]))}"
            )
        return wrong

    def _wrong_values(self, values: np.ndarray) -> list[str]:
        bad = np.argwhere(~np.isfinite(values))
        if not len(bad):
            return []
        first = tuple(map(int, bad[0]))
        return [f"values: expected finite numbers, found {len(bad):,} others, the first {values[first]} at {first}"]


@dataclass(frozen=True)
class PictureFormat:
    """`<ID>.png` of the sampling track.

    Attributes:
        size: height and width in pixels.
    """

    size: tuple[int, int] = (512, 512)
    suffix = ".png"
    samples = 250

    def problems(self, file: Path) -> list[str]:
        try:
            data = file.read_bytes()
        except OSError as error:
            return [f"it cannot be read: {error}"]
        if not data.startswith(PNG_SIGNATURE):
            return ["expected a PNG picture, found something else"]
        header, pixels, place = b"", zlib.decompressobj(), len(PNG_SIGNATURE)
        size, kind = 0, b""
        while kind != b"IEND":
            if len(data) < place + 12:
                return ["expected a whole PNG picture, found one that is cut off"]
            (length,), kind = struct.unpack_from(">I", data, place), data[place + 4 : place + 8]
            body, end = data[place + 8 : place + 8 + length], place + 12 + length
            if len(data) < end or zlib.crc32(kind + body) != struct.unpack_from(">I", data, end - 4)[0]:
                return [f"expected a whole PNG picture, found its part {kind.decode('latin1')} cut off or changed"]
            header = body if kind == b"IHDR" else header
            try:
                size += len(pixels.decompress(body)) if kind == b"IDAT" else 0
            except zlib.error as error:
                return [f"expected a whole PNG picture, its pixels cannot be read: {error}"]
            place = end
        return self._wrong_header(header, size)

    def _wrong_header(self, header: bytes, size: int) -> list[str]:
        if len(header) != 13:
            return ["expected a PNG picture with a header, found none"]
        width, height, *kind = struct.unpack(">IIBBBBB", header)
        wrong = []
        if (height, width) != self.size:
            wrong.append(f"expected {self.size[0]} x {self.size[1]} pixels, found {height} x {width}")
        if tuple(kind) != RGB_8_BIT:
            wrong.append(f"expected 8-bit RGB without interlacing, found depth, colour, ..., interlace {tuple(kind)}")
        elif size != height * (3 * width + 1):
            wrong.append(f"expected {height * (3 * width + 1):,} bytes of pixels, found {size:,}")
        return wrong


FORMATS: dict[str, type[TopFormat] | type[PictureFormat]] = {"compression": TopFormat, "sampling": PictureFormat}


def readme_problems(file: Path) -> list[str]:
    """What is wrong with a `README.txt`."""
    try:
        said = json.loads(file.read_bytes())
    except OSError:
        return [f"expected the file, a JSON object with {', '.join(FIELDS)}, found none"]
    except ValueError as error:
        return [f"expected a JSON object with {', '.join(FIELDS)}, it cannot be read: {error}"]
    fields = said if isinstance(said, dict) else {}
    return [f"expected a field {name!r}, found none" for name in FIELDS if name not in fields]


@dataclass(frozen=True, kw_only=True)
class Sender:
    """Who submits; all of it goes into README.txt.

    Attributes:
        method, team, authors, email, institution, country: as the challenge asks for them.
    """

    method: str = ""
    team: str = ""
    authors: str = ""
    email: str = ""
    institution: str = ""
    country: str = ""

    def text(self) -> str:
        values = (self.method, self.team, self.authors, self.email, self.institution, self.country)
        return json.dumps(dict(zip(FIELDS, values, strict=True)), indent=1, ensure_ascii=False)
