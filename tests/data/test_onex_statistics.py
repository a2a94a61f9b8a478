"""Action statistics of folders read in place: computed once, kept beside the data or in the user's cache."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hwm.config import from_json, to_json
from hwm.data import in_place as base
from hwm.data.in_place import STATISTICS
from hwm.data.readers import open_store
from hwm.data.store import StoreError
from hwm.types import DataSpec
from tests.data.onex_toys import make_v1, make_v2


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def refuse(*_: object) -> None:
    raise AssertionError("computed again")


def test_they_are_those_of_every_frame_counted_once(tmp_path: Path, cache: Path) -> None:
    data = make_v2(tmp_path / "a", [[40, 13], [70]])
    states = np.concatenate([d.states for d in data]).astype(np.float64)
    mean, std = open_store(tmp_path / "a").statistics
    assert np.allclose(mean, states.mean(0), rtol=1e-9)
    assert np.allclose(std, states.std(0), rtol=1e-9)
    spec = open_store(tmp_path / "a").data_spec()  # which every checkpoint holds
    assert spec.actions["1x_eve"].mean == mean
    assert from_json(DataSpec, to_json(spec)) == spec


def test_they_are_computed_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, states, _ = make_v1(tmp_path / "a", [50])
    first = open_store(tmp_path / "a").statistics
    noted = json.loads((tmp_path / "a" / STATISTICS).read_text(encoding="utf-8"))
    assert tuple(noted["mean"]) == first[0]
    assert noted["frames"] == 50
    assert not cache.exists()
    monkeypatch.setattr(base, "moments", refuse)
    assert open_store(tmp_path / "a").statistics == first
    # joined or not, the frames are the same
    (tmp_path / "a/actions/joint_pos.bin").write_bytes((states[:, :21] + 1).tobytes())
    with pytest.raises(AssertionError, match="computed again"):  # other data of the same size
        _ = open_store(tmp_path / "a").statistics


@pytest.mark.parametrize("noted", ["{", "[]", '{"frames": 50}', '{"frames": 49, "mean": [], "std": []}'])
def test_a_damaged_note_is_replaced(tmp_path: Path, cache: Path, noted: str) -> None:
    make_v1(tmp_path / "a", [50])
    (tmp_path / "a" / STATISTICS).write_text(noted, encoding="utf-8")
    first = open_store(tmp_path / "a").statistics
    assert tuple(json.loads((tmp_path / "a" / STATISTICS).read_text(encoding="utf-8"))["mean"]) == first[0]


def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_v1(tmp_path / "a", [50])
    make_v1(tmp_path / "b" / "a", [60])
    for path in (tmp_path / "a", tmp_path / "b" / "a"):
        (path / STATISTICS).mkdir()  # a file cannot take its place, whoever runs the test
    first, other = (open_store(p).statistics for p in (tmp_path / "a", tmp_path / "b" / "a"))
    assert first != other
    said = capsys.readouterr().err
    assert f"{tmp_path / 'a'} cannot be written to: its action statistics are kept in {cache}" in said
    assert len(list(cache.rglob("*.json"))) == 2
    monkeypatch.setattr(base, "moments", refuse)
    assert open_store(tmp_path / "a").statistics == first
    assert open_store(tmp_path / "b" / "a").statistics == other
    assert capsys.readouterr().err == ""


def test_without_any_place_they_are_computed_and_not_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_v1(tmp_path / "a", [50])
    (tmp_path / "a" / STATISTICS).mkdir()
    cache.write_text("not a folder", encoding="utf-8")
    assert len(open_store(tmp_path / "a").statistics[0]) == 25


def test_an_action_that_is_no_number_is_named(tmp_path: Path, cache: Path) -> None:
    data = make_v2(tmp_path / "a", [[40], [40]])
    bad = data[1].states.copy()
    bad[3, 9] = np.nan
    (tmp_path / "a/robot_states/states_1.bin").write_bytes(bad.tobytes())
    with pytest.raises(StoreError, match="LEFT_ELBOW_PITCH of frame 43 is nan"):
        _ = open_store(tmp_path / "a").statistics
    assert not (tmp_path / "a" / STATISTICS).exists()
