"""Video files: exact counts, close pictures, and clear errors."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch

from hwm.errors import HwmError
from hwm.pictures import decode
from hwm.pictures.video import count_frames, read_at, read_video, to_uint8, to_video, write_video
from tests.conftest import make_frames


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """41 frames of 48 x 32 pixels."""
    write_video(tmp_path / "film.mp4", make_frames(41, 32, 48), 10)
    return tmp_path / "film.mp4"


@pytest.mark.parametrize("count", [1, 2, 31, 64])
@pytest.mark.parametrize("fps", [10, 30, 30 / 4, 29.97])
def test_round_trip(tmp_path: Path, count: int, fps: float) -> None:
    frames = make_frames(count)
    assert write_video(tmp_path / "a.mp4", iter(frames), fps) == count
    again = list(read_video(tmp_path / "a.mp4"))
    assert len(again) == count
    assert again[0].dtype == np.uint8
    error = np.abs(np.stack(again).astype(int) - np.stack(frames)).mean((1, 2, 3))
    assert error.max() < 6  # 4:2:0 and quantisation; another frame of the film differs by more
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert float(container.streams.video[0].average_rate or 0) == pytest.approx(fps, rel=1e-3)


def test_frames_come_in_order(film: Path) -> None:
    frames = np.stack(make_frames(41, 32, 48)).astype(int)
    for i, frame in enumerate(read_video(film)):
        distance = np.abs(frames - frame).mean((1, 2, 3))
        assert int(distance.argmin()) == i


@pytest.mark.parametrize(
    ("every", "start", "stop"), [(1, 0, None), (3, 0, None), (3, 5, None), (4, 2, 20), (1, 40, 41), (7, 41, 99)]
)
def test_parts_are_those_of_the_whole(film: Path, every: int, start: int, stop: int | None) -> None:
    whole = list(read_video(film))
    part = list(read_video(film, every, start, stop))
    assert len(part) == len(range(41)[start:stop:every])
    assert all(np.array_equal(a, b) for a, b in zip(part, whole[start:stop:every], strict=True))


def test_more_compression_is_smaller(tmp_path: Path) -> None:
    noise = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8) for i in range(5)]
    for crf in (10, 40):
        write_video(tmp_path / f"{crf}.mp4", noise, 10, crf=crf)
    assert (tmp_path / "10.mp4").stat().st_size > 3 * (tmp_path / "40.mp4").stat().st_size


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((31, 32, 3), np.uint8),
        np.zeros((32, 31, 3), np.uint8),
        np.zeros((32, 32, 4), np.uint8),
        np.zeros((32, 32), np.uint8),
        np.zeros((32, 32, 3), np.float32),
    ],
)
def test_frames_of_odd_size_or_kind_are_refused(tmp_path: Path, bad: np.ndarray) -> None:
    with pytest.raises(HwmError, match=r"uint8 \(H, W, 3\) of even height and width, got"):
        write_video(tmp_path / "a.mp4", [bad], 10)


def test_frames_of_changing_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(HwmError, match=r"frame 1 of .*a.mp4 has shape \(16, 32, 3\), the first had \(32, 32, 3\)"):
        write_video(tmp_path / "a.mp4", [*make_frames(1), *make_frames(1, 16, 32)], 10)
    with pytest.raises(HwmError, match="no frames to write"):
        write_video(tmp_path / "b.mp4", [], 10)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(HwmError, match=r"cannot write the video .*nowhere"):
        write_video(tmp_path / "nowhere" / "a.mp4", make_frames(1), 10)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(HwmError, match=r"there is no video .*missing.mp4"):
        list(read_video(tmp_path / "missing.mp4"))


@pytest.mark.parametrize("content", [b"", b"this is no film" * 100])
def test_a_file_that_is_no_video(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(HwmError, match=r"cannot read the video .*a.mp4"):
        list(read_video(tmp_path / "a.mp4"))


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(HwmError, match="has no video stream"):
        list(read_video(tmp_path / "a.wav"))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.995])
def test_a_truncated_file_is_an_error(tmp_path: Path, film: Path, share: float) -> None:
    data = film.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(HwmError, match=r"cut.mp4"):
        list(read_video(tmp_path / "cut.mp4"))


def test_a_file_cut_between_two_frames_is_an_error(tmp_path: Path, film: Path) -> None:
    with av.open(str(film)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        end = sorted(p.pos + p.size for p in packets)[-6]
    (tmp_path / "cut.mp4").write_bytes(film.read_bytes()[:end])
    with pytest.raises(HwmError, match=r"cut.mp4"):
        list(read_video(tmp_path / "cut.mp4"))


def test_shrinking_averages_areas() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (1, 8, 12, 3), dtype=np.uint8)
    small = to_video(picture, (4, 6))
    mean = picture.reshape(1, 4, 2, 6, 2, 3).mean((2, 4)) / 255
    assert torch.allclose(small, torch.from_numpy(mean).permute(0, 3, 1, 2).float(), atol=1e-6)


def test_growing_stays_in_range() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    large = to_video(list(picture), (10, 6))
    assert large.shape == (2, 3, 10, 6)
    assert large.min() >= 0
    assert large.max() <= 1


def test_uint8_both_ways() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    assert np.array_equal(to_uint8(to_video(picture, (4, 6))), picture)
    assert to_uint8(torch.tensor([-1.0, 0.5, 2.0]).view(3, 1, 1)).ravel().tolist() == [0, 128, 255]


@pytest.mark.parametrize("fps", [10, 30, 29.97])
def test_a_jump_leads_to_the_same_frame(tmp_path: Path, fps: float, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.mp4"
    write_video(path, make_frames(300, 32, 96), fps)  # a key frame every 60 frames, and frames that need later ones
    whole = list(read_video(path))
    for start in (1, 59, 60, 61, 119, 237, 299):
        part = list(read_video(path, start=start, stop=start + 3))
        assert len(part) == min(3, 300 - start)
        assert all(np.array_equal(a, b) for a, b in zip(part, whole[start:], strict=False)), start
    assert list(read_video(path, start=300)) == []
    # it is a jump: of the frames before the key frame none is decoded
    numbers = []
    inner = decode._from
    monkeypatch.setattr(decode, "_from", lambda *a: (numbers.append(n) or (n, f) for n, f in inner(*a)))
    list(read_video(path, start=250, stop=251))
    assert numbers[0] > 180
    assert numbers == list(range(numbers[0], 251))


def test_frames_that_do_not_lie_evenly_are_counted(tmp_path: Path) -> None:
    path, frames = tmp_path / "uneven.mp4", make_frames(40, 32, 96)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 32, "yuv420p"
        stream.options = {"g": "10"}
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts = i + 2 * i // 5  # now and then one is left out
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    whole = list(read_video(path))
    assert len(whole) == count_frames(path) == 40
    for start in (1, 9, 17, 31, 39):
        assert np.array_equal(next(read_video(path, start=start)), whole[start]), start


def test_frames_are_counted(film: Path, tmp_path: Path) -> None:
    assert count_frames(film) == 41
    (tmp_path / "text.mp4").write_text("no film", encoding="utf-8")
    with pytest.raises(HwmError, match="cannot read the video"):
        count_frames(tmp_path / "text.mp4")


def test_frames_by_time_are_those_shown_then(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", make_frames(40), 10)
    film = list(read_video(tmp_path / "a.mp4"))
    numbers = np.array([3, 4, 4, 9, 20, 21, 39])
    jitter = np.random.default_rng(0).uniform(-0.04, 0.04, len(numbers))
    jitter[2] = jitter[1] + 0.001
    got = list(read_at(tmp_path / "a.mp4", numbers / 10 + jitter, 10))
    assert all(np.array_equal(frame, film[n]) for frame, n in zip(got, numbers, strict=True))
    assert list(read_at(tmp_path / "a.mp4", np.zeros(0), 10)) == []
    with pytest.raises(HwmError, match=r"shows no frame at 4.000 s: it is truncated, or its time stamps"):
        list(read_at(tmp_path / "a.mp4", np.array([3.9, 4.0]), 10))
    with pytest.raises(HwmError, match="there is no video"):
        list(read_at(tmp_path / "b.mp4", np.zeros(1), 10))


def test_hardware_that_is_not_there_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "a.mp4", make_frames(5), 10)
    film = list(read_video(tmp_path / "a.mp4"))
    monkeypatch.setenv("HWM_DECODE", "no-such-device")
    for _ in range(2):
        assert np.array_equal(np.stack(list(read_video(tmp_path / "a.mp4"))), np.stack(film))
    assert capsys.readouterr().err.count("videos are not decoded on no-such-device") == 1
