"""Looking into a store: figures, contact sheets, pages."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from hwm.data.show import columns_of, contact_sheet, describe, ids_in_use, pictures, spread, view_html
from hwm.data.store import Store
from hwm.data.writer import Writer
from hwm.errors import HwmError
from hwm.pictures.canvas import GAP
from hwm.pictures.sheet import BETWEEN, MARGIN
from hwm.pictures.video import read_video
from hwm.tokenizers.pixels import Pixels
from hwm.types import LatentSpec, Tokenizer
from tests.conftest import make_arrays, make_header, make_store


class Grey(Tokenizer):
    """An id is a shade of grey; a step of 16 x 16 pixels has four of them."""

    latent, id, size = LatentSpec((2, 2), 25), "grey", (16, 16)

    def encode(self, video_BFCHW: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        grey = (latents.float() / 24).repeat_interleave(8, -1).repeat_interleave(8, -2)
        return grey[:, :, None].expand(-1, -1, 3, -1, -1)


class Joined(Grey):
    """The same, with three frames a step after the first: they fade in."""

    latent = LatentSpec((2, 2), 25, stride=3)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        last = super().decode(latents)
        rest = torch.stack([last[:, 1:] * part for part in (0.25, 0.5, 1.0)], 2).flatten(1, 2)
        return torch.cat([last[:, :1], rest], 1)


@pytest.fixture
def filmed(tmp_path: Path) -> Store:
    return make_store(tmp_path / "filmed", [12, 9, 15, 30], video=True)


def text_of(store: Store) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(describe(store))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_statistics_are_exact(tmp_path: Path) -> None:
    header = make_header(action_names=("moves", "rests"))
    writer = Writer(tmp_path / "s", header)
    for i in range(3):
        actions, latents = make_arrays(header, 20, i)
        actions[..., 1] = 0.7
        writer.add(f"e{i}", actions + np.float32([1000, 0]), latents)
    moves, rests = columns_of(writer.finish())
    x = np.concatenate([make_arrays(header, 20, i)[0] for i in range(3)])[..., 0].astype(np.float64) + 1000
    assert (moves.low, moves.high) == pytest.approx((x.min(), x.max()), abs=1e-3)
    assert (moves.mean, moves.std) == pytest.approx((x.mean(), x.std()), abs=1e-3)
    assert (moves.used_mean, moves.used_std) == pytest.approx((moves.mean, moves.std), abs=1e-6)
    assert not moves.constant
    assert rests.constant
    assert rests.std == 0


def test_a_description_says_what_there_is(store: Store) -> None:
    text = text_of(store)
    for words in ("3, of 9 to 15 steps", "36 at 10 a second: 0.1 minutes", "toy", "2 a step, of 2 dimensions, float32"):
        assert words in text
    assert "2 x 2 ids of 25 (digits of 5, 5), uint16, 1 frames a step" in text
    assert re.search(r"^tokenizer +test *$", text, re.M)
    assert "left" in text
    assert "codebook usage" in text
    assert "std in use" not in text
    assert "constant" not in text


def test_constant_dimensions_are_flagged(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s", make_header())
    actions, latents = make_arrays(writer.header, 5)
    actions[..., 1] = 3
    writer.add("e", actions, latents)
    lines = [line for line in text_of(writer.finish()).splitlines() if line.startswith(("left", "right"))]
    assert "constant" not in lines[0]
    assert lines[1].split() == ["right", "3", "3", "3", "0", "constant"]


def test_statistics_of_another_store_are_shown(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s", make_header())
    writer.add("e", *make_arrays(writer.header, 5))
    store = writer.finish(([7.5, 8.5], [1.0, 2.0]))
    text = text_of(store)
    assert "std in use" in text
    assert "7.5" in text


def test_recordings_and_values_are_described(tmp_path: Path) -> None:
    assert "none yet: hwm encode makes them" in text_of(make_store(tmp_path / "r", latent=None))
    text = text_of(make_store(tmp_path / "v", latent=LatentSpec((2, 3), channels=4)))
    assert "2 x 3 values in 4 channels, float16" in text
    assert "codebook usage" not in text


def test_codebook_usage_is_told(store: Store) -> None:
    used, vocab = len(np.unique(store.latents)), store.header.latent.vocab
    assert ids_in_use(store) == used
    assert f"{used / vocab:.2%}: {used:,} of {vocab:,} ids" in text_of(store)


def test_pictures_come_from_the_film(filmed: Store) -> None:
    film = list(read_video(filmed.video(filmed.episodes[2])))
    found = pictures(filmed, filmed.episodes[2], [0, 7, 14])
    assert np.array_equal(found, np.stack([film[i] for i in (0, 7, 14)]))


def test_pictures_of_a_thinned_film(tmp_path: Path, filmed: Store) -> None:
    writer = Writer(tmp_path / "s", make_header())
    film = tmp_path / "copy.mp4"
    film.write_bytes(filmed.video(filmed.episodes[3]).read_bytes())
    writer.add("e", *make_arrays(writer.header, 10), film, {"frames_per_step": 3})
    store, frames = writer.finish(), list(read_video(filmed.video(filmed.episodes[3])))
    assert np.array_equal(pictures(store, store.episodes[0], [1, 9]), np.stack([frames[3], frames[27]]))
    short = store.path / "video" / "e.mp4"
    short.write_bytes(filmed.video(filmed.episodes[0]).read_bytes())
    with pytest.raises(HwmError, match="ends before step 9"):
        pictures(store, store.episodes[0], [1, 9])


@pytest.mark.parametrize("tokenizer", [Grey(), Joined()])
def test_pictures_are_decoded_where_there_is_no_film(store: Store, tokenizer: Tokenizer) -> None:
    episode = store.episodes[1]
    found = pictures(store, episode, [0, 4, 8], tokenizer)
    assert found.shape == (3, 16, 16, 3)
    want = (store.latents[episode.start : episode.stop][[0, 4, 8]] / 24 * 255).round()
    assert np.array_equal(found[:, ::8, ::8, 0], want)


def test_pixels_are_shown_as_they_are(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", latent=LatentSpec((16, 16), channels=3), dtype="uint8", tokenizer="pixels-16x16")
    found = pictures(store, store.episodes[0], [0, 3], Pixels((16, 16)))
    assert np.array_equal(found, store.latents[[0, 3]].transpose(0, 2, 3, 1))


def test_without_film_and_tokenizer_there_is_nothing_to_see(store: Store, tmp_path: Path) -> None:
    for make in (contact_sheet, view_html):
        with pytest.raises(HwmError, match=r"has no video: give the tokenizer whose latents it holds \(test\)"):
            make(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("rows", "columns"), [(2, 3), (4, 8), (50, 9), (1, 1)])
def test_a_contact_sheet_is_a_picture(filmed: Store, tmp_path: Path, rows: int, columns: int) -> None:
    path = contact_sheet(filmed, tmp_path / "new" / "sheet.png", rows=rows, columns=columns)
    picture = np.asarray(Image.open(path).convert("RGB"))
    tall, wide = min(rows, 4), min(columns, 30)
    each = (picture.shape[0] - 2 * MARGIN + BETWEEN) / tall - BETWEEN
    assert 128 + 2 * 14 < each < 128 + 2 * 24, "a picture, and two lines of text"
    assert picture.shape[1] >= (wide if rows > 1 else min(wide, 12)) * 128
    first = next(iter(read_video(filmed.video(filmed.episodes[0]))))
    top = MARGIN + int(each) - 128
    assert np.array_equal(picture[top : top + 128 : 4, MARGIN : MARGIN + 128 : 4], first)
    with pytest.raises(HwmError, match="shows nothing"):
        contact_sheet(filmed, tmp_path / "x.png", rows=0)


class Page(HTMLParser):
    """Counts tags and keeps what they refer to; fails on tags that are not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def test_a_page_needs_no_other_file(filmed: Store, tmp_path: Path) -> None:
    text = view_html(filmed, tmp_path / "new" / "store.html", episodes=3, columns=4).read_text(encoding="utf-8")
    page = Page(text)
    assert not page.all("script")
    assert not page.all("link")
    assert "http" not in text.split("</style>")[1]
    assert len(page.all("img")) == 3
    for image in page.all("img"):
        kind, data = (image["src"] or "").split(",")
        assert kind == "data:image/png;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert picture.size[0] == 4 * (96 + GAP) - GAP + 2 * MARGIN
    assert [text.count(f">{name}<") for name in filmed.header.action_names] == [3 + 1, 3 + 1], "a curve, and a row"
    assert "Episodes (3 of 4)" in text


