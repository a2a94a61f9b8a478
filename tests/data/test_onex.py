"""1X's layouts, read where they lie: what is written comes back, by the rules of each, and what is damaged is named."""

from __future__ import annotations

import json
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwm.data.clips import Clips
from hwm.data.mixture import DataConfig
from hwm.data.onex.layout import real_frames, run_starts
from hwm.data.onex.raw import OneXRaw
from hwm.data.onex.specs import ACTIONS_1X, onex_v1, onex_v2
from hwm.data.onex.v1 import OneXV1
from hwm.data.onex.v2 import OneXTest, OneXV2, OneXV2Joined
from hwm.data.onex.write import ShardData, write_test, write_v1, write_v2
from hwm.data.readers import open_store
from hwm.data.store import StoreError
from hwm.errors import HwmError
from tests.data.onex_toys import (
    make_v1,
    make_v2,
    segments_of,
    states_of,
    steps_by_hand,
    windows_by_hand,
    without_overlaps,
)

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=6)


# ---------------------------------------------------------------------- v1.1
@settings(max_examples=20)
@given(lengths=lengths, neck=st.sampled_from([1, 3]), seed=st.integers(0, 99))
def test_v1_comes_back(tmp_path_factory, lengths: list[int], neck: int, seed: int) -> None:
    path = tmp_path_factory.mktemp("v1") / "val_v1.1"
    ids, states, segments = make_v1(path, lengths, seed, neck_width=neck)
    store = open_store(path)
    assert isinstance(store, OneXV1)
    store.verify()
    assert store.steps == len(ids)
    assert np.array_equal(store.latents[:], ids)
    assert np.array_equal(store.actions[:], states[:, None])
    assert store.fields["neck_desired"].shape == (len(ids), neck)
    assert [e.steps for e in store.episodes] == lengths
    assert [e.info["segment"] for e in store.episodes] == list(range(len(lengths)))
    assert np.array_equal(store.segments[:], segments)
    assert len({e.id for e in store.episodes}) == len(lengths)
    assert store.seconds == pytest.approx(sum(lengths) / 30)


def test_the_25_actions_of_v1_are_named_field_by_field(tmp_path: Path) -> None:
    make_v1(tmp_path / "a", [40])
    store = OneXV1(tmp_path / "a")
    column = {name: store.actions[:][:, 0, i] for i, name in enumerate(ACTIONS_1X)}
    assert store.header.action_names == ACTIONS_1X
    assert np.array_equal(np.stack(list(column.values())[:21], 1), store.fields["joint_pos"])
    assert np.array_equal(column["LEFT_HAND_CLOSURE"], store.fields["l_hand_closure"][:, 0])
    assert np.array_equal(column["RIGHT_HAND_CLOSURE"], store.fields["r_hand_closure"][:, 0])
    assert np.array_equal(column["LINEAR_VELOCITY"], store.fields["driving_command"][:, 0])
    assert np.array_equal(column["ANGULAR_VELOCITY"], store.fields["driving_command"][:, 1])


@settings(max_examples=60)
@given(lengths=lengths, window=st.integers(1, 5), stride=st.integers(1, 6))
def test_windows_of_v1_are_those_of_the_rules(tmp_path_factory, lengths: list[int], window: int, stride: int) -> None:
    path = tmp_path_factory.mktemp("v1") / "val"
    ids, states, segments = make_v1(path, lengths)
    wanted = windows_by_hand(segments, window, stride)
    if not wanted:
        with pytest.raises(HwmError, match=r"no episode has"):
            Clips(open_store(path), window, stride=stride)
        return
    clips = Clips(open_store(path), window, stride=stride)
    assert clips.starts[np.arange(len(clips))].tolist() == wanted
    apart = Clips(clips.store, window, stride=stride, filter_overlaps=True)
    assert apart.starts[np.arange(len(apart))].tolist() == without_overlaps(wanted, window, stride)
    batch = clips.batch([len(clips) - 1])
    frames = wanted[-1] + stride * np.arange(window)
    assert np.array_equal(batch.latents[0], ids[frames])
    assert np.array_equal(batch.actions[0, :, -1], states[frames])  # the last action leads to the frame shown


