"""Encoding: frames and actions stay together, parts make the whole, damage is found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwm.data.merge import merge
from hwm.data.store import Store, StoreError
from hwm.data.writer import Writer
from hwm.encode.episodes import EncodeConfig, encode, thin_actions
from hwm.errors import HwmError
from hwm.pictures.video import read_video, write_video
from hwm.tokenizers.pixels import Pixels
from hwm.types import LatentSpec, Tokenizer
from tests.conftest import make_arrays, make_frames, make_header, make_store


class Brightness(Tokenizer):
    """Ids are the mean brightness of each quarter of a picture, in 16 levels."""

    latent, id, size = LatentSpec((2, 2), 16), "brightness", (16, 16)

    def __init__(self) -> None:
        self.most = 0

    def encode(self, video_BFCHW: torch.Tensor) -> torch.Tensor:
        self.most = max(self.most, video_BFCHW.shape[1])
        mean = video_BFCHW.mean(2).unflatten(-1, (2, 8)).unflatten(2, (2, 8)).mean((3, 5))
        return (mean * 16).long().clamp(0, 15)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        picture = (latents.float() + 0.5) / 16
        return picture.repeat_interleave(8, -1).repeat_interleave(8, -2)[:, :, None].expand(-1, -1, 3, -1, -1)


@pytest.fixture
def recording(tmp_path: Path) -> Store:
    """Three filmed episodes of 14, 9 and 21 frames of 32 x 32."""
    return make_store(tmp_path / "recording", [14, 9, 21], latent=None, tokenizer="", video=True)


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("batch", [1, 4, 64])
def test_latents_are_those_of_the_kept_frames(tmp_path: Path, recording: Store, every: int, batch: int) -> None:
    tokenizer = Brightness()
    store = encode(recording.path, tokenizer, tmp_path / "out", EncodeConfig(every=every, batch=batch))
    assert tokenizer.most <= batch
    assert store.header.fps == pytest.approx(10 / every)
    assert store.header.tokenizer == "brightness"
    assert (store.header.actions_per_step, store.header.dtype) == (2 * every, "uint16")
    assert [e.steps for e in store.episodes] == [1 + (n - 1) // every for n in (14, 9, 21)]
    for e, raw in zip(store.episodes, recording.episodes, strict=True):
        frames = np.stack(list(read_video(recording.video(raw))))[::every]
        pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
        small = torch.nn.functional.avg_pool2d(pictures, 2)
        want = tokenizer.encode(small[None])[0].numpy()
        assert np.array_equal(store.latents[e.start : e.stop], want)
        assert len(np.unique(want)) > 2
        assert e.info["frames_per_step"] == every


@pytest.mark.parametrize("every", [2, 3])
def test_actions_lead_to_their_step(tmp_path: Path, recording: Store, every: int) -> None:
    store = encode(recording.path, Brightness(), tmp_path / "out", EncodeConfig(every=every))
    for e, raw in zip(store.episodes, recording.episodes, strict=True):
        given_actions = recording.actions[raw.start : raw.stop]
        got = store.actions[e.start : e.stop]
        assert np.array_equal(got[0], np.concatenate([given_actions[0]] * every))
        for t in range(1, e.steps):
            assert np.array_equal(got[t], np.concatenate(given_actions[(t - 1) * every + 1 : t * every + 1]))


@given(st.integers(1, 30), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_thinning_twice_is_thinning_once(n: int, k: int, first: int, second: int) -> None:
    actions = np.arange(n * k * 2, dtype=np.float32).reshape(n, k, 2)
    twice = thin_actions(thin_actions(actions, first), second)
    assert np.array_equal(twice, thin_actions(actions, first * second))
    assert np.array_equal(thin_actions(actions, 1), actions)


def test_a_film_with_fewer_frames_than_steps(tmp_path: Path) -> None:
    """A recording of every third frame, with the actions of all: its film has one frame a step."""
    recording = make_store(tmp_path / "r", [6], latent=None, tokenizer="", video=True, actions_per_step=3, fps=10.0)
    store = encode(recording.path, Brightness(), tmp_path / "out", EncodeConfig(every=2))
    assert (store.steps, store.header.actions_per_step) == (3, 6)
    again = encode(store_with_film(tmp_path, recording), Brightness(), tmp_path / "again")
    assert again.steps == 3


def store_with_film(tmp_path: Path, recording: Store) -> Path:
    """The recording thinned by two, its film left as it was: two frames a step."""
    return encode(recording.path, Brightness(), tmp_path / "kept", EncodeConfig(every=2, keep_video=True)).path


def test_film_is_kept_when_asked(tmp_path: Path, recording: Store) -> None:
    assert not encode(recording.path, Brightness(), tmp_path / "plain").has_video
    store = encode(recording.path, Brightness(), tmp_path / "kept", EncodeConfig(every=3, keep_video=True))
    for e, raw in zip(store.episodes, recording.episodes, strict=True):
        assert store.video(e).read_bytes() == recording.video(raw).read_bytes()


def test_pixels_are_stored_as_bytes(tmp_path: Path, recording: Store) -> None:
    store = encode(recording.path, Pixels((32, 32)), tmp_path / "out")
    assert store.header.dtype == "uint8"
    assert store.header.tokenizer == "pixels-32x32"
    first = np.stack(list(read_video(recording.video(recording.episodes[0]))))
    assert np.array_equal(store.latents[:14], first.transpose(0, 3, 1, 2))


def test_three_channels_of_another_tokenizer_are_not_pixels(tmp_path: Path, recording: Store) -> None:
    class Other(Tokenizer):
        id, size, latent = "signed", (32, 32), LatentSpec((32, 32), channels=3)

        def encode(self, video_BFCHW: torch.Tensor) -> torch.Tensor:
            return video_BFCHW * 2 - 1

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return (latents + 1) / 2

    store = encode(recording.path, Other(), tmp_path / "out")
    assert store.header.dtype == "float16"
    assert store.latents.min() < -0.9


@pytest.mark.parametrize("kept", [13, 7, 1])
def test_a_film_of_fewer_frames_than_actions_is_an_error(tmp_path: Path, recording: Store, kept: int) -> None:
    film = recording.video(recording.episodes[0])
    write_video(film, make_frames(kept), 10)
    with pytest.raises(StoreError, match=rf"video of 'e0' shows {kept} steps, its actions are of 14"):
        encode(recording.path, Brightness(), tmp_path / "out")


def test_a_truncated_film_is_an_error_and_the_rest_is_kept(tmp_path: Path, recording: Store) -> None:
    film = recording.video(recording.episodes[1])
    whole = film.read_bytes()
    film.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(HwmError, match=r"e1.mp4"):
        encode(recording.path, Brightness(), tmp_path / "out")
    with pytest.raises(StoreError, match="not finished"):
        Store(tmp_path / "out")
    film.write_bytes(whole)
    store = encode(recording.path, Brightness(), tmp_path / "out")
    assert [e.steps for e in store.episodes] == [14, 9, 21]


def test_a_missing_film_is_an_error(tmp_path: Path, recording: Store) -> None:
    recording.video(recording.episodes[2]).unlink()
    with pytest.raises(StoreError, match="has no video of episode 'e2'"):
        encode(recording.path, Brightness(), tmp_path / "out")


def test_work_goes_on_where_it_stopped(tmp_path: Path, recording: Store) -> None:
    whole = encode(recording.path, Brightness(), tmp_path / "whole")

    class Dies(Brightness):
        def encode(self, video_BFCHW: torch.Tensor) -> torch.Tensor:
            if video_BFCHW.shape[1] == 9:
                raise KeyboardInterrupt
            return super().encode(video_BFCHW)

    with pytest.raises(KeyboardInterrupt):
        encode(recording.path, Dies(), tmp_path / "out")
    counted = Brightness()
    seen: list[int] = []
    counted.encode = lambda video: seen.append(video.shape[1]) or Brightness.encode(counted, video)  # type: ignore[method-assign]
    again = encode(recording.path, counted, tmp_path / "out")
    assert seen == [9, 21]  # the first episode was there already
    assert np.array_equal(again.latents, whole.latents)
    assert np.array_equal(again.actions, whole.actions)


def test_other_settings_do_not_resume(tmp_path: Path, recording: Store) -> None:
    header = make_header(tokenizer="brightness", latent=Brightness.latent, source=recording.header.source)
    begun = Writer(tmp_path / "out", header)
    begun.add("e0", *make_arrays(header, 14))
    with pytest.raises(StoreError, match=r"begun with other settings .*fps: 10.0, now 5.0"):
        encode(recording.path, Brightness(), tmp_path / "out", EncodeConfig(every=2))
    other = make_store(tmp_path / "other", [5], prefix="o", latent=None, tokenizer="", video=True)
    with pytest.raises(StoreError, match="begun with other data: it holds episode 'e0'"):
        encode(other.path, Brightness(), tmp_path / "out")


def test_ids_of_two_number_formats_are_not_mixed(tmp_path: Path, recording: Store) -> None:
    class Weighed(torch.nn.Module, Brightness):  # type: ignore[misc]
        """Brightness, with a weight."""

        def __init__(self, dies: bool) -> None:
            super().__init__()
            self.weight, self.dies, self.most = torch.nn.Parameter(torch.ones(1)), dies, 0

        def encode(self, video_BFCHW: torch.Tensor) -> torch.Tensor:
            if self.dies:
                raise KeyboardInterrupt
            return Brightness.encode(self, video_BFCHW)

    with pytest.raises(KeyboardInterrupt):
        encode(recording.path, Weighed(dies=True), tmp_path / "out")
    with pytest.raises(StoreError, match=r"begun with other settings \(dtype: 'float32', now 'bfloat16'\)"):
        encode(recording.path, Weighed(dies=False).to(torch.bfloat16), tmp_path / "out")
    (tmp_path / "out" / ".partial" / "settings.json").unlink()  # as of a version that did not write it
    assert len(encode(recording.path, Weighed(dies=False), tmp_path / "out").episodes) == 3


def test_float32_is_exact_while_data_are_made(tmp_path: Path, recording: Store) -> None:
    seen: list[tuple[str, bool]] = []

    class Asks(Brightness):
        def encode(self, video_BFCHW: torch.Tensor) -> torch.Tensor:
            seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            return super().encode(video_BFCHW)

    torch.set_float32_matmul_precision("high")
    try:
        encode(recording.path, Asks(), tmp_path / "out")
        assert set(seen) == {("highest", False)}
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_shards_make_the_whole(tmp_path: Path, recording: Store) -> None:
    whole = encode(recording.path, Brightness(), tmp_path / "whole", EncodeConfig(every=2))
    parts = [
        encode(recording.path, Brightness(), tmp_path / f"part{i}", EncodeConfig(every=2, shard=i, shards=2)).path
        for i in range(2)
    ]
    joined = merge(parts, tmp_path / "joined")
    assert joined.header == whole.header
    assert joined.episodes == whole.episodes
    assert np.array_equal(joined.latents, whole.latents)
    assert np.array_equal(joined.actions, whole.actions)
    assert np.allclose(joined.statistics, np.stack(whole.statistics))


def test_shards_that_make_no_sense(tmp_path: Path, recording: Store) -> None:
    with pytest.raises(HwmError, match="shard 2 of 2: shards are numbered from 0"):
        encode(recording.path, Brightness(), tmp_path / "out", EncodeConfig(shard=2, shards=2))
    with pytest.raises(HwmError, match=r"shard 3 of 4 is empty: .* has 3 episodes"):
        encode(recording.path, Brightness(), tmp_path / "out", EncodeConfig(shard=3, shards=4))
    with pytest.raises(HwmError, match="must be at least 1"):
        encode(recording.path, Brightness(), tmp_path / "out", EncodeConfig(every=0))
    assert not (tmp_path / "out").exists()


def test_statistics_of_the_training_set_are_taken(tmp_path: Path, recording: Store) -> None:
    train = make_store(tmp_path / "train", seed=50)
    held = encode(recording.path, Brightness(), tmp_path / "held", statistics=train)
    assert held.statistics == train.statistics
    assert encode(recording.path, Brightness(), tmp_path / "own").statistics != train.statistics
    other = make_store(tmp_path / "other", action_names=("right", "left"))
    with pytest.raises(HwmError, match="has other actions than"):
        encode(recording.path, Brightness(), tmp_path / "wrong", statistics=other)


class Joined(Brightness):
    """A step is the mean of its frames: one at the beginning, then four each."""

    latent = LatentSpec((2, 2), 16, stride=4)

    def encode(self, video_BFCHW: torch.Tensor) -> torch.Tensor:
        return next(self.encode_pieces([video_BFCHW]))

    def encode_pieces(self, pieces: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        for i, piece in enumerate(pieces):
            later = piece[:, int(i == 0) :].unflatten(1, (-1, 4)).mean(2)
            yield super().encode(torch.cat([piece[:, :1], later], 1) if i == 0 else later)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("batch", [1, 8, 64])
@pytest.mark.parametrize("clip", [0, 5])
def test_steps_of_several_frames_have_the_actions_of_all_of_them(
    tmp_path: Path, recording: Store, every: int, batch: int, clip: int
) -> None:
    store = encode(recording.path, Joined(), tmp_path / "out", EncodeConfig(every=every, clip=clip, batch=batch))
    assert store.header.fps == pytest.approx(10 / every / 4)
    assert store.header.actions_per_step == 2 * every * 4
    names = iter(store.episodes)
    for raw in recording.episodes:
        frames = torch.from_numpy(np.stack(list(read_video(recording.video(raw)))[::every])).permute(0, 3, 1, 2) / 255
        frames = torch.nn.functional.avg_pool2d(frames, 2)
        actions = thin_actions(np.asarray(recording.actions[raw.start : raw.stop]), every)
        for number, at in enumerate(range(0, len(frames), clip or len(frames))):
            e, there = next(names), min(clip or len(frames), len(frames) - at)
            steps = 1 + (there - 1) // 4
            assert (e.id, e.steps) == (f"{raw.id}_clip_{number:05d}" if clip else raw.id, steps)
            whole = slice(at, at + 1 + (steps - 1) * 4)
            assert np.array_equal(store.latents[e.start : e.stop], Joined().encode(frames[None, whole])[0])
            assert np.array_equal(store.actions[e.start : e.stop], thin_actions(actions[whole], 4))
            assert e.info["frames_per_step"] == 4 * every
    assert next(names, None) is None


def test_clips_that_are_not_whole_steps_are_refused(tmp_path: Path, recording: Store) -> None:
    for clip in (-1, 4):
        with pytest.raises(HwmError, match=r"does not fill whole latent steps: choose 1 \+ 4 \* n"):
            encode(recording.path, Joined(), tmp_path / "out", EncodeConfig(clip=clip))


def test_all_parts_together_are_the_whole(tmp_path: Path, recording: Store) -> None:
    """Merged, they keep the statistics that they were told, and the undivided command finds its work done."""
    train = make_store(tmp_path / "train", [7, 5], seed=9, actions_per_step=4, latent=None, tokenizer="")
    parts = [tmp_path / f"part_{i}" for i in range(2)]
    for i, part in enumerate(parts):
        config = EncodeConfig(every=2, shard=i, shards=2)
        encode(recording.path, Brightness(), part, config, statistics=train)
    merged = merge(parts, tmp_path / "merged")
    assert merged.statistics == train.statistics
    again = encode(recording.path, Brightness(), merged.path, EncodeConfig(every=2), statistics=train)
    assert again.path == merged.path
    some = merge(parts[:1], tmp_path / "some", skip_bad=True)
    with pytest.raises(StoreError, match=r"was made with other settings .*shards: 2, now 1"):
        encode(recording.path, Brightness(), some.path, EncodeConfig(every=2), statistics=train)
