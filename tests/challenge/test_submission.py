"""The folder of a submission: resuming, looking over, packing."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hwm.challenge import submission
from hwm.challenge.formats import FIELDS, TopFormat
from hwm.challenge.submission import Problem, Sender, Submission, summary, validate
from hwm.errors import HwmError

FORM = TopFormat((1, 2, 2, 3), 10)
NAMES = ["0", "1", "2"]


def data(seed: int = 0) -> bytes:
    rng, out = np.random.default_rng(seed), io.BytesIO()
    ids = np.stack([rng.permutation(10)[:3] for _ in range(4)]).reshape(FORM.shape).astype(np.int32)
    np.savez(out, indices=ids, values=np.zeros(FORM.shape, np.float32))
    return out.getvalue()


def begin(folder: Path, **settings: object) -> Submission:
    return Submission(folder, "compression", FORM, NAMES, {"model": "a", **settings})


def complete(folder: Path) -> Submission:
    entry = begin(folder)
    for i, name in enumerate(NAMES):
        entry.add(name, data(i), {"score": i})
    entry.sign(Sender(method="m", team="t", authors="a", email="e", institution="i", country="c"))
    return entry


def test_a_complete_one_is_whole(tmp_path: Path) -> None:
    entry = complete(tmp_path / "s")
    assert validate(tmp_path / "s") == []
    assert entry.todo(scored=True) == []
    assert entry.scores() == {name: {"score": i} for i, name in enumerate(NAMES)}
    said = json.loads((tmp_path / "s" / "README.txt").read_text(encoding="utf-8"))
    assert said == dict(zip(FIELDS, "mtaeic", strict=True))


def test_what_is_missing_or_broken_is_to_be_done_again(tmp_path: Path) -> None:
    entry = complete(tmp_path / "s")
    entry.path("0").unlink()
    entry.path("1").write_bytes(data()[:-40])
    assert begin(tmp_path / "s").todo(scored=False) == ["0", "1"]


def test_a_sample_without_its_figures_is_to_be_done_again(tmp_path: Path) -> None:
    entry = complete(tmp_path / "s")
    lines = (tmp_path / "s" / "scores.jsonl").read_text(encoding="utf-8")
    (tmp_path / "s" / "scores.jsonl").write_text(lines[:-6], encoding="utf-8")  # a kill in the middle of the last line
    assert entry.todo(scored=True) == ["2"]
    assert entry.todo(scored=False) == []
    entry.add("2", data(2), {"score": 2})  # and the line after it is read all the same
    assert entry.todo(scored=True) == []


def test_other_settings_do_not_go_on_in_the_same_folder(tmp_path: Path) -> None:
    complete(tmp_path / "s")
    begin(tmp_path / "s")
    with pytest.raises(HwmError, match=r"was begun with other settings \(model: 'a', now 'b'\)"):
        begin(tmp_path / "s", model="b")
    begin(tmp_path / "s", dtype="float32")  # of which older folders say nothing: there was no other
    with pytest.raises(HwmError, match=r"\(dtype: 'float32', now 'bfloat16'\)"):
        begin(tmp_path / "s", dtype="bfloat16")
    with pytest.raises(HwmError, match="3 samples, now 2"):
        Submission(tmp_path / "s", "compression", FORM, NAMES[:2], {"model": "a"})
    with pytest.raises(HwmError, match="format: "):
        Submission(tmp_path / "s", "compression", TopFormat((1, 2, 2, 4), 10), NAMES, {"model": "a"})


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(HwmError, match="holds something else already"):
        begin(tmp_path)
    (tmp_path / "about.json").write_text("[]", encoding="utf-8")
    with pytest.raises(HwmError, match=r"about.json is not the description of a submission"):
        begin(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["about.json", "notes.txt"]


def test_every_broken_file_is_named(tmp_path: Path) -> None:
    entry = complete(tmp_path / "s")
    entry.path("1").unlink()
    entry.path("2").write_bytes(b"nothing")
    (tmp_path / "s" / "9.npz").write_bytes(data())
    (tmp_path / "s" / "README.txt").unlink()
    found = validate(tmp_path / "s")
    assert [p.file for p in found] == ["README.txt", "1.npz", "9.npz", "2.npz"]
    assert str(found[1]) == "1.npz: expected the file, found none"
    assert found[2] == Problem("9.npz", "expected no such sample, found the file")


def test_a_folder_that_says_nothing_is_measured_by_the_challenge(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    with pytest.raises(HwmError, match=r"holds neither \.npz nor \.png files"):
        validate(folder)
    (folder / "clip_a.npz").write_bytes(data())
    (folder / "README.txt").write_text(Sender().text(), encoding="utf-8")
    found = validate(folder)
    assert "expected 450 .npz files, found 1" in found[0].what
    assert "expected shape (3, 32, 32, 500), found (1, 2, 2, 3)" in found[1].what
    assert "expected 450" not in " ".join(map(str, validate(folder, samples=1)))
    assert "expected 250 .png files, found 0" in validate(folder, "sampling")[0].what
    with pytest.raises(HwmError, match="there is no track called 'compresion'; did you mean compression"):
        validate(folder, "compresion")
    with pytest.raises(HwmError, match="there is no folder"):
        validate(tmp_path / "absent")


def test_packing_makes_one_flat_archive(tmp_path: Path) -> None:
    entry = complete(tmp_path / "s")
    path = entry.pack()
    assert path.name == "submission.zip"
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == ["0.npz", "1.npz", "2.npz", "README.txt"]
        assert archive.testzip() is None
        assert archive.read("1.npz") == entry.path("1").read_bytes()
    assert validate(tmp_path / "s") == []
    entry.path("2").unlink()
    with pytest.raises(FileNotFoundError):
        entry.pack()
    assert [p.name for p in (tmp_path / "s").glob(".*")] == []


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = begin(tmp_path / "s")
    entry.check_room(1)
    with pytest.raises(
        HwmError, match=r"the files to write take 1000000000\.0: choose another --out, or fewer --clips"
    ):
        entry.check_room(10**18)

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(submission, "write_atomically", full)
    with pytest.raises(HwmError, match=r"0\.npz cannot be written: .*No space left on device"):
        entry.add("0", data())


def test_figures_are_summed_up_with_their_error() -> None:
    once = {"mean": 3.0, "standard_error": pytest.approx(7**0.5 / 3**0.5), "clips": 3, "episodes": 3}
    assert summary(np.array([1.0, 2.0, 6.0]), ["a", "b", "c"]) == once
    twice = summary(np.array([1.0, 1.0, 2.0, 2.0, 6.0, 6.0]), ["a", "a", "b", "b", "c", "c"])
    assert twice == once | {"clips": 6}, "a second clip of the same episode says nothing new here"
    assert summary(np.array([2.0, 3.0]), ["a", "a"])["standard_error"] is None
