"""Picture, GIF and video files: what is in them, and that they are whole."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from hwm.errors import HwmError
from hwm.pictures.files import jpeg, png, read_picture, save_gif, save_png, save_video


def noise(frames: int, height: int = 20, width: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (40, 33)])
def test_png_decodes_to_the_same_pixels(shape: tuple[int, int], tmp_path) -> None:
    smooth = np.add.outer(np.arange(shape[0]), np.arange(shape[1])).astype(np.uint8)
    for picture in (noise(1, *shape)[0], np.stack([smooth] * 3, -1)):
        decoded = Image.open(io.BytesIO(png(picture)))
        assert (np.asarray(decoded) == picture).all()
    path = save_png(tmp_path / "a" / "b.png", picture)
    assert path.read_bytes() == png(picture)
    assert len(list(path.parent.iterdir())) == 1


def test_png_refuses_floats() -> None:
    with pytest.raises(HwmError, match="uint8"):
        png(np.zeros((2, 2, 3)))


def test_a_failed_video_leaves_nothing(tmp_path) -> None:
    def frames():
        yield noise(1, 20, 30)[0]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        save_video(tmp_path / "x.mp4", frames(), 10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("fps", "hold"), [(10.0, 0.0), (30.0, 1.0), (7.5, 0.5)])
def test_gif(fps: float, hold: float, tmp_path) -> None:
    colours = np.array([(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (9, 9, 9)], np.uint8)
    frames = list(np.broadcast_to(colours[:, None, None], (5, 12, 18, 3)))
    path = save_gif(tmp_path / "a" / "x.gif", frames, fps, hold)
    assert [p.name for p in path.parent.iterdir()] == ["x.gif"]
    with Image.open(path) as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (5, (18, 12), 0)
        lasting = []
        for i in range(5):
            gif.seek(i)
            lasting.append(gif.info["duration"])
            assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - frames[i]).max() < 8
    assert sum(lasting) == pytest.approx(1000 * (5 / fps + hold), abs=5), "rounding does not add up"
    with pytest.raises(HwmError, match="no frames"):
        save_gif(tmp_path / "x.gif", [], fps)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pictures_are_decoded_as_others_do(kind: str) -> None:
    y, x = np.mgrid[:64, :96]
    picture = np.stack([2 * y, 2 * x, y + x], -1).astype(np.uint8)
    picture[20:40, 30:60] = (240, 180, 40)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    found = read_picture(file.getvalue())
    assert np.array_equal(found, np.asarray(Image.open(file).convert("RGB")))
    assert np.abs(found.astype(int) - picture).max() <= (0 if kind == "PNG" else 90)


def test_quality_of_a_jpeg_is_what_was_asked_for() -> None:
    picture = noise(1, 40, 40)[0]
    sizes = [len(jpeg(picture, quality)) for quality in (95, 60, 20)]
    assert sizes[0] > 1.5 * sizes[1] > 2 * sizes[2]


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\nnothing", b"\xff\xd8nothing"])
def test_pictures_that_are_none(data: bytes) -> None:
    with pytest.raises(HwmError, match=r"neither PNG nor JPEG|cannot be decoded"):
        read_picture(data)


def test_pictures_of_other_formats_are_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(noise(1)[0]).save(file, "BMP")
    with pytest.raises(HwmError, match="neither PNG nor JPEG"):
        read_picture(file.getvalue())


def test_a_cut_file_is_no_picture() -> None:
    for data in (png(noise(1, 40, 40)[0]), jpeg(noise(1, 40, 40)[0])):
        with pytest.raises(HwmError, match="cannot be decoded"):
            read_picture(data[: len(data) // 2])


def test_pictures_of_sixteen_bits_are_refused() -> None:
    """Cut down to eight bits they would show white."""
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(file, "PNG")
    with pytest.raises(HwmError, match="more than 8 bits"):
        read_picture(file.getvalue())
