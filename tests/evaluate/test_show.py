from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from hwm.data.video import read_video
from hwm.errors import HwmError
from hwm.evaluate import show
from hwm.evaluate.comic import comic_strip
from hwm.evaluate.font import draw_text, glyph, text_width


def noise(frames: int, height: int = 20, width: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (40, 33)])
def test_png_decodes_to_the_same_pixels(shape: tuple[int, int], tmp_path) -> None:
    image = pytest.importorskip("PIL.Image")
    smooth = np.add.outer(np.arange(shape[0]), np.arange(shape[1])).astype(np.uint8)
    for picture in (noise(1, *shape)[0], np.stack([smooth] * 3, -1)):
        decoded = image.open(io.BytesIO(show.png(picture)))
        assert (np.asarray(decoded) == picture).all()
    path = show.save_png(tmp_path / "a" / "b.png", picture)
    assert path.read_bytes() == show.png(picture)
    assert len(list(path.parent.iterdir())) == 1


def test_png_refuses_floats() -> None:
    with pytest.raises(HwmError, match="uint8"):
        show.png(np.zeros((2, 2, 3)))


def test_font() -> None:
    glyphs = [glyph(chr(c)) for c in range(33, 127)]
    assert len({g.tobytes() for g in glyphs}) == len(glyphs), "no two characters look alike"
    assert not glyph(" ").any()
    assert glyph("ä").all()
    picture = np.zeros((8, text_width("A1"), 3), np.uint8)
    draw_text(picture, "A1", 0, 0, (1, 2, 3))
    assert (picture[:7, :5].any(-1) == glyph("A")).all()
    assert (picture[:7, 6:].any(-1) == glyph("1")).all()
    draw_text(picture, "far outside", -400, 90, (9, 9, 9), scale=3)
    assert picture.max() == 3


def test_difference() -> None:
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert (show.difference(black, black) == 0).all()
    assert (show.difference(black, white) == show.difference(white, black)).all()
    levels = [show.difference(black, black + np.uint8(d)).mean() for d in (0, 20, 60, 100, 127)]
    assert levels == sorted(levels)


@pytest.mark.parametrize("columns", [None, 1, 2])
def test_compose(columns: int | None) -> None:
    panels = {"one": noise(4), "two": noise(4, seed=1), "three": noise(4, seed=2)}
    frames = list(show.compose(panels, ["a", "b", "c", "d"], context=2, columns=columns, scale=3))
    assert len(frames) == 4
    assert all(f.shape == frames[0].shape and f.dtype == np.uint8 for f in frames)
    assert frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0
    big = show.enlarge(panels["one"][3], 3)
    assert big.shape == (60, 90, 3)
    rows = [y for y in range(40) if (frames[3][y : y + 60, :90] == big).all()]
    assert len(rows) == 1, "the panel is there, pixel for pixel, each a square of 3"
    assert (frames[0] == np.array(show.CONTEXT_COLOUR)).all(-1).any()
    assert (frames[3] == np.array(show.FUTURE_COLOUR)).all(-1).any()


def test_panels_may_have_another_name_during_the_context() -> None:
    panels = {"made": np.zeros((3, 20, 90, 3), np.uint8), "truth": np.zeros((3, 20, 90, 3), np.uint8)}
    frames = list(show.compose(panels, ["", "", ""], context=2, context_names={"made": "told"}, scale=1))
    named = list(show.compose({"told": panels["truth"], "truth": panels["truth"]}, ["", "", ""], context=2, scale=1))
    assert (frames[1] == named[1]).all()
    assert (frames[2] != named[2]).any()


def test_compose_refuses_what_does_not_fit() -> None:
    with pytest.raises(HwmError, match="one shape"):
        list(show.compose({"a": noise(2), "b": noise(3)}, ["", ""]))
    with pytest.raises(HwmError, match="captions"):
        list(show.compose({"a": noise(2)}, [""]))


def test_videos_of_examples(oracle_results, tmp_path) -> None:
    paths = show.save_examples(tmp_path / "clips", oracle_results, hold=0.3)
    assert len(paths) == 3
    for path, example in zip(paths, oracle_results.examples, strict=True):
        frames = list(read_video(path))
        assert len(frames) == len(example.truth) + 3
        assert len(example.truth) == 2 + 5
        assert example.context == 2
        assert frames[0].shape[1] > 4 * 200, "four panels in a row, enlarged"
    assert sorted(p.name for p in (tmp_path / "clips").iterdir()) == [p.name for p in paths]