def test_a_page_of_tokens(store: Store, tmp_path: Path) -> None:
    text = view_html(store, tmp_path / "store.html", Grey()).read_text(encoding="utf-8")
    assert "Episodes (all)" in text
    assert len(Page(text).all("img")) == 3


def test_names_cannot_break_a_page(tmp_path: Path) -> None:
    store = make_store(
        tmp_path / "<s>",
        [4],
        prefix="<b>&",
        action_names=("<script>", "b"),
        tokenizer='"x"<',
        source="<i>a & b</i>",
        video=True,
    )
    page = Page(view_html(store, tmp_path / "s.html").read_text(encoding="utf-8"))
    assert not page.all("script")
    assert not page.all("i")
    assert not page.all("b")


def test_constant_actions_have_no_curve(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s", make_header())
    actions, latents = make_arrays(writer.header, 6)
    actions[..., 0] = 1
    writer.add("e", actions, latents)
    text = view_html(writer.finish(), tmp_path / "s.html", Grey()).read_text(encoding="utf-8")
    first, second = (text.count(f">{name}<") for name in ("left", "right"))
    assert (first, second) == (1, 2), "both in the table, one drawn"
    assert "class=constant" in text


def test_spread_is_even_and_ends_at_the_ends() -> None:
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(3, 8) == [0, 1, 2]
    assert spread(7, 1) == [0]
