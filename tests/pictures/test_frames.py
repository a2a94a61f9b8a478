"""The frame that is asked for is the frame that is given, in all containers and codecs and whatever was done to them.

HWM_READS=40 reads every kind of film in 40 ways, some thousands in all; by default some kinds are read in two ways.
"""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hwm.errors import HwmError
from hwm.pictures import video
from hwm.pictures.index import frame_index
from hwm.pictures.video import count_frames, frame_rate, frame_size, read_at, read_video
from tests.pictures.films import CONTAINERS, HEIGHT, RATE, WIDTH, film, number_of, plain, remux

READS = int(os.environ.get("HWM_READS", "0"))
N = 40
CHANGES = {
    "even": [(i, i) for i in range(N)],
    "dropped": [(i, i) for i in range(N + 7) if i not in (5, *range(14, 19), 30)],
    "doubled": [(i, i - (i > 11) - (i > 26)) for i in range(N)],
    "uneven": [(i + 2 * i // 5 + (i > 20) * 13, i) for i in range(N)],
    "late": [(i + 17, i) for i in range(N)],
}
TRIMMED = "trimmed by an edit list"
NOT_TRIMMED = ("av1", "h264-refresh")
"""One is not copied for want of an encoder of its name; of the other the first frames cannot be decoded."""
KINDS = [
    (container, codec, change)
    for container, (_, _, codecs) in CONTAINERS.items()
    for codec in codecs
    for change in (*CHANGES, *([TRIMMED] if container in ("mp4", "mov") and codec not in NOT_TRIMMED else []))
]
CHOSEN = KINDS if READS else [KINDS[i] for i in np.random.default_rng(2).permutation(len(KINDS))[:40]]


def _made(folder: Path, container: str, codec: str, change: str) -> tuple[Path, list[int]]:
    """A film, and the numbers that its frames show."""
    ending, options, _ = CONTAINERS[container]
    path = folder / f"film.{ending}"
    if change != TRIMMED:
        return film(path, codec, CHANGES[change], options), [number for _, number in CHANGES[change]]
    whole = film(folder / f"whole.{ending}", codec, CHANGES["even"], options)
    return remux(whole, path, shift=-13 / RATE), list(range(13, N))


@pytest.mark.parametrize(("container", "codec", "change"), CHOSEN)
def test_any_part_is_that_of_the_whole(tmp_path: Path, container: str, codec: str, change: str) -> None:
    path, numbers = _made(tmp_path, container, codec, change)
    truth = plain(path)
    assert [number_of(frame) for frame in truth] == numbers, "the film is what it was meant to be"
    assert count_frames(path) == len(numbers)
    rng = np.random.default_rng(len(container) + len(codec) + len(change))
    for _ in range(READS or 2):
        start, every = int(rng.integers(0, len(numbers) + 2)), int(rng.choice([1, 1, 1, 2, 5]))
        stop = None if rng.random() < 0.2 else start + int(rng.integers(0, 12))
        part = list(read_video(path, every, start, stop))
        where = f"{start}:{stop}:{every}"
        assert [number_of(frame) for frame in part] == numbers[start:stop:every], where
        assert all(np.array_equal(a, b) for a, b in zip(part, truth[start:stop:every], strict=True)), where


def test_times_count_from_the_first_frame_whatever_time_the_file_gives_it(tmp_path: Path) -> None:
    """Streams begin late by edit lists that were left out, by transport streams' clocks, or because a camera did."""
    for i, (ending, codec, change) in enumerate(
        [("mp4", "h264-b", "late"), ("ts", "h264-b", "even"), ("mkv", "vp8", "late")]
    ):
        path = film(tmp_path / f"{i}.{ending}", codec, CHANGES[change])
        times = np.arange(30, 33) / RATE
        assert [number_of(frame) for frame in read_at(path, times, RATE)] == [30, 31, 32], path
    bare = film(tmp_path / "bare.mp4", "h264-b", CHANGES["even"], {"use_editlist": "0"})
    assert frame_index(bare).start == pytest.approx(2 / RATE)
    assert [number_of(frame) for frame in read_at(bare, np.array([0, 1]), RATE)] == [0, 30]


def test_times_choose_the_nearest_frame_and_none_that_is_far(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mkv", "h264", CHANGES["dropped"])  # 4 is followed by 6, and 13 by 19
    times = np.array([4.4, 5.6, 6, 13.3, 18.7]) / RATE
    assert [number_of(frame) for frame in read_at(path, times, RATE)] == [4, 6, 6, 13, 19]
    assert [number_of(frame) for frame in read_at(path, np.array([2, 4]) / RATE, RATE / 2)] == [2, 4]
    with pytest.raises(HwmError, match=r"shows no frame at 0.533 s"):
        list(read_at(path, np.array([13, 16]) / RATE, RATE))


def test_the_rate_is_that_at_which_frames_follow_one_another(tmp_path: Path) -> None:
    for i, (ending, codec) in enumerate([("mp4", "h264-b"), ("mkv", "vp8"), ("avi", "mjpeg"), ("ts", "mpeg2")]):
        for change in ("even", "dropped", "late"):
            assert frame_rate(film(tmp_path / f"{i}{change}.{ending}", codec, CHANGES[change])) == RATE
    ticks = np.cumsum(np.random.default_rng(0).integers(1, 4, N))
    uneven = film(tmp_path / "uneven.mp4", "h264", [(int(t), i) for i, t in enumerate(ticks)])
    assert frame_rate(uneven) == pytest.approx((N - 1) * RATE / (ticks[-1] - ticks[0]), rel=1e-3)
    ticks = np.cumsum([13, 13, 4] * 13)  # two of three gaps are alike, and longer than the mean of 10
    jittered = film(tmp_path / "jittered.mp4", "h264", [(int(t), i) for i, t in enumerate(ticks)])
    assert frame_rate(jittered) == pytest.approx(RATE / 10, rel=0.01)


def test_a_clock_that_was_set_back_leaves_the_order_of_decoding(tmp_path: Path) -> None:
    """As in two recordings in one transport stream, whose packets of 188 bytes are counted in four bits."""
    path = film(tmp_path / "film.ts", "h264-b", CHANGES["even"])
    packets, counts = np.frombuffer(path.read_bytes() * 2, np.uint8).reshape(-1, 188).copy(), {}
    for packet in packets:
        program = bytes(packet[1:3] & (31, 255))
        counts[program] = counts.get(program, -1) + int(packet[3] >> 4 & 1)
        packet[3] = packet[3] & 0xF0 | counts[program] % 16
    path.write_bytes(packets.tobytes())
    truth = [number_of(frame) for frame in plain(path)]
    assert truth == [*range(N), *range(N)]
    assert count_frames(path) == 2 * N
    assert [number_of(frame) for frame in read_video(path, start=30, stop=60)] == truth[30:60]


def test_an_index_is_read_once_until_the_file_changes(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", "h264", CHANGES["even"])
    first = frame_index(path)
    assert frame_index(path) is first
    film(path, "h264", CHANGES["dropped"])
    assert len(frame_index(path)) == len(CHANGES["dropped"])


@pytest.mark.parametrize(("degrees", "mirrored"), [(90, False), (180, False), (-90, False), (90, True), (0, True)])
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_pictures_are_turned_as_players_show_them(tmp_path: Path, ending: str, degrees: int, mirrored: bool) -> None:
    whole = film(tmp_path / "whole.mp4", "h264", CHANGES["even"])
    path = remux(whole, tmp_path / f"film.{ending}", prepare=lambda s: s.set_display_rotation(degrees, hflip=mirrored))
    shown = [np.rot90(frame, degrees // 90) for frame in plain(whole)]
    shown = [frame[:, ::-1] for frame in shown] if mirrored else shown
    assert frame_size(path) == shown[0].shape[1::-1]
    for got in (list(read_video(path)), [*read_video(path, stop=20), *read_video(path, start=20)]):
        assert np.array_equal(np.stack(got), np.stack(shown))


def test_pictures_shown_askew_are_refused(tmp_path: Path) -> None:
    whole = film(tmp_path / "whole.mp4", "h264", CHANGES["even"])
    path = remux(whole, tmp_path / "film.mp4", prepare=lambda s: s.set_display_rotation(30))
    with pytest.raises(HwmError, match=r"film.mp4 are shown turned by 30 degrees; only right angles are read"):
        list(read_video(path))


def test_a_photograph_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    upright = np.zeros((48, 32, 3), np.uint8)
    upright[:16, :16] = 255
    exif = Image.Exif()
    exif[0x112] = 6  # turn it by a right angle, clockwise
    Image.fromarray(np.rot90(upright)).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    (shown,) = read_video(tmp_path / "photo.jpg")
    assert shown.shape == upright.shape
    assert np.abs(shown.astype(int) - upright).mean() < 5
    assert frame_size(tmp_path / "photo.jpg") == (32, 48)


def test_pixels_that_are_not_square_are_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video._tell_aspect.cache_clear()
    path = film(tmp_path / "film.mkv", "h264", CHANGES["even"][:5], aspect=Fraction(4, 3))
    for _ in range(2):
        assert next(read_video(path)).shape == (HEIGHT, WIDTH, 3)
    assert capsys.readouterr().err.count("1.33 times as wide as high; its pictures are read as they are stored") == 1