def test_examples_are_what_they_say(oracle_results, worlds) -> None:
    _, clips = worlds["blocks"]
    for example in oracle_results.examples:
        assert example.moving
        episode = next(e for e in clips.store.episodes if e.id == example.episode)
        video = list(read_video(clips.store.video(episode)))
        assert np.abs(video[2 * example.start].astype(int) - example.truth[0]).mean() < 3
        assert (example.prediction[:2] == example.swapped[:2]).all()
    assert any((e.prediction != e.swapped).any() for e in oracle_results.examples)
    lines = show.captions(oracle_results.examples[0], 10.0)
    assert lines[0] == "prompt 1 of 2"
    assert lines[2].startswith("+0.1 s  model ")


def test_a_failed_video_leaves_nothing(tmp_path) -> None:
    def frames():
        yield noise(1, 20, 30)[0]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        show.save_video(tmp_path / "x.mp4", frames(), 10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("fps", "hold"), [(10.0, 0.0), (30.0, 1.0), (7.5, 0.5)])
def test_gif(fps: float, hold: float, tmp_path) -> None:
    image = pytest.importorskip("PIL.Image")
    colours = np.array([(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (9, 9, 9)], np.uint8)
    frames = list(np.broadcast_to(colours[:, None, None], (5, 12, 18, 3)))
    path = show.save_gif(tmp_path / "a" / "x.gif", frames, fps, hold)
    assert [p.name for p in path.parent.iterdir()] == ["x.gif"]
    with image.open(path) as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (5, (18, 12), 0)
        lasting = []
        for i in range(5):
            gif.seek(i)
            lasting.append(gif.info["duration"])
            assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - frames[i]).max() < 8
    assert sum(lasting) == pytest.approx(1000 * (5 / fps + hold), abs=5), "rounding does not add up"
    with pytest.raises(HwmError, match="no frames"):
        show.save_gif(tmp_path / "x.gif", [], fps)


def test_gifs_of_examples(oracle_results, tmp_path) -> None:
    image = pytest.importorskip("PIL.Image")
    paths = show.save_gifs(tmp_path, oracle_results)
    assert [p.name for p in paths] == ["clip_0.gif", "clip_1.gif", "clip_2.gif"]
    with image.open(paths[0]) as gif:
        example = oracle_results.examples[0]
        assert gif.n_frames == len(example.truth)
        gif.seek(4)
        shown = np.asarray(gif.convert("RGB")).astype(int)
        scale = show.enlargement(example.truth)
        wide, high = example.truth.shape[2] * scale, example.truth.shape[1] * scale
        for x, video in ((0, example.prediction), (shown.shape[1] - wide, example.truth)):
            picture = show.enlarge(video[4], scale)
            apart = [np.abs(shown[y : y + high, x : x + wide] - picture).mean() for y in range(40)]
            assert min(apart) < 12 < np.median(apart), "the panel is there, but for the palette"


def test_without_pillow_gifs_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(HwmError, match=r"pip install .*\[eval\]"):
        show.save_gif(tmp_path / "x.gif", [noise(1)[0]], 10)


def test_comic_strip(oracle_results) -> None:
    sheet = comic_strip(oracle_results, prompt=2, steps=3, scale=2)
    example = oracle_results.examples[0]
    height, width = (n * 2 for n in example.truth.shape[1:3])
    assert sheet.shape[1] > 5 * width
    assert sheet.shape[0] > 3 * 2 * height
    windows = np.lib.stride_tricks.sliding_window_view(sheet[:, :, 0], (height, width))
    places = []
    for video in (example.prediction, example.truth):
        for frame in (0, 1, 2, 4, 6):  # both steps of the prompt, and the first, the middle and the last after it
            picture = show.enlarge(video[frame], 2)
            corners = np.argwhere((windows[:, :, ::7, ::7] == picture[::7, ::7, 0]).all((-2, -1)))
            hits = [(y, x) for y, x in corners if (sheet[y : y + height, x : x + width] == picture).all()]
            assert hits, f"frame {frame} is there"
            places.append(hits)
    assert min(places[2])[1] > min(places[1])[1] > min(places[0])[1], "from left to right in time"
    assert min(places[7])[0] > min(places[2])[0], "what was generated stands above the truth"
    assert {x for _, x in places[2]} & {x for _, x in places[7]}
    orange = (sheet == np.array(show.FUTURE_COLOUR)).all(-1)
    assert orange[:, : min(places[2])[1]].sum() == 0 < orange.sum(), "times of the prompt are grey, the others orange"
    oracle_results.examples, kept = [], oracle_results.examples
    with pytest.raises(HwmError, match="examples"):
        comic_strip(oracle_results)
    oracle_results.examples = kept


def test_contact_sheet(oracle_results) -> None:
    sheet = show.contact_sheet(oracle_results, steps=3)
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] > 4 * 96
    oracle_results.examples, kept = [], oracle_results.examples
    with pytest.raises(HwmError, match="examples"):
        show.contact_sheet(oracle_results)
    oracle_results.examples = kept
