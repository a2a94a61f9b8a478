"""1X v2.0 as video: every frame beside its own state, wherever in a shard it lies; and real clips, where they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwm.data.clips import Clips
from hwm.data.merge import merge
from hwm.data.onex.raw import OneXRaw
from hwm.data.onex.specs import ACTIONS_1X
from hwm.data.onex.write import ShardData, write_v2
from hwm.data.readers import open_store
from hwm.data.show import contact_sheet
from hwm.data.store import StoreError
from hwm.encode.episodes import EncodeConfig, encode
from hwm.errors import HwmError
from hwm.evaluate.camera import camera_video
from hwm.loading import load_tokenizer
from hwm.pictures.video import read_video, write_video
from tests.conftest import ROOT, make_frames
from tests.data.onex_toys import segments_of, states_of

REAL = ROOT.parent / "shared" / "data" / "onex_clips"
LENGTHS = [[70, 25], [40, 1, 30]]


@pytest.fixture(scope="module", params=[False, True], ids=["tree", "flat"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of moving squares, of 95 and 71 frames."""
    shards, before = [], 0
    for number, lengths in enumerate(LENGTHS):
        n = sum(lengths)
        pictures = make_frames(n, 32, 96, seed=number)
        shards.append(ShardData(states_of(n, before), segments_of(lengths, 10 * number), frames=pictures))
        before += n
    return write_v2(tmp_path_factory.mktemp("raw") / "val_v2.0_raw", shards, flat=request.param)


def film(folder: Path, shard: int) -> np.ndarray:
    return np.stack(list(read_video(next(folder.rglob(f"video_{shard}.mp4")))))


def test_frames_and_states_go_together(folder: Path) -> None:
    store = open_store(folder)
    assert isinstance(store, OneXRaw)
    store.verify()
    h = store.header
    assert (h.latent, h.actions_per_step, h.fps, h.action_names) == (None, 1, 30.0, ACTIONS_1X)
    assert store.has_video
    assert [e.steps for e in store.episodes] == [70, 25, 40, 1, 30]
    assert [e.info["segment"] for e in store.episodes] == [0, 1, 10, 11, 12]
    assert np.array_equal(store.actions[:], states_of(166)[:, None])
    whole = [film(folder, 0), film(folder, 1)]
    for e in store.episodes:
        first = e.info["frame"]
        frames = np.stack(list(store.frames(e)))
        assert np.array_equal(frames, whole[e.info["shard"]][first : first + e.steps])
        # the state that stands at a frame's place in its shard is that of the frame
        offset = 95 * e.info["shard"] + first
        assert np.array_equal(store.actions[e.start : e.stop][:, 0], states_of(e.steps, offset))


@settings(max_examples=25)
@given(episode=st.integers(0, 4), every=st.integers(1, 5), start=st.integers(0, 75), stop=st.integers(0, 80))
def test_parts_of_an_episode_are_those_of_the_whole(
    folder: Path, episode: int, every: int, start: int, stop: int
) -> None:
    store = open_store(folder)
    e = store.episodes[episode]
    whole = list(store.frames(e))
    part = list(store.frames(e, every, start, stop))
    assert len(part) == len(range(e.steps)[start:stop:every])
    assert all(np.array_equal(a, b) for a, b in zip(part, whole[start:stop:every], strict=True))


