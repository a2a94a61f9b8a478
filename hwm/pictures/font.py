"""Captions in pictures: a 5 x 7 bitmap font of the printable ASCII characters, drawn for this project."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

Colour = tuple[int, int, int]

WIDTH, HEIGHT = 6, 8
"""Pixels from one character to the next, and from one line to the next, at scale 1."""

# Seven rows of five pixels a character, in the order of ASCII from the space on: a row is two hex digits, whose five
# low bits are the pixels from left to right.
_FONT = bytes.fromhex(
    "00000000000000 04040404040004 0a0a0a00000000 0a0a1f0a1f0a0a 040f140e051e04 18190204081303 0c12140815120d"
    " 04040800000000 02040808080402 08040202020408 00150e1f0e1500 0004041f040400 00000000040408 0000001f000000"
    " 00000000000c0c 00010204081000 0e11131519110e 040c040404040e 0e11010204081f 1f02040201110e 02060a121f0202"
    " 1f101e0101110e 0608101e11110e 1f010204080808 0e11110e11110e 0e11110f01020c 000c0c000c0c00 000c0c000c0408"
    " 02040810080402 00001f001f0000 08040201020408 0e110102040004 0e11011317100e 0e11111f111111 1e11111e11111e"
    " 0e11101010110e 1c12111111121c 1f10101e10101f 1f10101e101010 0e11101711110f 1111111f111111 0e04040404040e"
    " 0702020202120c 11121418141211 1010101010101f 111b1515111111 11111915131111 0e11111111110e 1e11111e101010"
    " 0e11111115120d 1e11111e141211 0f10100e01011e 1f040404040404 1111111111110e 11111111110a04 1111111515150a"
    " 11110a040a1111 1111110a040404 1f01020408101f 0e08080808080e 00100804020100 0e02020202020e 040a1100000000"
    " 0000000000001f 08040200000000 00000e010f110f 10101619111e00 00000e1010110e 01010d1311110f 00000e111f100e"
    " 0609081c080808 000f11110f010e 10101619111111 04000c0404040e 0200060202120c 1010121418141a 0c04040404040e"
    " 00001a15151111 00001619111111 00000e1111110e 00001e111e1010 00000d130f0101 00001619101010 00000e100e011e"
    " 08081c08080906 0000111111130d 00001111110a04 0000111115150a 0000110a040a11 000011110f010e 00001f0204081f"
    " 02040408040402 04040404040404 08040402040408 00000815020000"
)  # fmt: skip


@lru_cache
def glyph(character: str) -> np.ndarray:
    """The pixels of a character, (7, 5) bool; a character that is not in the font is a filled box."""
    code = ord(character) - 32
    if not 0 <= code < len(_FONT) // 7:
        return np.ones((7, 5), bool)
    rows = _FONT[7 * code : 7 * code + 7]
    return np.array([[row >> bit & 1 for bit in (4, 3, 2, 1, 0)] for row in rows], bool)


def text_width(text: str, scale: int = 1) -> int:
    """Pixels that a line takes."""
    return max(0, len(text) * WIDTH - 1) * scale


def draw_text(image_HW3: np.ndarray, text: str, x: int, y: int, colour: Colour, scale: int = 1) -> None:
    """Draw one line into a uint8 picture, its upper left corner at (x, y); what lies outside is cut off."""
    height, width = image_HW3.shape[:2]
    for character in text:
        pixels = np.kron(glyph(character), np.ones((scale, scale), bool))
        rows, columns = np.nonzero(pixels)
        rows, columns = rows + y, columns + x
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        image_HW3[rows[inside], columns[inside]] = colour
        x += WIDTH * scale
