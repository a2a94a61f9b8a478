"""Stores of several cameras: what is filmed, encoded, kept, shown, joined and exported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hwm.cli import main
from hwm.data.merge import merge
from hwm.data.show import facts, pictures
from hwm.data.sources import SourceOptions, open_source
from hwm.data.store import Store, StoreError
from hwm.encode.episodes import EncodeConfig, encode
from hwm.loading import load_tokenizer
from hwm.pictures.video import read_video, write_video
from hwm.tokenizers.pixels import Pixels
from tests.conftest import make_frames, make_store

VIEWS = ("top", "wrist")
LEROBOT = Path(__file__).parent.parent / "data/sources/lerobot"


@pytest.fixture
def recording(tmp_path: Path) -> Store:
    return make_store(tmp_path / "r", [7, 5], latent=None, tokenizer="", video=True, views=VIEWS)


def test_a_recording_shows_its_cameras_stacked(recording: Store) -> None:
    for e in recording.episodes:
        shown = np.stack(list(recording.frames(e)))
        assert shown.shape == (e.steps, 64, 32, 3)
        for view, part in zip(VIEWS, np.split(shown, 2, 1), strict=True):
            assert recording.video(e, view).parent.name == view
            assert np.array_equal(part, np.stack(list(read_video(recording.video(e, view)))))
    assert facts(recording)["cameras"].startswith("top, wrist")


def test_encoded_rows_are_those_of_each_camera(tmp_path: Path, recording: Store) -> None:
    both = encode(recording.path, Pixels((16, 16)), tmp_path / "both", EncodeConfig(keep_video=True))
    spec = both.header.latent
    assert spec is not None
    assert both.latents is not None
    assert (spec.grid, spec.views, both.header.views, both.header.dtype) == ((32, 16), VIEWS, VIEWS, "uint8")
    for i, view in enumerate(VIEWS):
        alone = encode(
            open_source(recording.path, SourceOptions(camera=(view,))), Pixels((16, 16)), tmp_path / view,
            EncodeConfig(keep_video=True),
        )  # fmt: skip
        assert alone.header.views == ()
        assert np.array_equal(alone.latents, np.split(both.latents, 2, -2)[i])
        for e, kept in zip(both.episodes, alone.episodes, strict=True):
            film = recording.video(e, view).read_bytes()
            assert both.video(e, view).read_bytes() == film
            assert alone.video(kept).read_bytes() == film
    both.verify()
    assert both.data_spec().latent.views == VIEWS


def test_other_orders_are_other_data(tmp_path: Path, recording: Store) -> None:
    turned = open_source(recording.path, SourceOptions(camera=("wrist", "top")))
    assert turned.header.views == ("wrist", "top")
    store = encode(turned, Pixels((16, 16)), tmp_path / "turned")
    both = encode(recording.path, Pixels((16, 16)), tmp_path / "both")
    assert np.array_equal(np.roll(store.latents, 16, -2), both.latents)
    with pytest.raises(StoreError, match="differ in kind"):
        merge([store.path, both.path], tmp_path / "merged")


def test_cuts_and_rates_are_of_each_camera(tmp_path: Path, recording: Store) -> None:
    """What is cut in one picture is not taken from the next, and other rates keep the cameras apart."""
    other = open_source(recording.path, SourceOptions(fps=5))
    store = encode(other, Pixels((16, 32)), tmp_path / "half", EncodeConfig(crop=True, keep_video=True))
    e = store.episodes[0]
    for view, part in zip(VIEWS, np.split(np.asarray(store.latents[: e.stop]), 2, -2), strict=True):
        film = np.stack(list(recording.frames(recording.episodes[0])))[::2, (32 if view == "wrist" else 0) :][:, 8:24]
        assert np.array_equal(part, film.transpose(0, 3, 1, 2))
        assert next(read_video(store.video(e, view))).shape == (16, 32, 3)


def test_cameras_of_other_sizes(tmp_path: Path) -> None:
    folder = tmp_path / "lab"
    folder.mkdir()
    write_video(folder / "take.top.mp4", make_frames(6), 10)
    write_video(folder / "take.wrist.mp4", make_frames(6, 48, 64, seed=2), 10)
    np.savez(folder / "take.npz", action=np.zeros((6, 2), np.float32))
    source = open_source(folder, SourceOptions(camera=("wrist", "top")))
    assert next(source[0].frames()).shape == (96, 64, 3)
    store = encode(source, Pixels((24, 32)), tmp_path / "out", EncodeConfig(keep_video=True))
    assert store.video(store.episodes[0], "top").read_bytes() == (folder / "take.top.mp4").read_bytes()
    assert next(store.frames(store.episodes[0])).shape == (96, 64, 3)


def test_merged_stores_keep_the_files_of_each_camera(tmp_path: Path, recording: Store) -> None:
    other = make_store(tmp_path / "o", [4], prefix="o", latent=None, tokenizer="", video=True, views=VIEWS)
    merged = merge([recording.path, other.path], tmp_path / "m")
    assert (
        merged.video(merged.episodes[2], "wrist").read_bytes() == other.video(other.episodes[0], "wrist").read_bytes()
    )
    recording.video(recording.episodes[1], "wrist").unlink()
    with pytest.raises(StoreError, match=r"no video of episode 'e1' \(wrist/e1.mp4 is missing\)"):
        list(recording.frames(recording.episodes[1]))


def test_pictures_are_shown_side_by_side(tmp_path: Path, recording: Store) -> None:
    e = recording.episodes[0]
    shown = pictures(recording, e, [0, 3])
    assert shown.shape == (2, 32, 64, 3)
    films = [np.stack(list(read_video(recording.video(e, view)))) for view in VIEWS]
    assert np.array_equal(shown, np.concatenate([film[[0, 3]] for film in films], 2))
    store = encode(recording.path, load_tokenizer("tiny"), tmp_path / "tiny")
    decoded = pictures(store, store.episodes[0], [0, 3], load_tokenizer("tiny", views=VIEWS))
    assert decoded.shape == (2, 128, 256, 3)
    assert main(["view", str(store.path), "--out", str(tmp_path / "sheet.png")]) == 0


def test_lerobot_has_a_video_for_each_camera(tmp_path: Path, recording: Store) -> None:
    assert main(["export", "lerobot", str(recording.path), "--out", str(tmp_path / "out")]) == 0
    features = json.loads((tmp_path / "out/meta/info.json").read_bytes())["features"]
    assert [k for k in features if "images" in k] == ["observation.images.top", "observation.images.wrist"]
    again = open_source(tmp_path / "out", SourceOptions(camera=VIEWS))
    assert again.header.views == VIEWS
    for mine, e in zip(again, recording.episodes, strict=True):
        assert np.array_equal(mine.actions[1:], recording.actions[e.start + 1 : e.stop])
        a, b = (np.stack(list(x)).astype(int) for x in (mine.frames(), recording.frames(e)))
        assert a.shape == b.shape
        assert abs(a - b).mean() < 2
        top, wrist = np.split(b, 2, 1)
        assert abs(top - wrist).mean() > 8, "the square is at another place"


def test_decoded_views_are_exported_apart(tmp_path: Path, recording: Store) -> None:
    pixels = encode(recording.path, Pixels((32, 32)), tmp_path / "pixels")
    assert main(["export", "lerobot", str(pixels.path), "--out", str(tmp_path / "out")]) == 0
    for view in VIEWS:
        mine = open_source(tmp_path / "out", SourceOptions(camera=(view,)))[1]
        film = np.stack(list(read_video(recording.video(recording.episodes[1], view)))).astype(int)
        assert abs(np.stack(list(mine.frames())) - film).mean() < 2


def test_what_lerobot_wrote_of_two_cameras(tmp_path: Path) -> None:
    """The set that lerobot itself wrote; its second camera shows the negative of the first."""
    args = ["encode", str(LEROBOT), "--camera", "front", "wrist", "--tokenizer", "pixels-16x16"]
    assert main([*args, "--keep-video", "--out", str(tmp_path / "out")]) == 0
    store = Store(tmp_path / "out")
    assert store.header.views == ("front", "wrist")
    front, wrist = np.split(np.asarray(store.latents).astype(int), 2, -2)
    assert abs(255 - front - wrist).mean() < 3
    assert abs(front - wrist).mean() > 20
    assert (tmp_path / "out/video/wrist/episode_000001.mp4").is_file()


def test_one_camera_is_written_as_ever(tmp_path: Path) -> None:
    recording = make_store(tmp_path / "r", [4], latent=None, tokenizer="", video=True)
    store = encode(recording.path, Pixels((16, 16)), tmp_path / "out", EncodeConfig(keep_video=True))
    assert b"views" not in (tmp_path / "out/meta.json").read_bytes()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "actions.bin", "latents.bin", "meta.json", "segments.bin", "video",
    ]  # fmt: skip
    assert store.video(store.episodes[0]) == tmp_path / "out/video/e0.mp4"


def test_clips_find_their_frames_in_the_film_of_each_camera(tmp_path: Path, recording: Store) -> None:
    store = encode(recording.path, Pixels((32, 32)), tmp_path / "clips", EncodeConfig(clip=3, keep_video=True))
    assert sorted(p.name for p in (tmp_path / "clips/video/wrist").iterdir()) == [
        "e0_clip_00000.mp4", "e1_clip_00000.mp4",
    ]  # fmt: skip
    for e in store.episodes:
        shown = np.stack(list(store.frames(e)))
        assert np.array_equal(shown.transpose(0, 3, 1, 2), store.latents[e.start : e.stop])


def test_a_tokenizer_is_trained_on_one_camera(
    tmp_path: Path, recording: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    both = encode(recording.path, Pixels((32, 32)), tmp_path / "both")
    args = ["train", "tiny_tokenizer", "--out", str(tmp_path / "run"), "--data.stores", str(both.path)]
    assert main([*args, "--data.val-stores", str(both.path)]) != 0
    assert "trained on the pictures of one camera, and these show top, wrist" in capsys.readouterr().err
