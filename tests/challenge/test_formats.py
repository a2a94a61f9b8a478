"""What is wrong with a file of a submission, told for each way to break one."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hwm.challenge.formats import FIELDS, FORMATS, PictureFormat, TopFormat, readme_problems
from hwm.pictures.files import png

FORM = TopFormat((2, 3, 3, 5), 40)
PICTURE = PictureFormat((6, 8))


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = np.stack([rng.permutation(40)[:5] for _ in range(18)]).reshape(FORM.shape).astype(np.int32)
    return {"indices": ids, "values": rng.normal(size=FORM.shape).astype(np.float32)}


def test_the_formats_of_the_challenge() -> None:
    top, picture = FORMATS["compression"](), FORMATS["sampling"]()
    assert isinstance(top, TopFormat)
    assert isinstance(picture, PictureFormat)
    assert (top.shape, top.vocab, top.suffix, top.samples) == ((3, 32, 32, 500), 64_000, ".npz", 450)
    assert (picture.size, picture.suffix, picture.samples) == ((512, 512), ".png", 250)


def test_a_good_file_has_no_problems(tmp_path: Path) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "0.npz", **arrays())
        assert FORM.problems(tmp_path / "0.npz") == []


def _missing(a: dict[str, np.ndarray]) -> None:
    del a["values"]


def _shape(a: dict[str, np.ndarray]) -> None:
    a["indices"] = a["indices"][..., :4]


def _dtype(a: dict[str, np.ndarray]) -> None:
    a["indices"] = a["indices"].astype(np.int64)
    a["values"] = a["values"].astype(np.float16)


def _nan(a: dict[str, np.ndarray]) -> None:
    a["values"][1, 2, 0, 3] = np.nan
    a["values"][1, 2, 1, 0] = -np.inf


def _high(a: dict[str, np.ndarray]) -> None:
    a["indices"][0, 0, 0, 0] = 40


def _low(a: dict[str, np.ndarray]) -> None:
    a["indices"][0, 0, 0, 0] = -1


def _twice(a: dict[str, np.ndarray]) -> None:
    a["indices"][1, 0, 2, 4] = a["indices"][1, 0, 2, 1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_missing, ["expected an array values, found none"]),
        (_shape, ["indices: expected shape (2, 3, 3, 5), found (2, 3, 3, 4)"]),
        (_dtype, ["indices: expected int32, found int64", "values: expected float32, found float16"]),
        (_nan, ["values: expected finite numbers, found 2 others, the first nan at (1, 2, 0, 3)"]),
        (_high, ["indices: expected ids from 0 to 39, found "]),
        (_low, ["indices: expected ids from 0 to 39, found -1 to "]),
        (_twice, ["found some of them twice in 1 cells, the first at (1, 0, 2)"]),
    ],
)
def test_a_broken_file_says_what_was_expected_and_found(
    change: Callable[[dict[str, np.ndarray]], None], said: list[str], tmp_path: Path
) -> None:
    broken = arrays()
    change(broken)
    np.savez(tmp_path / "0.npz", **broken)
    problems = FORM.problems(tmp_path / "0.npz")
    assert len(problems) == len(said)
    assert all(expected in problem for expected, problem in zip(said, problems, strict=True))


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    file = tmp_path / "0.npz"
    np.savez(file, **arrays())
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1
    single = tmp_path / "single.npy"
    np.save(single, np.zeros(3))
    for damaged in (whole[: len(whole) // 2], b"", b"PK\x03\x04", bytes(changed), single.read_bytes()):
        file.write_bytes(damaged)
        assert len(FORM.problems(file)) == 1, damaged[:8]
    assert "cannot be read" in FORM.problems(tmp_path / "absent.npz")[0]


def picture(height: int = 6, width: int = 8) -> bytes:
    return png(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def test_a_good_picture_has_no_problems(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(picture())
    assert PICTURE.problems(tmp_path / "0.png") == []


def test_every_changed_byte_of_a_picture_is_found(tmp_path: Path) -> None:
    whole, file = picture(), tmp_path / "0.png"
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x10
        file.write_bytes(bytes(changed))
        assert PICTURE.problems(file), place
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert PICTURE.problems(file), length


def test_a_picture_of_another_kind_says_what_was_expected_and_found(tmp_path: Path) -> None:
    file = tmp_path / "0.png"
    file.write_bytes(picture(8, 6))
    assert PICTURE.problems(file) == ["expected 6 x 8 pixels, found 8 x 6"]
    whole = bytearray(picture())
    whole[25] = 6  # colours with transparency
    whole[29:33] = zlib.crc32(bytes(whole[12:29])).to_bytes(4, "big")
    file.write_bytes(bytes(whole))
    assert "expected 8-bit RGB" in PICTURE.problems(file)[0]
    file.write_bytes(b"GIF89a")
    assert PICTURE.problems(file) == ["expected a PNG picture, found something else"]
    assert "cannot be read" in PICTURE.problems(tmp_path / "absent.png")[0]


def test_a_readme_needs_its_fields(tmp_path: Path) -> None:
    file = tmp_path / "README.txt"
    assert "found none" in readme_problems(file)[0]
    file.write_text("who we are", encoding="utf-8")
    assert "cannot be read" in readme_problems(file)[0]
    file.write_text(json.dumps(dict.fromkeys(FIELDS[1:], "")), encoding="utf-8")
    assert readme_problems(file) == ["expected a field 'method', found none"]
    file.write_text(json.dumps(dict.fromkeys(FIELDS, "")), encoding="utf-8")
    assert readme_problems(file) == []