def test_the_published_windows_keep_fifteen_starts_in_240_frames(tmp_path: Path) -> None:
    make_v1(tmp_path / "a", [520])
    clips = Clips(OneXV1(tmp_path / "a"), 16, stride=15, filter_overlaps=True)
    assert clips.starts[np.arange(len(clips))].tolist() == [*range(15), *range(240, 255)]
    spec = clips.spec()
    assert spec.latent == onex_v1().latent
    assert (spec.fps, spec.tokenizer) == (onex_v1().fps, onex_v1().tokenizer)
    assert spec.actions["1x_eve"].per_step == onex_v1().actions["1x_eve"].per_step == 15


def test_a_segment_id_that_returns_is_another_episode(tmp_path: Path) -> None:
    # the rule of first and last frame alone would let a window run over the frames between
    segments = np.array([0] * 10 + [1] * 3 + [0] * 10, np.int32)
    write_v1(tmp_path / "a", np.zeros((23, 16, 16), np.int64), states_of(23), segments)
    store = open_store(tmp_path / "a")
    assert [e.steps for e in store.episodes] == [10, 3, 10]
    assert len({e.id for e in store.episodes}) == 3


# ---------------------------------------------------------------------- v2.0 tokens
@settings(max_examples=30)
@given(shards=st.lists(lengths, min_size=1, max_size=3), flat=st.booleans(), seed=st.integers(0, 99))
def test_v2_comes_back(tmp_path_factory, shards: list[list[int]], flat: bool, seed: int) -> None:
    path = tmp_path_factory.mktemp("v2") / "split"
    data = make_v2(path, shards, flat=flat, seed=seed)
    assert (path / "videos").is_dir() != flat
    store = open_store(path)
    assert isinstance(store, OneXV2)
    store.verify()
    wanted = [(d, *step) for d in data for step in steps_by_hand(d)]
    assert store.steps == len(wanted)
    assert np.array_equal(store.latents[:], np.stack([d.tokens[clip, step] for d, clip, step, _ in wanted]))
    assert np.array_equal(store.actions[:], np.stack([d.states[own] for d, _, _, own in wanted]))
    assert len(store.episodes) == sum(len(d.tokens) for d in data)  # no clip is lost: each keeps one step at least
    for e in store.episodes:
        d = data[e.info["shard"]]
        assert e.info["segment"] == d.segments[17 * e.info["clip"]]
        assert np.array_equal(store.latents[e.start : e.stop], d.tokens[e.info["clip"], : e.steps])
        assert (store.segments[e.start : e.stop] == store.segments[e.start]).all()
        assert store.episodes[store.segments[e.start]].id == e.id
    assert [e.stop for e in store.episodes] == [*(e.start for e in store.episodes[1:]), store.steps]
    frames = sum(1 + 8 * (e.steps - 1) for e in store.episodes)
    assert store.seconds == pytest.approx(frames / 30)


