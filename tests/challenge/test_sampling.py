"""The sampling track: every step gets its own actions, the right frame comes out, samples are averaged and scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hwm.challenge.recordings import FromStore, RawTest, Recordings, recordings
from hwm.challenge.sampling import Painter, plan, plan_for, psnr, resized, write_sampling
from hwm.challenge.submission import validate
from hwm.data.clips import Clips
from hwm.data.onex.v2 import OneXV2Joined
from hwm.data.onex.write import ShardData, write_v2
from hwm.data.readers import open_store
from hwm.data.writer import Writer
from hwm.errors import HwmError
from hwm.pictures.video import write_video
from hwm.types import Tokenizer
from tests.challenge.clock import SIDE, Clock, ClockRecordings, ClockTokenizer
from tests.conftest import make_header, make_store
from tests.data.onex_toys import make_v2, segments_of, states_of


def clock(stride: int = 1, every: int = 1, rate: int = 1, **config: Any) -> tuple[Clock, ClockTokenizer]:
    fields = {"past": 3, **config}
    model = Clock(Clock.Config(**fields), stride, every * rate)
    return model.eval(), ClockTokenizer(stride)


def painter(model: Clock, tokenizer: ClockTokenizer, data: Recordings, **more: Any) -> Painter:
    return Painter(model, tokenizer, plan_for(model, tokenizer, data), "clock", size=(SIDE, SIDE), **more)


# ---------------------------------------------------------------------- which frames, which actions
@given(
    known=st.integers(1, 40),
    gap=st.integers(1, 70),
    every=st.integers(1, 4),
    stride=st.sampled_from([1, 2, 8]),
    rate=st.integers(1, 3),
    past=st.integers(1, 7),
    horizon=st.integers(1, 3),
    lookback=st.integers(0, 2),
)
def test_the_frame_asked_for_comes_out(
    known: int, gap: int, every: int, stride: int, rate: int, past: int, horizon: int, lookback: int
) -> None:
    data = ClockRecordings(known, known - 1 + gap, rate)
    model, tokenizer = clock(stride, every, rate, past=past, horizon=horizon)
    tokenizer.lookback = lookback
    if (known - 1 - data.target) % every > known - 1:
        with pytest.raises(HwmError, match="frames that are seen, 0 lie"):
            plan_for(model, tokenizer, data)
        return
    paint = painter(model, tokenizer, data)
    sample = data.sample(0, {*paint.plan.frames.flat, *paint.plan.visible, data.target})
    (picture,) = paint.paint(sample)
    assert (picture * 255).round().unique().tolist() == [data.target]
    assert (paint.ceiling(sample) * 255).round().unique().tolist() == [data.target]
    # nothing that is not given was used: no frame after those seen, no action after the frame asked for
    assert paint.plan.frames.max() < known
    assert 0 <= paint.plan.rows.min() <= paint.plan.rows.max() < (data.target + 1) * rate


@given(known=st.integers(17, 51), gap=st.integers(1, 70), past=st.sampled_from([3, 6]), horizon=st.integers(1, 3))
def test_the_frame_asked_for_comes_out_of_the_clip_that_shows_it(known: int, gap: int, past: int, horizon: int) -> None:
    """As 1X's v2.0 has it: clips of 17 frames in steps of 1, 8 and 8, each encoded by itself."""
    data = ClockRecordings(known, known - 1 + gap)
    model, tokenizer = clock(8, clip_steps=3, past=past, window_stride=3, horizon=horizon)
    paint = painter(model, tokenizer, data)
    p = paint.plan
    assert p.frames.shape == (p.context // 3, 17)
    assert p.decode.start % 3 == 0
    assert p.decode.stop - p.decode.start <= 3
    sample = data.sample(0, {*p.frames.flat, *p.visible, data.target})
    (picture,) = paint.paint(sample)
    assert (picture * 255).round().unique().tolist() == [data.target]
    assert (paint.ceiling(sample) * 255).round().unique().tolist() == [data.target]


def test_the_challenge_in_clips_of_17_frames() -> None:
    """Frame 76 is frame 8 of the fifth clip: the last that its second step shows."""
    p = plan(17, 76, every=1, stride=8, past=3, clip_steps=3)
    assert p.frames.tolist() == [list(range(17))]
    assert (p.context, len(p.rows), p.decode, p.shown) == (3, 14, slice(12, 14), 8)
    assert p.rows[0].tolist() == [0] * 8
    assert p.rows[2].tolist() == list(range(9, 17))
    assert p.rows[3].tolist() == [17] * 8  # as the reader of v2.0 has it, the first step of a clip
    assert p.rows[13].tolist() == list(range(69, 77))


def test_the_challenge_at_ten_steps_a_second() -> None:
    p = plan(17, 76, every=3, stride=1, past=6)
    assert p.frames.tolist() == [[1, 4, 7, 10, 13, 16]]
    assert (p.context, len(p.rows), p.decode, p.shown) == (6, 26, slice(25, 26), 0)
    assert p.rows[0].tolist() == [0, 0, 1]  # the one before the first is not known
    assert p.rows[25].tolist() == [74, 75, 76]


def test_a_step_that_goes_on_after_the_frame_asked_for_has_the_last_actions_known() -> None:
    p = plan(17, 76, every=1, stride=8, past=3)
    assert (p.context, len(p.rows), p.shown) == (3, 11, 76)
    assert p.rows[10].tolist() == [73, 74, 75, 76, 76, 76, 76, 76]


def test_steps_that_are_predicted_together_are_asked_for_together() -> None:
    assert len(plan(17, 76, every=1, stride=8, past=3, clip_steps=3, group=3).rows) == 15


def test_parts_that_do_not_belong_together_are_errors() -> None:
    data = ClockRecordings(17, 76, rate=2)
    model, tokenizer = clock(8, 1, 2)
    plan_for(model, tokenizer, data)
    with pytest.raises(HwmError, match="the tokenizer 'clock' makes"):
        plan_for(model, ClockTokenizer(4), data)
    with pytest.raises(HwmError, match="takes 16 actions a step of 8 frames, clock has 3 a frame"):
        plan_for(model, tokenizer, ClockRecordings(17, 76, rate=3))
    with pytest.raises(HwmError, match="clock is of 'robot', the model knows \\['clock'\\]"):
        plan_for(model, tokenizer, ClockRecordings(17, 76, rate=2, embodiment="robot"))
    other = ClockTokenizer(8)
    other.id = "sundial"
    with pytest.raises(HwmError, match="the model reads latents of 'clock', not of 'sundial'"):
        plan_for(model, other, data)
    model, tokenizer = clock(8, clip_steps=3, window_stride=3)
    with pytest.raises(HwmError, match=r"of the 16 frames that are seen, 16 lie 1 apart .* needs 17 of them at least"):
        plan_for(model, tokenizer, ClockRecordings(16, 76))


# ---------------------------------------------------------------------- samples
def noisy(samples: int, batch_size: int = 8, seed: int = 0) -> list[torch.Tensor]:
    data = ClockRecordings(3, 8)
    model = Clock(Clock.Config(past=3), 1, 1, noise=20).eval()
    paint = painter(model, ClockTokenizer(1), data, samples=samples, batch_size=batch_size, seed=seed)
    return paint.paint(data.sample(0, {0, 1, 2, 8}))


def test_a_sample_is_the_same_however_many_are_drawn_and_at_once() -> None:
    five = torch.stack(noisy(5))
    assert five.unique(dim=0).shape[0] > 1
    for other in (noisy(5, batch_size=2), noisy(7)[:5], noisy(5, batch_size=1)):
        assert torch.equal(five, torch.stack(other))
    assert not torch.equal(five, torch.stack(noisy(5, seed=1)))


def test_clips_are_drawn_apart_from_one_another() -> None:
    data = ClockRecordings(3, 8)
    model = Clock(Clock.Config(past=3), 1, 1, noise=20).eval()
    paint = painter(model, ClockTokenizer(1), data, samples=6)
    a, b = (torch.stack(paint.paint(data.sample(i, {0, 1, 2, 8}))) for i in range(2))
    assert not torch.equal(a, b)


def test_an_average_of_samples_scores_higher_than_they_do(tmp_path: Path) -> None:
    data = ClockRecordings(3, 60)
    model = Clock(Clock.Config(past=3), 1, 1, noise=20).eval()
    paint = painter(model, ClockTokenizer(1), data, samples=30)
    entry, found = write_sampling(paint, data, tmp_path / "out")
    assert (found["psnr"] > found["psnr_one"] + 1).all()
    assert (found["spread"] > 0).all()
    assert found["psnr_reconstruction"].tolist() == [100.0, 100.0]
    expected = psnr(np.full((4, 4, 3), 2, np.uint8), np.full((4, 4, 3), 60, np.uint8))
    assert found["psnr_copy"].tolist() == pytest.approx([expected] * 2)
    for i, name in enumerate(data.names):
        drawn = torch.stack(paint.paint(data.sample(i, {0, 1, 2, 60})))
        written = np.asarray(Image.open(entry.path(name)))
        assert np.array_equal(written, paint.finish(drawn.mean(0)))
        one = np.mean([psnr(paint.finish(x), np.full((4, 4, 3), 60, np.uint8)) for x in drawn])
        assert found["psnr_one"][i] == pytest.approx(one)


def test_one_sample_is_its_own_average(tmp_path: Path) -> None:
    data = ClockRecordings(3, 60)
    model = Clock(Clock.Config(past=3), 1, 1, noise=20).eval()
    _, found = write_sampling(painter(model, ClockTokenizer(1), data), data, tmp_path / "out")
    assert found["psnr"].tolist() == found["psnr_one"].tolist()
    assert found["spread"].tolist() == [0.0, 0.0]


def test_psnr_is_that_of_8_bit_pictures() -> None:
    a = np.zeros((5, 7, 3), np.uint8)
    assert psnr(a, a) == pytest.approx(100.0)
    assert psnr(a, a + 51) == pytest.approx(20 * np.log10(5), abs=1e-4)


def test_pictures_change_size_without_changing_their_mean() -> None:
    picture = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert resized(picture, (8, 8)) is picture
    assert resized(picture, (4, 4)).mean().item() == pytest.approx(picture.mean().item(), abs=1e-6)
    assert resized(picture, (16, 16)).shape == (3, 16, 16)


# ---------------------------------------------------------------------- the whole of it
def test_samples_without_truth_are_written_and_not_scored(tmp_path: Path) -> None:
    data = ClockRecordings(17, 76, scored=False)
    model, tokenizer = clock(8, clip_steps=3, window_stride=3)
    paint = Painter(model, tokenizer, plan_for(model, tokenizer, data), "clock")
    entry, found = write_sampling(paint, data, tmp_path / "out")
    assert found == {}
    assert [p.file for p in validate(tmp_path / "out")] == ["README.txt"]
    picture = np.asarray(Image.open(entry.path("a")))
    assert picture.shape == (512, 512, 3)
    assert np.unique(picture).tolist() == [76]
    assert not (tmp_path / "out" / "scores.jsonl").exists()


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    data = ClockRecordings(3, 8)
    model = Clock(Clock.Config(past=3), 1, 1, noise=20).eval()
    paint = painter(model, ClockTokenizer(1), data, samples=2)
    entry, whole = write_sampling(paint, data, tmp_path / "out", settings={"samples": 2})
    old = entry.path("a").read_bytes()
    entry.path("b").write_bytes(old[:-5])
    model.seen.clear()
    _, again = write_sampling(paint, data, tmp_path / "out", settings={"samples": 2})
    assert len(model.seen) == 6  # the six steps of one clip
    assert {k: v.tolist() for k, v in again.items()} == {k: v.tolist() for k, v in whole.items()}
    with pytest.raises(HwmError, match="begun with other settings"):
        write_sampling(paint, data, tmp_path / "out", settings={"samples": 3})


def test_a_tokenizer_that_joins_other_frames_is_found_out() -> None:
    class Wrong(ClockTokenizer):
        def encode(self, video_BFCHW: torch.Tensor) -> torch.Tensor:
            return super().encode(video_BFCHW)[:, 1:]

    data = ClockRecordings(17, 76)
    model, _ = clock(8)
    paint = painter(model, Wrong(8), data)
    with pytest.raises(HwmError, match="the tokenizer 'clock' made 2 steps of 17 frames, expected 3"):
        paint.paint(data.sample(0, set(range(17))))


# ---------------------------------------------------------------------- where samples come from
def film(frames: int, first: int = 0) -> list[np.ndarray]:
    """Frames that tell their number after video compression too: 8 bits as bright and dark tiles."""
    shown = []
    for i in range(first, first + frames):
        bits = np.array([[(i >> (2 * row + column)) & 1 for column in range(2)] for row in range(4)], np.uint8)
        shown.append(np.repeat((40 + 170 * bits).repeat(16, 0).repeat(32, 1)[..., None], 3, -1))
    return shown


def number_of(frame: np.ndarray) -> int:
    return sum(1 << (2 * row + column) for row in range(4) for column in range(2)
               if frame[16 * row + 8, 32 * column + 16].mean() > 125)  # fmt: skip


def test_samples_of_a_raw_folder(tmp_path: Path) -> None:
    shard = ShardData(states_of(150), segments_of([60, 90]), frames=film(150))
    write_v2(tmp_path / "raw", [shard], flat=True)
    data = recordings(tmp_path / "raw", known=5, target=70, clips=4)
    assert isinstance(data, FromStore)
    # of the two recordings, only the second has 71 frames; its windows begin at frames 60 to 79
    assert data.names == [f"shard_000_frame_000060_{i:06d}" for i in (0, 6, 13, 19)]
    for number, start in enumerate((60, 66, 73, 79)):
        sample = data.sample(number, {*range(5), 70, 33})
        assert {i: number_of(f) for i, f in sample.frames.items()} == {i: start + i for i in (0, 1, 2, 3, 4, 33, 70)}
        assert sample.actions.shape == (71, 25)
        assert sample.actions[:, 0].round().tolist() == list(range(start, start + 71))


@pytest.mark.parametrize(("per_step", "span"), [(3, 3), (6, 3), (2, 1)])
def test_samples_of_an_encoded_store(per_step: int, span: int, tmp_path: Path) -> None:
    """A step each `span` frames, `per_step` actions a step; the last of them leads to the step's frame."""
    steps = 21
    frames, rate = (steps - 1) * span + 1, per_step // span
    writer = Writer(tmp_path / "s", make_header(action_names=("time",), actions_per_step=per_step))
    # row r of all actions in order leads to frame (r - per_step + rate) / rate
    rows = (np.arange(steps * per_step) - per_step + rate) / rate
    video = tmp_path / "e.mp4"
    write_video(video, film(frames + span - 1), 10)
    latents = np.zeros((steps, 2, 2), np.int64)
    writer.add("e", rows.reshape(steps, per_step, 1).astype(np.float32), latents, video, {"frames_per_step": span})
    writer.finish()
    data = recordings(tmp_path / "s", known=3, target=8, clips=5)
    assert data.rate == rate
    last = 0
    for number in range(len(data.names)):
        sample = data.sample(number, {0, 1, 2, 8})
        start = number_of(sample.frames[0])
        assert {i: number_of(f) for i, f in sample.frames.items()} == {i: start + i for i in (0, 1, 2, 8)}
        told = sample.actions[:, 0].reshape(9, rate)
        assert told[:, 0].tolist() == [start + i for i in range(9)]
        last = start + 8
    assert last == frames - 1  # windows reach to the last frame that an action leads to


def test_raw_test_samples(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / "videos").mkdir(exist_ok=True)
        (tmp_path / "robot_states").mkdir(exist_ok=True)
        write_video(tmp_path / "videos" / f"video_{i}.mp4", film(17, 10 * i), 30)
        states_of(97, 100 * i).tofile(tmp_path / "robot_states" / f"states_{i}.bin")
    data = recordings(tmp_path)
    assert isinstance(data, RawTest)
    assert (data.names, data.scored, data.embodiment) == (["0", "1", "2"], False, "1x_eve")
    sample = data.sample(2, {0, 16})
    assert {i: number_of(f) for i, f in sample.frames.items()} == {0: 20, 16: 36}
    assert sample.actions.shape == (77, 25)
    assert sample.actions[[0, 76], 0].round().tolist() == [200, 276]
    assert recordings(tmp_path, clips=2).names == ["0", "1"]
    states_of(70).tofile(tmp_path / "robot_states" / "states_1.bin")
    with pytest.raises(HwmError, match=r"states_1.bin has 7,000 bytes, expected at least 7,700 for the states up to"):
        recordings(tmp_path)
    states_of(97).tofile(tmp_path / "robot_states" / "states_1.bin")
    write_video(tmp_path / "videos" / "video_1.mp4", film(9), 30)
    with pytest.raises(HwmError, match=r"video_1.mp4 shows 9 frames, expected 17 at least"):
        recordings(tmp_path).sample(1, {0})
    write_video(tmp_path / "videos" / "video_1.mp4", film(97), 30)
    with pytest.raises(HwmError, match="so it is a recording and no test sample: segment_idx_N"):
        recordings(tmp_path)
    (tmp_path / "robot_states" / "states_1.bin").unlink()
    with pytest.raises(HwmError, match=r"states_1.bin is missing"):
        recordings(tmp_path)


def test_stores_without_samples_are_errors(tmp_path: Path) -> None:
    make_store(tmp_path / "blind", [40])
    with pytest.raises(HwmError, match="has no video to take frames from"):
        recordings(tmp_path / "blind", known=3, target=8)
    make_store(tmp_path / "short", [8], video=True)
    with pytest.raises(HwmError, match="no episode has the 9 frames of a sample; the longest has 8"):
        recordings(tmp_path / "short", known=3, target=8)
    with pytest.raises(HwmError, match=r"frame asked for \(8\) comes after the 9 that are seen"):
        recordings(tmp_path / "short", known=9, target=8)
    store = open_store(tmp_path / "short")
    store.episodes[0].info["frames_per_step"] = 3
    with pytest.raises(HwmError, match="2 actions a step do not divide among its frames"):
        FromStore(store, 3, 8)


def test_the_clock_is_a_tokenizer() -> None:
    tokenizer: Tokenizer = ClockTokenizer(8)
    video = (torch.arange(17) / 255).view(1, 17, 1, 1, 1).expand(2, 17, 3, SIDE, SIDE)
    latents = tokenizer.encode(video)
    assert latents.shape == (2, 3, 1, 8)
    torch.testing.assert_close(tokenizer.decode(latents), video)


def test_steps_have_the_actions_that_the_reader_of_tokens_gives_them(tmp_path: Path) -> None:
    make_v2(tmp_path / "v2", [[102]])
    batch = Clips(OneXV2Joined(tmp_path / "v2"), length=15).batch([0])
    p = plan(17, 76, every=1, stride=8, past=3, clip_steps=3)
    frames = batch.actions[0, : len(p.rows), :, 0].round().long()
    assert frames.tolist() == p.rows.tolist()
