"""Joining stores: of one kind, each episode once, resumably."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwm.data.merge import merge
from hwm.data.store import Store, StoreError
from hwm.data.writer import Writer
from tests.conftest import make_store


def test_merge_joins_episodes_video_and_statistics(tmp_path: Path) -> None:
    a = make_store(tmp_path / "a", [4, 5], prefix="a", video=True)
    b = make_store(tmp_path / "b", [6], prefix="b", seed=7, video=True)
    merged = merge([a.path, b.path], tmp_path / "m")
    merged.verify()
    assert [(e.id, e.steps) for e in merged.episodes] == [("a0", 4), ("a1", 5), ("b0", 6)]
    assert merged.header == a.header
    assert np.array_equal(merged.actions, np.concatenate([a.actions, b.actions]))
    assert np.array_equal(merged.latents, np.concatenate([a.latents, b.latents]))
    assert np.allclose(merged.statistics[0], merged.actions.reshape(-1, 2).mean(0))
    assert merged.video(merged.episodes[2]).read_bytes() == b.video(b.episodes[0]).read_bytes()
    Store(a.path).verify()  # the parts stay as they are
    assert a.video(a.episodes[0]).exists()


def test_merge_refuses_repeated_episodes_before_it_writes(tmp_path: Path) -> None:
    a, b = make_store(tmp_path / "a"), make_store(tmp_path / "b", [3])
    with pytest.raises(StoreError, match=r"episode 'e0' is in both .*a and .*b"):
        merge([a.path, b.path], tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": 20.0}, "fps: 20.0 against 10.0"),
        ({"tokenizer": "other@1"}, "tokenizer: 'other@1' against 'test'"),
        ({"action_names": ("left", "up")}, "action_names"),
    ],
)
def test_merge_refuses_other_kinds(tmp_path: Path, change: dict, message: str) -> None:
    a, b = make_store(tmp_path / "a"), make_store(tmp_path / "b", prefix="b", **change)
    with pytest.raises(StoreError, match=f"differ in kind: .*{message}"):
        merge([a.path, b.path], tmp_path / "m")


def test_merge_refuses_video_of_some(tmp_path: Path) -> None:
    a, b = make_store(tmp_path / "a", [3]), make_store(tmp_path / "b", [3], prefix="b", video=True)
    with pytest.raises(StoreError, match="one has video and the other has none"):
        merge([a.path, b.path], tmp_path / "m")
    with pytest.raises(StoreError, match="nothing to merge"):
        merge([], tmp_path / "m")


def test_merge_resumes_but_not_with_other_parts(tmp_path: Path) -> None:
    a, b, c = (make_store(tmp_path / name, [3, 4], prefix=name) for name in "abc")
    begun = Writer(tmp_path / "m", a.header)  # as if killed after one episode of a
    begun.add("a0", a.actions[:3], a.latents[:3])
    with pytest.raises(StoreError, match="begun with other data: it holds episode 'a0'"):
        merge([b.path, c.path], tmp_path / "m")
    assert [e.id for e in merge([a.path, b.path], tmp_path / "m").episodes] == ["a0", "a1", "b0", "b1"]