@settings(max_examples=30)
@given(shards=st.lists(lengths, min_size=1, max_size=3))
def test_windows_of_v2_are_whole_clips_of_one_recording(tmp_path_factory, shards: list[list[int]]) -> None:
    path = tmp_path_factory.mktemp("v2") / "split"
    data = make_v2(path, shards)
    whole = [
        (d, clip)
        for d in data
        for clip in range(len(d.states) // 17)
        if len(set(d.segments[17 * clip : 17 * clip + 17].tolist())) == 1
    ]
    if not whole:
        with pytest.raises(HwmError, match=r"no episode has the 3 steps of a window"):
            Clips(open_store(path), 3)
        return
    clips = Clips(open_store(path), 3)
    batch = clips.batch(np.arange(len(clips)))
    assert np.array_equal(batch.latents, np.stack([d.tokens[clip] for d, clip in whole]))
    for d, clip, actions in zip(*zip(*whole, strict=True), batch.actions, strict=True):
        own = torch.from_numpy(d.states[17 * clip : 17 * clip + 17])
        assert torch.equal(actions[0], own[:1].expand(8, 25))
        assert torch.equal(actions[1:].flatten(0, 1), own[1:])
    # a shorter window begins where a clip does: another step is not of one frame
    assert (Clips(clips.store, 2).batch([0]).latents[0] == batch.latents[0, :2]).all() or shards[0][0] < 17
    short = Clips(clips.store, 2)
    assert {int(s) for s in short.starts[np.arange(len(short))]} <= {e.start for e in clips.store.episodes}


@settings(max_examples=30)
@given(shards=st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=3), min_size=1, max_size=2))
def test_joined_windows_are_clips_that_follow_one_another(tmp_path_factory, shards: list[list[int]]) -> None:
    path = tmp_path_factory.mktemp("v2") / "split"
    data = make_v2(path, shards)
    pairs = [
        (d, clip)
        for d in data
        for clip in range(len(d.states) // 17 - 1)
        if len(set(d.segments[17 * clip : 17 * clip + 34].tolist())) == 1
    ]
    store = open_store(path, "1x-v2.0-joined")
    assert isinstance(store, OneXV2Joined)
    assert np.array_equal(store.latents[:], open_store(path).latents[:])
    assert np.array_equal(store.actions[:], open_store(path).actions[:])
    assert store.seconds == pytest.approx(open_store(path).seconds)
    if not pairs:
        with pytest.raises(HwmError, match=r"no episode has"):
            Clips(store, 6)
        return
    clips = Clips(store, 6)
    batch = clips.batch(np.arange(len(clips)))
    assert np.array_equal(batch.latents, np.stack([d.tokens[c : c + 2].reshape(6, 32, 32) for d, c in pairs]))
    apart = Clips(store, 6, filter_overlaps=True)
    first = apart.starts[np.arange(len(apart))]
    assert (np.diff(first) >= 6).all()


def test_the_spec_is_what_recipes_are_written_for(tmp_path: Path) -> None:
    make_v2(tmp_path / "a", [[40]])
    spec, expected = open_store(tmp_path / "a").data_spec(), onex_v2()
    assert (spec.latent, spec.tokenizer, spec.fps) == (expected.latent, expected.tokenizer, expected.fps)
    assert list(spec.actions) == list(expected.actions) == ["1x_eve"]
    assert spec.actions["1x_eve"].names == expected.actions["1x_eve"].names
    assert spec.actions["1x_eve"].per_step == expected.actions["1x_eve"].per_step


def test_models_train_on_both_readings(tmp_path: Path) -> None:
    from hwm.models.masked_hwm_shared import MaskedHWMShared

    make_v2(tmp_path / "a", [[60], [40]])
    for config, steps, reader in (
        (MaskedHWMShared.Config(dim=16, depth=2, heads=2, shared_from=1, past=2), 3, ""),
        (MaskedHWMShared.Config(dim=16, depth=2, heads=2, past=3, horizon=3, clip_factors=3), 6, "1x-v2.0-joined"),
    ):
        data = DataConfig(stores=(str(tmp_path / "a"),), steps=steps, reader=reader).open()
        loss, _ = config.build(data.spec)(data.batch(0, 0, 2))
        assert 5 < loss.item() < 20
        loss.backward()


def test_windows_of_clips_take_no_stride(tmp_path: Path) -> None:
    make_v2(tmp_path / "a", [[40]])
    with pytest.raises(HwmError, match=r"clips of 3 steps, which do not lie evenly"):
        Clips(open_store(tmp_path / "a"), 2, stride=2)


def test_some_shards_are_enough(tmp_path: Path) -> None:
    data = make_v2(tmp_path / "a", [[40], [50], [60], [17]])
    for place in ("videos/video_1.bin", "robot_states/states_1.bin", "segment_indices/segment_idx_1.bin"):
        (tmp_path / "a" / place).unlink()
    store = open_store(tmp_path / "a")
    assert {e.info["shard"] for e in store.episodes} == {0, 2, 3}
    last = store.episodes[-1]
    assert np.array_equal(store.latents[last.start : last.stop], data[3].tokens[0])


def test_what_was_cut_is_told(tmp_path: Path) -> None:
    make_v2(tmp_path / "a", [[20, 31], [34], [7, 11]])  # 51 = 3 clips, one of them of two recordings; 34; 18
    store = open_store(tmp_path / "a")
    assert store.notes == (
        "shards: 3, frames: 103, clips: 7",
        "clips cut short: 2 where a recording ends, 1 where a shard ends",
    )
    assert [e.steps for e in store.episodes] == [3, 1, 3, 3, 3, 1, 1]


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8), piece=st.integers(1, 50))
def test_runs_and_real_frames_are_those_of_a_count(lengths: list[int], piece: int) -> None:
    segments = segments_of(lengths)
    starts = run_starts(segments, piece)
    assert starts.tolist() == [0, *np.cumsum(lengths)[:-1].tolist()]
    real = real_frames(starts, len(segments))
    for clip, count in enumerate(real):
        own = segments[17 * clip : 17 * clip + 17]
        assert count == (own == own[0]).sum()


