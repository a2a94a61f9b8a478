"""Pages in one HTML file: no script, no second file, nothing fetched; readable in light and dark and on a phone."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import numpy as np

from hwm.pictures.files import jpeg
from hwm.pictures.plot import Series, line_chart
from hwm.pictures.style import page_style


def html_page(title: str, sections: Sequence[str]) -> str:
    """Sections as one page in the style of all pages."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{page_style()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(s for s in sections if s)
        + "\n</main>\n</body>\n</html>\n"
    )


def video_card(video: bytes, caption: str) -> str:
    """An mp4 file that plays by itself, over its caption, plain text."""
    return (
        '<figure class="card"><video autoplay loop muted playsinline controls '
        f'src="data:video/mp4;base64,{base64.b64encode(video).decode()}"></video>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def picture_card(picture: np.ndarray, caption: str) -> str:
    """A uint8 (H, W, 3) picture over its caption, plain text."""
    data = base64.b64encode(jpeg(picture)).decode()
    return (
        f'<figure class="card"><img alt="{escape(caption)}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def section(title: str, *parts: str) -> str:
    """Parts, HTML, under a heading, plain text."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def training_section(training: Sequence[tuple[int, float, float | None]]) -> str:
    """Curves of the training and the held-out loss, as HTML; nothing where there are no points."""
    if not training:
        return ""
    steps = [t[0] for t in training]
    series = [
        Series("training loss", steps, [t[1] for t in training], "loss"),
        Series(
            "held-out loss",
            steps,
            [t[2] for t in training],
            "val",
            "--",
            "o" if sum(t[2] is not None for t in training) < 40 else "",
        ),
    ]
    chart = line_chart(series, "update", "loss")
    return section("Training", f'<div class="pair"><div class="card">{chart}</div></div>')
