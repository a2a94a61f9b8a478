"""Videos that are damaged, cut or incomplete: never pictures that a decoder made up where the file tells."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from hwm.errors import HwmError
from hwm.pictures.h264 import References, header_of
from hwm.pictures.video import count_frames, read_video
from tests.pictures.films import GOP, film, number_of, plain, remux

EVEN = [(i, i) for i in range(40)]


def _overwrite(path: Path, number: int, seed: int) -> None:
    """Fill the middle of a packet with noise."""
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.size][number]
        at, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    noise = np.random.default_rng(seed).integers(0, 256, size // 2, dtype=np.uint8).tobytes()
    data[at + size // 4 : at + size // 4 + len(noise)] = noise
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("codec", "ending", "packet"),
    [("h264-b", "mp4", 21), ("h264", "mkv", 3), ("hevc-open", "mp4", 3), ("mpeg4", "mp4", 20), ("mjpeg", "mov", 20)],
)
def test_a_damaged_frame_is_named(tmp_path: Path, codec: str, ending: str, packet: int) -> None:
    path = film(tmp_path / f"film.{ending}", codec, EVEN)
    _overwrite(path, packet, seed=1)
    with pytest.raises(HwmError, match=rf"the video .*film\.{ending} is damaged at frame \d+ of 40: "):
        list(read_video(path))


def test_frames_before_the_damage_and_parts_after_it_can_be_read(tmp_path: Path) -> None:
    path = film(tmp_path / "film.mp4", "h264", EVEN)
    truth = plain(path)
    _overwrite(path, 2 * GOP + 1, seed=1)
    before, after = list(read_video(path, stop=2 * GOP)), list(read_video(path, start=3 * GOP))
    assert [number_of(frame) for frame in before + after] == [*range(2 * GOP), *range(3 * GOP, 40)]
    assert all(np.array_equal(a, b) for a, b in zip(after, truth[3 * GOP :], strict=True))
    with pytest.raises(HwmError, match=rf"is damaged at frame {2 * GOP + 1} of 40"):
        list(read_video(path, start=3 * GOP - 1, stop=3 * GOP))


@pytest.mark.parametrize(
    ("codec", "lost"),
    [("h264", 13), ("h264-b", 14), ("h264-open", 18), ("h264-open", 16), ("hevc-open", 2)],
)
def test_frames_made_from_ones_that_were_lost_are_refused(tmp_path: Path, codec: str, lost: int) -> None:
    """As when a camera's packets get lost on their way: the decoder makes up what is missing and says nothing."""
    whole = film(tmp_path / "whole.mkv", codec, EVEN)
    path = remux(whole, tmp_path / "film.mkv", keep=lambda i, _: i != lost)
    with pytest.raises(HwmError, match=r"film.mkv is damaged at frame \d+ of 39: (frames that it|it does not come)"):
        list(read_video(path))


@pytest.mark.parametrize("codec", ["h264", "h264-b", "h264-open"])
def test_no_frame_is_missed_where_all_are_there(tmp_path: Path, codec: str) -> None:
    """H.264 numbers its frames anew at key frames and after 16 of them."""
    for gop in (*range(12, 19), 100):
        path = film(tmp_path / f"{gop}.mkv", codec, EVEN, gop=gop)
        assert [number_of(frame) for frame in read_video(path)] == list(range(40))


def test_a_lost_frame_that_no_other_needs_is_a_dropped_frame(tmp_path: Path) -> None:
    whole = film(tmp_path / "whole.mkv", "h264-b", EVEN)
    with av.open(str(whole)) as container:
        stream = container.streams.video[0]
        units = References(header_of(stream)).units
        packets = [bytes(p) for p in container.demux(stream) if p.size]
        spare = [i for i, data in enumerate(packets) if not any(unit[0] & 96 for unit in units(data))]
    path = remux(whole, tmp_path / "film.mkv", keep=lambda i, _: i != spare[3])
    numbers = [number_of(frame) for frame in read_video(path)]
    assert len(numbers) == 39
    assert numbers == sorted(numbers)


@pytest.mark.parametrize(("codec", "ending"), [("h264-b", "mkv"), ("vp8", "webm"), ("h264", "avi"), ("h264-b", "mov")])
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_a_file_that_was_cut_is_refused(tmp_path: Path, codec: str, ending: str, share: float) -> None:
    options = {"movflags": "faststart"} if ending == "mov" else {}
    data = film(tmp_path / f"whole.{ending}", codec, EVEN, options).read_bytes()
    (tmp_path / f"film.{ending}").write_bytes(data[: int(len(data) * share)])
    for ask in (count_frames, lambda path: list(read_video(path))):
        with pytest.raises(HwmError, match=rf"film.{ending} is (truncated: it holds|damaged)"):
            ask(tmp_path / f"film.{ending}")


@pytest.mark.parametrize("codec", ["h264-b", "h264-open", "h264-refresh", "hevc-open", "mpeg2", "vp9"])
@pytest.mark.parametrize("behind", [0, 4])
def test_a_film_that_begins_amid_another_shows_what_can_be_decoded(tmp_path: Path, codec: str, behind: int) -> None:
    """As recordings of streams do: at a key frame, or some frames behind one."""
    whole = film(tmp_path / "whole.mkv", codec, EVEN)
    with av.open(str(whole)) as container:
        keys = [i for i, p in enumerate(container.demux(video=0)) if p.size and p.is_keyframe]
    path = remux(whole, tmp_path / "film.mkv", keep=lambda i, _: i >= keys[1] + behind)
    numbers = [number_of(frame) for frame in read_video(path)]
    assert numbers == list(range(numbers[0], 40))
    assert numbers[0] in range(GOP, 3 * GOP)
    assert count_frames(path) == len(numbers)
    for start in range(0, len(numbers), 7):
        assert [number_of(frame) for frame in read_video(path, start=start, stop=start + 2)] == numbers[start:][:2]
