"""Windows: they stay within an episode, and their actions lead to their steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwm.data import clips as clips_module
from hwm.data.clips import Clips, fake_batch
from hwm.data.mixture import DataConfig
from hwm.data.readers import open_store
from hwm.data.store import Store
from hwm.data.writer import Writer
from hwm.encode.episodes import thin_actions
from hwm.errors import HwmError
from hwm.types import ActionSpec, DataSpec, LatentSpec
from tests.conftest import make_arrays, make_header, make_store


def numbered(path: Path, lengths: list[int], per_step: int = 2) -> Store:
    """A store whose values tell where they are from: id = step of the episode; actions = (episode, step * K + slot)."""
    writer = Writer(path, make_header(latent=LatentSpec((1, 1), 1000), actions_per_step=per_step))
    for i, n in enumerate(lengths):
        slots = np.arange(n * per_step, dtype=np.float32).reshape(n, per_step)
        actions = np.stack([np.full_like(slots, i), slots], -1)
        writer.add(f"e{i}", actions, np.arange(n).reshape(n, 1, 1))
    return writer.finish()


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 25), min_size=1, max_size=5),
    length=st.integers(1, 6),
    every=st.integers(1, 4),
    stride=st.integers(1, 4),
    per_step=st.integers(1, 3),
)
def test_windows_never_cross_an_episode(tmp_path_factory, lengths, length, every, stride, per_step) -> None:
    store = numbered(tmp_path_factory.mktemp("s"), lengths, per_step)
    span = (length - 1) * stride + 1
    if max(lengths) < span:
        with pytest.raises(HwmError, match=f"no episode has the {span} steps .* the longest has {max(lengths)}"):
            Clips(store, length, every, stride)
        return
    clips = Clips(store, length, every, stride)
    assert len(clips) == sum(len(range(0, n - span + 1, every)) for n in lengths)
    batch = clips.batch(np.arange(len(clips)))
    steps = batch.latents[:, :, 0, 0]
    assert (steps.diff(dim=1) == stride).all()
    assert batch.actions.shape == (len(clips), length, stride * per_step, 2)
    episode = batch.actions[..., 0]
    assert (episode == episode[:, :1, :1]).all()
    # the last action of a step is the last one before that step's moment, and they follow one another without a gap
    slot = batch.actions[..., 1]
    assert torch.equal(slot[:, :, -1], steps * per_step + per_step - 1.0)
    assert (slot[:, 1:].flatten(1).diff(dim=1) == 1).all()
    if length > 1:
        assert torch.equal(slot[:, 1, 0], slot[:, 0, -1] + 1)
    # windows of an episode start at its beginning and are `every` apart
    starts = {int(e): steps[episode[:, 0, 0] == e, 0].tolist() for e in episode[:, 0, 0].unique()}
    assert all(s == list(range(0, s[-1] + 1, every)) for s in starts.values())


@settings(max_examples=40)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
def test_actions_that_follow_are_those_that_lead_to_the_next_step(
    tmp_path_factory, lengths, length, stride, per_step
) -> None:
    """Those of a window that is one step longer, where its episode has one."""
    store = numbered(tmp_path_factory.mktemp("s"), [*lengths, 10], per_step)
    clips = Clips(store, length, stride=stride)
    batch, goes_on = clips.batch(np.arange(len(clips))), 0
    assert batch.following is not None
    for i, following in enumerate(batch.following):
        episode, first = int(batch.actions[i, 0, 0, 0]), int(batch.latents[i, 0, 0, 0])
        if first + length * stride < [*lengths, 10][episode]:
            slots = (first + (length - 1) * stride + 1) * per_step + np.arange(stride * per_step)
            assert following[:, 0].tolist() == [episode] * len(slots)
            assert following[:, 1].tolist() == slots.tolist()
            goes_on += 1
        else:
            assert following.isnan().all()
            assert torch.equal(batch.actions_ahead[i, -1], batch.actions[i, -1])
            assert clips.batch([i]).following is None
    assert goes_on


@pytest.mark.parametrize("per_step", [1, 3])
def test_a_stride_is_the_same_as_a_thinned_store(tmp_path: Path, per_step: int) -> None:
    stride, lengths = 3, [10, 3, 16]
    store = numbered(tmp_path / "s", lengths, per_step)
    thin = Writer(tmp_path / "t", make_header(latent=LatentSpec((1, 1), 1000), actions_per_step=stride * per_step))
    for e in store.episodes:
        rows = slice(e.start, e.stop)
        thin.add(e.id, thin_actions(np.asarray(store.actions[rows]), stride), store.latents[rows][::stride])
    thinned = Clips(thin.finish(), 2)
    strided = Clips(store, 2, every=stride, stride=stride)
    a, b = strided.batch(range(len(strided))), thinned.batch(range(len(thinned)))
    assert torch.equal(a.latents, b.latents)
    assert torch.equal(a.actions, b.actions)
    mine, other = strided.spec(), thinned.spec()
    assert mine.actions["toy"].per_step == other.actions["toy"].per_step == stride * per_step
    assert mine.fps == pytest.approx(store.header.fps / stride)


def test_before_an_episode_its_first_action_is_repeated(tmp_path: Path) -> None:
    clips = Clips(numbered(tmp_path / "s", [9, 9], 2), 2, stride=3)
    assert clips.batch([0]).actions[0, :, :, 1].tolist() == [[0, 1, 0, 1, 0, 1], [2, 3, 4, 5, 6, 7]]
    # the second window of the second episode: one real step before it, then the first repeated
    second = int(np.flatnonzero(clips.starts[np.arange(len(clips))] == 9 + 1)[0])
    assert clips.batch([second]).actions[0, 0, :, 1].tolist() == [0, 1, 0, 1, 2, 3]
    assert clips.batch([second]).actions[0, 0, :, 0].unique().tolist() == [1]


def test_batches_keep_order_and_type(store: Store) -> None:
    clips = Clips(store, 3)
    batch = clips.batch([5, 0, 5])
    assert batch.embodiment == "toy"
    assert batch.latents.dtype == torch.int64
    assert batch.actions.dtype == torch.float32
    assert batch.missing == 0
    assert torch.equal(batch.latents[0], batch.latents[2])
    assert np.array_equal(batch.latents[1].numpy(), store.latents[:3])
    assert np.array_equal(batch.actions[0].numpy(), store.actions[5:8])
    batch.actions.zero_()  # a copy: the file is as it was
    assert np.abs(store.actions[5:8]).min() > 0


def test_half_float_actions_become_float32(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", action_dtype="float16")
    for stride in (1, 2):
        assert Clips(store, 2, stride=stride).batch([0]).actions.dtype == torch.float32


def test_pixels_become_values_between_0_and_1(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", latent=LatentSpec((4, 4), channels=3), dtype="uint8")
    batch = Clips(store, 2).batch([3])
    assert batch.latents.shape == (1, 2, 3, 4, 4)
    assert torch.allclose(batch.latents[0], torch.from_numpy(store.latents[3:5].astype(np.float32)) / 255)
    motion = Clips(store, 2).motion()
    assert 0 < motion.max() <= 1


def test_continuous_latents_are_floats(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", latent=LatentSpec((2, 2), channels=4))
    batch = Clips(store, 2).batch([1])
    assert batch.latents.dtype == torch.float32
    assert np.array_equal(batch.latents[0].numpy(), store.latents[1:3].astype(np.float32))


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_the_spec_has_the_statistics_of_each_channel(tmp_path: Path, dtype: str) -> None:
    store = make_store(tmp_path / "s", latent=LatentSpec((4, 4), channels=3), dtype=dtype)
    values = np.asarray(store.latents).astype(np.float64) / (255 if dtype == "uint8" else 1)
    for spec in (Clips(store, 2).spec(), DataConfig(stores=(str(store.path),), steps=2).open().spec):
        assert spec.latent_mean == pytest.approx(values.mean((0, 2, 3)))
        assert spec.latent_std == pytest.approx(values.std((0, 2, 3)))
    discrete = Clips(make_store(tmp_path / "d"), 2).spec()
    assert (discrete.latent_mean, discrete.latent_std) == ((), ())


def test_motion_is_the_share_of_cells_that_change(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s", make_header())
    for name, moving in (("a", 0), ("b", 1), ("c", 4)):
        actions, _ = make_arrays(writer.header, 6)
        ids = np.zeros((6, 4), int)
        ids[:, :moving] = np.arange(6)[:, None]
        writer.add(name, actions, ids.reshape(6, 2, 2))
    clips = Clips(writer.finish(), 3)
    assert np.allclose(clips.motion().reshape(3, 4), [[0], [0.25], [1]])
    # every other step: still the mean change from step to step within the window
    assert np.allclose(Clips(clips.store, 3, stride=2).motion().reshape(3, 2), [[0], [0.25], [1]])
    assert (Clips(clips.store, 1).motion() == 0).all()


def test_what_cannot_be_cut_is_said(store: Store, tmp_path: Path) -> None:
    with pytest.raises(HwmError, match="no episode has the 16 steps of a window; the longest has 15"):
        Clips(store, 16)
    for bad in ({"length": 0}, {"length": 2, "every": 0}, {"length": 2, "stride": 0}):
        with pytest.raises(HwmError, match="must be at least 1"):
            Clips(store, **bad)
    with pytest.raises(HwmError, match="encode it first"):
        Clips(make_store(tmp_path / "r", latent=None), 2)


@pytest.mark.parametrize("latent", [LatentSpec((2, 3), 7), LatentSpec((2, 3), channels=5)])
def test_fake_batches_fit_their_spec(latent: LatentSpec) -> None:
    spec = DataSpec(latent, {"toy": ActionSpec(3, ("a", "b"), (10.0, -10.0), (0.0, 1.0))})
    batch = fake_batch(spec, 4, 5, seed=1, ahead=2)
    cell = (2, 3) if latent.vocab else (5, 2, 3)
    assert batch.latents.shape == (4, 5, *cell)
    assert batch.actions.shape == (4, 7, 3, 2)
    assert batch.missing == 2
    assert (batch.actions[..., 0] == 10).all()
    assert abs(float(batch.actions[..., 1].mean()) + 10) < 1
    again, other = fake_batch(spec, 4, 5, seed=1, ahead=2), fake_batch(spec, 4, 5, seed=2, ahead=2)
    assert torch.equal(again.latents, batch.latents)
    assert not torch.equal(other.latents, batch.latents)


@settings(max_examples=40)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4), length=st.integers(1, 5), stride=st.integers(1, 4))
def test_filtered_windows_share_no_step(tmp_path_factory, lengths, length, stride) -> None:
    store = numbered(tmp_path_factory.mktemp("s"), lengths)
    if max(lengths) < (length - 1) * stride + 1:
        return
    every = Clips(store, length, stride=stride)
    clips = Clips(store, length, stride=stride, filter_overlaps=True)
    steps = clips.starts[np.arange(len(clips))][:, None] + stride * np.arange(length)
    assert len(np.unique(steps)) == steps.size
    # none could be added: whatever was left out begins at a step of one that was kept
    left_out = set(every.starts[np.arange(len(every))].tolist()) - set(steps[:, 0].tolist())
    assert left_out <= set(steps.ravel().tolist())


def test_windows_begin_where_clips_do(store: Store) -> None:
    store.clip_steps = 4  # episodes of 12, 9 and 15 steps, from 0, 12 and 21
    assert Clips(store, 4).starts[np.arange(8)].tolist() == [0, 4, 8, 12, 16, 21, 25, 29]
    assert Clips(store, 6).starts[np.arange(5)].tolist() == [0, 4, 12, 21, 25]
    assert Clips(store, 3, every=2).starts[np.arange(5)].tolist() == [0, 8, 12, 21, 29]
    assert Clips(store, 6, filter_overlaps=True).starts[np.arange(4)].tolist() == [0, 12, 21, 29]


def test_windows_are_counted_from_both_ends(store: Store) -> None:
    clips = Clips(store, 5)
    assert clips.starts[-1] == clips.starts[len(clips) - 1] == 31
    for index in (len(clips), -len(clips) - 1):
        with pytest.raises(IndexError, match=f"of {len(clips)}"):
            clips.batch([index])


@pytest.mark.parametrize("episodes", [2, 3, 10])
def test_parts_share_no_episode_and_are_the_store_together(tmp_path: Path, episodes: int) -> None:
    store = numbered(tmp_path / "s", [5] * episodes)
    parts = {part: Clips(store, 3, part=part) for part in ("validation", "test", "all")}
    of = {part: set(clips.batch(np.arange(len(clips))).actions[:, 0, 0, 0].tolist()) for part, clips in parts.items()}
    assert of["validation"] == set(range(0, episodes, 2))
    assert of["test"] == set(range(1, episodes, 2))
    assert of["all"] == of["validation"] | of["test"] == set(range(episodes))
    assert len(parts["validation"]) + len(parts["test"]) == len(parts["all"])
    assert parts["test"].spec() == parts["all"].spec(), "a part is no other kind of data"


def test_an_empty_part_is_said(tmp_path: Path) -> None:
    store = numbered(tmp_path / "s", [9, 4, 9])
    with pytest.raises(HwmError, match=r"no episode of the 1 of 3 that are for test has the 5 steps .* has 4"):
        Clips(store, 5, part="test")
    with pytest.raises(HwmError, match=r"one episode, which is for validation, and none for test: .* \(--split all\)"):
        Clips(numbered(tmp_path / "one", [9]), 3, part="test")
    with pytest.raises(HwmError, match="did you mean test"):
        Clips(store, 3, part="tests")


def test_settings_that_exclude_each_other_are_refused(store: Store) -> None:
    with pytest.raises(HwmError, match="filter_overlaps decides where windows begin"):
        Clips(store, 2, every=3, filter_overlaps=True)


@pytest.mark.parametrize("bad", [25, -1])
def test_ids_that_no_tokenizer_makes_are_named(tmp_path: Path, bad: int) -> None:
    store = make_store(tmp_path / "s", dtype="int32")
    ids = np.memmap(tmp_path / "s" / "latents.bin", np.int32, "r+", shape=store.latents.shape)
    ids[7, 1, 0] = bad
    ids.flush()
    clips = Clips(open_store(tmp_path / "s"), 3, stride=2)
    assert clips.batch([0]).latents.max() < 25
    with pytest.raises(HwmError, match=rf"vocabulary of 25 in step 7, such as {bad}: the file is damaged"):
        clips.batch([1, 3])


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", latent=LatentSpec((2, 2), channels=3))
    values = np.memmap(tmp_path / "s" / "latents.bin", np.float16, "r+", shape=store.latents.shape)
    values[2, 1, 0, 0] = np.nan
    values.flush()
    clips = Clips(open_store(tmp_path / "s"), 2)
    assert clips.batch([0]).latents.isfinite().all()
    with pytest.raises(HwmError, match="not finite in step 2, such as nan"):
        clips.batch([0, 1, 2])


@settings(max_examples=25)
@given(windows=st.integers(1, 40), count=st.integers(1, 50))
def test_windows_that_are_spread_begin_at_the_first_and_end_at_the_last(tmp_path_factory, windows, count) -> None:
    clips = Clips(numbered(tmp_path_factory.mktemp("s"), [windows + 1]), 2)
    found = clips.spread(count)
    assert len(found) == min(count, windows)
    assert found[0] == 0
    assert found[-1] == windows - 1 or count == 1
    assert found.dtype.kind == "i"
    assert len(found) < 3 or np.ptp(np.diff(found)) <= 1, "evenly"


@pytest.mark.parametrize("at_once", [1, 3, 4096])
def test_motion_is_the_same_however_many_steps_are_compared_at_once(tmp_path: Path, at_once: int, monkeypatch) -> None:
    monkeypatch.setattr(clips_module, "MOTION_STEPS", at_once)
    store = make_store(tmp_path / "s", [7, 6])
    for length, stride in ((2, 1), (3, 1), (2, 2)):
        clips = Clips(store, length, stride=stride)
        for found, start in zip(clips.motion(), clips.starts[np.arange(len(clips))], strict=True):
            ids = store.latents[start : start + (length - 1) * stride + 1]
            assert found == pytest.approx((ids[1:] != ids[:-1]).mean())


def test_motion_of_values_is_their_mean_change(tmp_path: Path) -> None:
    for dtype, scale in (("uint8", 1 / 255), ("float32", 1.0)):
        store = make_store(tmp_path / dtype, [5], latent=LatentSpec((2, 2), channels=3), dtype=dtype)
        change = np.abs(np.diff(np.asarray(store.latents, np.float64), axis=0)).mean((1, 2, 3)) * scale
        assert Clips(store, 2).motion() == pytest.approx(change, rel=1e-5)
