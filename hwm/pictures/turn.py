"""How the pictures of a video are turned before they are shown, as its metadata say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from av.sidedata.sidedata import Type

from hwm.errors import HwmError


@dataclass(frozen=True)
class Turn:
    """Axes swapped, then rows and columns reversed: all that turns by right angles and mirrors can do."""

    swap: bool = False
    rows: bool = False
    columns: bool = False

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """(H, W, 3) as stored -> (H, W, 3), or (W, H, 3), as shown."""
        if self == Turn():
            return picture
        picture = picture.swapaxes(0, 1) if self.swap else picture
        return np.ascontiguousarray(picture[:: -1 if self.rows else 1, :: -1 if self.columns else 1])


def turn_of(path: str | Path, frame: Any) -> Turn:
    """How players turn a frame, by its display matrix (that of ISO/IEC 14496-12, 8.5.3).

    Raises:
        HwmError: it is turned by no right angle.
    """
    a, b, c, d = _matrix(frame)
    swap = abs(b) + abs(c) > abs(a) + abs(d)
    (across, down), rest = ((c, b), (a, d)) if swap else ((a, d), (b, c))
    if not across or not down:
        return Turn()  # a matrix that says nothing
    if max(map(abs, rest)) > 0.05 * min(abs(across), abs(down)):
        askew = round(math.degrees(math.atan2(c, a)))
        raise HwmError(f"the pictures of {path} are shown turned by {askew} degrees; only right angles are read")
    return Turn(swap, rows=down < 0, columns=across < 0)


def _matrix(frame: Any) -> tuple[float, float, float, float]:
    """Of x' = a x + c y and y' = b x + d y."""
    try:
        data = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # PyAV reads none where one is of a kind that it does not know, such as the EXIF of pictures
        angle = math.radians(frame.rotation)
        return math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
    if data is None:
        return 1.0, 0.0, 0.0, 1.0
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    return a, b, c, d