# ---------------------------------------------------------------------- test samples
@pytest.mark.parametrize("files", [1, 3])
def test_test_samples_come_back(tmp_path: Path, files: int) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 64_000, (5, 3, 32, 32))
    states = rng.normal(size=(5, 64, 25)).astype(np.float32)
    write_test(tmp_path / "a", tokens, states, files=files)
    store = open_store(tmp_path / "a")
    assert isinstance(store, OneXTest)
    store.verify()
    assert np.array_equal(store.latents[:].reshape(5, 3, 32, 32), tokens)
    assert np.array_equal(store.states[:], states)
    assert [e.steps for e in store.episodes] == [3] * 5
    assert np.array_equal(Clips(store, 3).batch([4]).actions[0, 1:].reshape(16, 25), states[4, 1:17])
    assert np.allclose(store.statistics[0], states.reshape(-1, 25).mean(0))
    batch = store.batch([4, 1])
    assert (batch.missing, batch.embodiment) == (3, "1x_eve")
    assert np.array_equal(batch.latents, tokens[[4, 1]])
    assert np.array_equal(batch.actions[:, :3], store.actions[:].reshape(5, 3, 8, 25)[[4, 1]])
    assert np.array_equal(batch.actions[:, 3, :], states[[4, 1], 17][:, None].repeat(8, 1))
    assert np.array_equal(batch.actions[:, 4:].reshape(2, 16, 25), states[[4, 1], 18:34])
    with pytest.raises(HwmError, match=r"need 68 states a sample"):
        store.batch([0], ahead=9)


# ---------------------------------------------------------------------- errors
def truncate(path: Path, by: int = 4) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - by)


@pytest.mark.parametrize(
    "name", ["video.bin", "segment_ids.bin", *(f"actions/{f}.bin" for f in ("joint_pos", "neck_desired"))]
)
def test_damage_of_v1_is_named(tmp_path: Path, name: str) -> None:
    make_v1(tmp_path / "a", [30])
    truncate(tmp_path / "a" / name)
    with pytest.raises(StoreError, match=f"{name} has [0-9,]+ bytes"):
        open_store(tmp_path / "a")
    (tmp_path / "a" / name).write_bytes(b"")
    with pytest.raises(StoreError, match=f"{name} has 0 bytes|is not a store"):
        open_store(tmp_path / "a")


def test_a_width_that_is_not_published_is_refused(tmp_path: Path) -> None:
    make_v1(tmp_path / "a", [30])
    (tmp_path / "a/actions/neck_desired.bin").write_bytes(bytes(30 * 2 * 4))
    with pytest.raises(StoreError, match=r"neck_desired.bin has 240 bytes; .* 1 or 3 columns take 120 or 360"):
        open_store(tmp_path / "a")


def test_metadata_of_something_else_is_refused(tmp_path: Path) -> None:
    make_v1(tmp_path / "a", [30])
    (tmp_path / "a/metadata.json").write_text(json.dumps({"num_images": 30}), encoding="utf-8")
    with pytest.raises(StoreError, match=r"metadata.json lacks s, vocab_size, hz"):
        open_store(tmp_path / "a")
    (tmp_path / "a/metadata.json").write_text("{", encoding="utf-8")
    with pytest.raises(StoreError, match=r"metadata.json cannot be read"):
        open_store(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("videos/video_1.bin", "video_1.bin has .* no whole number of rows"),
        ("robot_states/states_1.bin", "states_1.bin has .* no whole number of rows"),
        ("segment_indices/segment_idx_1.bin", "segment_idx_1.bin has 39 frames, the states of its shard make it 40"),
    ],
)
def test_damage_of_v2_is_named(tmp_path: Path, name: str, message: str) -> None:
    make_v2(tmp_path / "a", [[40], [40]])
    truncate(tmp_path / "a" / name)
    with pytest.raises(StoreError, match=message):
        open_store(tmp_path / "a")
    (tmp_path / "a" / name).unlink()
    with pytest.raises(StoreError, match=rf"{name} is missing, though other files of shard 1 are there.* --shards 1"):
        open_store(tmp_path / "a")


def test_a_shard_of_another_size_than_its_metadata_is_named(tmp_path: Path) -> None:
    make_v2(tmp_path / "a", [[40]])
    (tmp_path / "a/metadata/metadata_0.json").write_text(
        json.dumps({"shard_num_frames": 41, "shard_ind": 0}), encoding="utf-8"
    )
    with pytest.raises(
        StoreError, match=r"metadata_0.json has 41 shard_num_frames, the states of its shard make it 40"
    ):
        open_store(tmp_path / "a")


