from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hwm.errors import HwmError
from hwm.evaluate import show
from hwm.evaluate.comic import comic_strip
from hwm.pictures.canvas import FUTURE_COLOUR, enlarge, enlargement
from hwm.pictures.video import read_video


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
    assert lines[2].startswith("+0.1 s, model ")


def test_gifs_of_examples(oracle_results, tmp_path) -> None:
    paths = show.save_gifs(tmp_path, oracle_results)
    assert [p.name for p in paths] == ["clip_0.gif", "clip_1.gif", "clip_2.gif"]
    with Image.open(paths[0]) as gif:
        example = oracle_results.examples[0]
        assert gif.n_frames == len(example.truth)
        gif.seek(4)
        shown = np.asarray(gif.convert("RGB")).astype(int)
        scale = enlargement(example.truth)
        wide, high = example.truth.shape[2] * scale, example.truth.shape[1] * scale
        for x, video in ((0, example.prediction), (shown.shape[1] - wide, example.truth)):
            picture = enlarge(video[4], scale)
            apart = [np.abs(shown[y : y + high, x : x + wide] - picture).mean() for y in range(40)]
            assert min(apart) < 12 < np.median(apart), "the panel is there, but for the palette"


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
            picture = enlarge(video[frame], 2)
            corners = np.argwhere((windows[:, :, ::7, ::7] == picture[::7, ::7, 0]).all((-2, -1)))
            hits = [(y, x) for y, x in corners if (sheet[y : y + height, x : x + width] == picture).all()]
            assert hits, f"frame {frame} is there"
            places.append(hits)
    assert min(places[2])[1] > min(places[1])[1] > min(places[0])[1], "from left to right in time"
    assert min(places[7])[0] > min(places[2])[0], "what was generated stands above the truth"
    assert {x for _, x in places[2]} & {x for _, x in places[7]}
    orange = (sheet == np.array(FUTURE_COLOUR)).all(-1)
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