def test_it_is_encoded_like_any_recording(folder: Path, tmp_path: Path) -> None:
    encoded = encode(folder, load_tokenizer("pixels-16x16"), tmp_path / "px", EncodeConfig(every=2, keep_video=True))
    raw = open_store(folder)
    assert [e.id for e in encoded.episodes] == [e.id for e in raw.episodes]
    assert [e.steps for e in encoded.episodes] == [35, 13, 20, 1, 15]
    assert encoded.header.embodiment == "1x_eve"
    e = raw.episodes[2]
    batch = Clips(encoded, 3).batch([33 + 11])  # 35 - 2 windows of the first episode, 13 - 2 of the second
    assert np.array_equal(batch.actions[0, :, 1], raw.actions[e.start : e.start + 6 : 2][:, 0])
    assert np.array_equal(batch.actions[0, 1:, 0], raw.actions[e.start + 1 : e.start + 5 : 2][:, 0])
    # the kept video shows the same pictures at the same places, but for its compression
    clips = Clips(encoded, 3)
    shown = camera_video(clips, np.array([33 + 11]), 3, (32, 96))[0].movedim(1, -1).numpy() * 255
    wanted = np.stack(list(raw.frames(e, 2, 0, 6))).astype(float)
    assert np.abs(shown - wanted).mean() < 5
    assert np.abs(shown - wanted[::-1]).mean() > np.abs(shown - wanted).mean() * 2
    contact_sheet(raw, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_it_is_merged_into_a_store(folder: Path, tmp_path: Path) -> None:
    merged = merge([folder], tmp_path / "all")
    raw = open_store(folder)
    assert np.array_equal(merged.actions[:], raw.actions[:])
    assert np.allclose(merged.statistics, raw.statistics, rtol=1e-6)
    assert len(list(merged.frames(merged.episodes[1]))) == raw.episodes[1].steps


def test_an_episode_has_no_file_of_its_own(folder: Path) -> None:
    store = open_store(folder)
    with pytest.raises(StoreError, match="has no video file of its own"):
        store.video(store.episodes[0])
    with pytest.raises(HwmError, match="has no latents yet"):
        Clips(store, 3)


def test_a_short_film_is_found(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "a")
    write_video(next(copy.rglob("video_1.mp4")), make_frames(60, 32, 96), 30)
    store = open_store(copy)
    with pytest.raises(StoreError, match=r"video_1.mp4 shows 60 frames, its states are of 71"):
        store.verify()
    with pytest.raises(HwmError, match=r"shows 19 steps, its actions are of 30"):
        encode(copy, load_tokenizer("pixels-16x16"), tmp_path / "px")


def test_frames_and_states_must_be_as_many(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="shard 0 has 9 frames and 10 states"):
        write_v2(tmp_path / "a", [ShardData(states_of(10), segments_of([10]), frames=make_frames(9))])


# ---------------------------------------------------------------------- real clips
@pytest.fixture
def real(tmp_path: Path) -> Path:
    """The real clips as shards of the flat layout; their states are not published, so made up."""
    if not REAL.is_dir():
        pytest.skip("needs the real 1X clips, which are not part of the project")
    clips = sorted(REAL.glob("*.mp4"))
    counts = [int(p.stem.rpartition("_")[2].removesuffix("f")) for p in clips]
    assert counts == [17, 17, 17, 51]
    shards = [
        ShardData(states_of(n, 100 * i), segments_of([17] * (n // 17), 10 * i), frames=make_frames(n))
        for i, n in enumerate(counts)
    ]
    folder = write_v2(tmp_path / "val_v2.0_raw", shards, flat=True)
    for i, clip in enumerate(clips):
        shutil.copyfile(clip, folder / f"video_{i}.mp4")
    return folder


def test_real_clips_are_read(real: Path, tmp_path: Path) -> None:
    store = open_store(real)
    assert isinstance(store, OneXRaw)
    store.verify()
    assert (len(store.episodes), store.steps) == (6, 102)
    assert {f.shape for e in store.episodes for f in store.frames(e)} == {(256, 256, 3)}
    # three clips of one film, each begun in its middle, are the film
    parts = [np.stack(list(store.frames(e))) for e in store.episodes[3:]]
    assert np.array_equal(np.concatenate(parts), film(real, 3))
    # neighbouring frames of a film are far more alike than pictures of different films
    desk, office = (np.stack(list(store.frames(store.episodes[i]))).astype(float) for i in (0, 1))
    assert np.abs(np.diff(desk, axis=0)).mean() < np.abs(desk - office).mean() / 2


def test_real_clips_become_latents(real: Path, tmp_path: Path) -> None:
    encoded = encode(real, load_tokenizer("pixels-64x64"), tmp_path / "px")
    clips = Clips(encoded, 17)
    assert len(clips) == 6  # one window a clip: none crosses a border
    video = clips.batch([3, 4, 5]).latents
    inside = (video[:, 1:] - video[:, :-1]).abs().mean()
    assert 0.1 < video.mean() < 0.9
    assert inside < 0.05
    assert np.array_equal(clips.batch([4]).actions[0, :, 0], states_of(17, 317))
