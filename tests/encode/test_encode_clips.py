"""Clips that keep the camera's truth: one video a recording, and every step finds its frames in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwm.data.clips import Clips
from hwm.data.lerobot_write import write_lerobot
from hwm.data.merge import merge
from hwm.data.origin import origin_of
from hwm.data.show import pictures
from hwm.data.sources import open_source
from hwm.data.store import Store, StoreError
from hwm.data.writer import Writer
from hwm.encode.episodes import EncodeConfig, encode
from hwm.evaluate.camera import camera_video
from hwm.pictures.video import read_video
from hwm.tokenizers.pixels import Pixels
from tests.conftest import make_arrays, make_header, make_store
from tests.encode.test_encode import Joined

PIXELS = Pixels((32, 32))


@pytest.fixture
def recording(tmp_path: Path) -> Store:
    """Three filmed episodes of 14, 9 and 21 frames of 32 x 32."""
    return make_store(tmp_path / "recording", [14, 9, 21], latent=None, tokenizer="", video=True)


def psnr(store: Store, step: int) -> float:
    """Of a window of two steps, between its latents, which are pixels, and the camera."""
    clips = Clips(store, 2)
    index = int(np.flatnonzero(clips.starts[np.arange(len(clips))] == step)[0])
    truth = camera_video(clips, np.array([index]), 2, (32, 32)).numpy()
    return float(-10 * np.log10(((clips.batch([index]).latents.numpy() - truth) ** 2).mean() + 1e-12))


@pytest.mark.parametrize("every", [1, 2])
def test_every_window_of_a_clip_scores_as_in_the_whole_recording(tmp_path: Path, recording: Store, every: int) -> None:
    whole = encode(recording.path, PIXELS, tmp_path / "whole", EncodeConfig(every=every, keep_video=True))
    cut = encode(recording.path, PIXELS, tmp_path / "cut", EncodeConfig(every=every, keep_video=True, clip=4))
    assert sorted(p.stem for p in (cut.path / "video").iterdir()) == [f"e{i}_clip_00000" for i in range(3)]
    assert sum(p.stat().st_size for p in (cut.path / "video").iterdir()) == sum(
        p.stat().st_size for p in (recording.path / "video").iterdir()
    )
    seen = 0
    for raw in whole.episodes:
        for clip in (e for e in cut.episodes if e.id.startswith(f"{raw.id}_clip_")):
            for step in range(clip.steps - 1):
                there = raw.start + 4 * int(clip.id[-5:]) + step
                assert psnr(cut, clip.start + step) == psnr(whole, there) > 50
                seen += 1
    assert seen > 9


def test_steps_of_several_frames_find_theirs(tmp_path: Path, recording: Store) -> None:
    store = encode(recording.path, Joined(), tmp_path / "cut", EncodeConfig(clip=9, keep_video=True))
    clips = Clips(store, 2)
    for i, start in enumerate(clips.starts[np.arange(len(clips))]):
        episode = store.episodes[int(store.segments[start])]
        raw = next(e for e in recording.episodes if episode.id.startswith(f"{e.id}_clip_"))
        first = 9 * int(episode.id[-5:]) + 4 * (int(start) - episode.start)
        want = np.stack(list(read_video(recording.video(raw))))[first : first + 5]
        assert np.array_equal(camera_video(clips, np.array([i]), 2, (32, 32))[0].movedim(1, -1) * 255, want)
        assert np.array_equal(pictures(store, episode, [1])[0], want[4 if int(start) == episode.start else 0])


def test_parts_are_merged_and_the_clips_encoded_again_with_their_videos(tmp_path: Path, recording: Store) -> None:
    config = {"clip": 5, "keep_video": True}
    whole = encode(recording.path, PIXELS, tmp_path / "whole", EncodeConfig(**config))  # type: ignore[arg-type]
    parts = [tmp_path / f"part_{i}" for i in range(2)]
    for i, path in enumerate(parts):
        encode(recording.path, PIXELS, path, EncodeConfig(shard=i, shards=2, **config))  # type: ignore[arg-type]
    merged = merge(parts, tmp_path / "merged")
    assert merged.episodes == whole.episodes
    assert len(list((merged.path / "video").iterdir())) == 3
    again = encode(merged.path, PIXELS, tmp_path / "again", EncodeConfig(keep_video=True))
    assert again.episodes == whole.episodes
    assert len(list((again.path / "video").iterdir())) == 3
    assert np.array_equal(np.asarray(again.latents), np.asarray(whole.latents))
    finer = encode(merged.path, PIXELS, tmp_path / "finer", EncodeConfig(clip=2, keep_video=True))
    assert len(list((finer.path / "video").iterdir())) == 3
    assert [e.first_frame for e in finer.episodes if e.id.startswith("e1_")] == [0, 2, 4, 5, 7]
    assert np.array_equal(np.asarray(finer.latents), np.asarray(whole.latents))
    some = encode(merged.path, PIXELS, tmp_path / "some", EncodeConfig(keep_video=True, shard=1, shards=2))
    assert all(np.array_equal(next(some.frames(e)), pictures(whole, o, [0])[0]) for e, o in zip(
        some.episodes, whole.episodes[1::2], strict=True))  # fmt: skip


def test_a_clip_shows_its_own_frames_and_is_exported_with_them(tmp_path: Path, recording: Store) -> None:
    store = encode(recording.path, PIXELS, tmp_path / "cut", EncodeConfig(clip=7, keep_video=True))
    for episode in store.episodes:
        frames = np.stack(list(store.frames(episode)))
        assert np.array_equal(frames, np.asarray(store.latents)[episode.start : episode.stop].transpose(0, 2, 3, 1))
    out = open_source(write_lerobot(open_source(store.path), tmp_path / "exported", crf=1))
    assert [e.steps for e in out] == [e.steps for e in store.episodes]
    for episode, mine in zip(out, store.episodes, strict=True):
        shown = np.stack(list(episode.frames())).astype(int)
        assert abs(shown - np.stack(list(store.frames(mine)))).mean() < 3


def test_a_film_made_anew_of_clips_is_of_each_alone(tmp_path: Path, recording: Store) -> None:
    cut = encode(recording.path, PIXELS, tmp_path / "cut", EncodeConfig(clip=5, keep_video=True))
    wide = encode(cut.path, Pixels((16, 32)), tmp_path / "wide", EncodeConfig(crop=True, keep_video=True))
    for episode in wide.episodes:
        frames = np.stack(list(wide.frames(episode))).astype(int)
        assert len(frames) == episode.steps
        latents = np.asarray(wide.latents)[episode.start : episode.stop].transpose(0, 2, 3, 1)
        assert abs(frames - latents).mean() < 3


def test_a_killed_encoding_of_clips_goes_on(tmp_path: Path, recording: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    config, count = EncodeConfig(clip=5, keep_video=True), 0
    whole = encode(recording.path, PIXELS, tmp_path / "whole", config)
    add = Writer.add

    def dying(self: Writer, *args: object) -> None:
        nonlocal count
        count += 1
        if count % 2 == 0:
            raise KeyboardInterrupt
        add(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Writer, "add", dying)
    for _ in whole.episodes:
        try:
            store = encode(recording.path, PIXELS, tmp_path / "out", config)
        except KeyboardInterrupt:
            continue
        break
    assert count > len(whole.episodes)
    assert store.episodes == whole.episodes
    assert {p.name: p.read_bytes() for p in (store.path / "video").iterdir()} == {
        p.name: p.read_bytes() for p in (whole.path / "video").iterdir()
    }


def test_a_clip_without_its_video_is_an_error(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s", make_header())
    actions, latents = make_arrays(writer.header, 3)
    film = make_store(tmp_path / "r", [3], latent=None, tokenizer="", video=True)
    writer.add("a", actions, latents, film.video(film.episodes[0]))
    writer.add("b", actions, latents, None, {"video": "c"})
    with pytest.raises(StoreError, match="1 episodes have video and 1 have none, as 'b'"):
        writer.finish()


def test_the_simulator_is_not_put_into_the_middle_of_a_recording(tmp_path: Path) -> None:
    """A clip from later on lacks the actions that led to it, and its seed alone would be another place."""
    writer = Writer(tmp_path / "r", make_header(latent=None, tokenizer="", embodiment="sim_g1"))
    actions, _ = make_arrays(writer.header, 9)
    film = make_store(tmp_path / "f", [9], latent=None, tokenizer="", video=True)
    writer.add("room", actions, None, film.video(film.episodes[0]), {"seed": 3})
    writer.finish()
    store = encode(tmp_path / "r", PIXELS, tmp_path / "out", EncodeConfig(clip=5))
    assert [origin_of(store, e, 2) is not None for e in store.episodes] == [True, False]