def test_a_split_without_segments_is_no_test_split(tmp_path: Path) -> None:
    make_v2(tmp_path / "a", [[40]], flat=True)
    (tmp_path / "a/segment_idx_0.bin").unlink()
    with pytest.raises(StoreError, match=r"these are no test samples.* it lacks its segment_idx_N.bin"):
        open_store(tmp_path / "a")


def test_verify_reads_everything(tmp_path: Path) -> None:
    data = make_v2(tmp_path / "a", [[40], [40]])
    bad = data[1].tokens.copy()
    bad[1, 2, 3, 4] = 64_000
    (tmp_path / "a/videos/video_1.bin").write_bytes(bad.astype("<i4").tobytes())
    with pytest.raises(StoreError, match=r"ids from [0-9]+ to 64000 .*outside the vocabulary of 64,000"):
        open_store(tmp_path / "a").verify()
    make_v1(tmp_path / "b", [30])
    closure = np.zeros(30, np.float32)
    closure[7] = np.inf
    (tmp_path / "b/actions/l_hand_closure.bin").write_bytes(closure.tobytes())
    with pytest.raises(StoreError, match=r"LEFT_HAND_CLOSURE of frame 7 is inf"):
        open_store(tmp_path / "b").verify()


def test_other_folders_and_readers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HwmError, match=r"there is no store"):
        open_store(tmp_path / "none")
    with pytest.raises(StoreError, match=r"is not a store.*1x-v1.1, 1x-v2.0"):
        open_store(tmp_path)
    with pytest.raises(HwmError, match=r"no reader of stores called '1x-v2'.*1x-v2.0"):
        open_store(tmp_path, "1x-v2")
    with pytest.raises(StoreError, match=r"holds no shard"):
        open_store(tmp_path, "1x-v2.0")


def test_a_worker_opens_the_folder_again(tmp_path: Path) -> None:
    make_v1(tmp_path / "v1", [30])
    make_v2(tmp_path / "v2", [[40]])
    for path, reader in (("v1", ""), ("v2", ""), ("v2", "1x-v2.0-joined")):
        store = open_store(tmp_path / path, reader)
        sent = bytes(ForkingPickler.dumps(store))
        assert len(sent) < 500
        again = ForkingPickler.loads(sent)
        assert type(again) is type(store)
        assert np.array_equal(again.latents[:5], store.latents[:5])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: write_v1(p, np.full((3, 16, 16), 2**18), states_of(3), np.zeros(3)), "from 0 to 262,143"),
        (lambda p: write_v1(p, np.zeros((3, 16, 16), int), states_of(2), np.zeros(3)), "states of shape"),
        (lambda p: write_v1(p, np.zeros((3, 16, 16), int), states_of(3), np.zeros(3), neck_width=2), "1 or 3 columns"),
        (lambda p: write_v2(p, []), "no shards"),
        (lambda p: write_v2(p, [ShardData(states_of(18), np.zeros(18))]), "either tokens or frames"),
        (lambda p: write_v2(p, [ShardData(states_of(18), np.zeros(18), np.zeros((1, 3, 9, 9)))]), "tokens of shape"),
        (lambda p: write_test(p, np.zeros((2, 3, 32, 32), int), np.zeros((2, 64, 24))), "states of shape"),
        (lambda p: write_test(p, np.zeros((2, 3, 32, 32), int), np.zeros((2, 64, 25)), files=3), "do not spread"),
    ],
)
def test_what_cannot_be_is_not_written(tmp_path: Path, write, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        write(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    make_v1(tmp_path / "a", [3])
    with pytest.raises(StoreError, match=r"holds something already"):
        make_v2(tmp_path / "a", [[3]])
    assert not OneXRaw.recognises(tmp_path / "a")


def test_shards_that_are_not_there_are_told_of(tmp_path: Path) -> None:
    make_v2(tmp_path / "v2", [[40], [30]])
    meta = tmp_path / "v2/metadata.json"
    assert open_store(tmp_path / "v2").notes[0].startswith("shards: 2, ")
    meta.write_text(json.dumps({**json.loads(meta.read_bytes()), "num_shards": 5}), encoding="utf-8")
    assert open_store(tmp_path / "v2").notes[0].startswith("shards: 2 of 5, ")
