"""What file managers and copying programs leave beside files is no data, of whatever kind the data is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hwm.data.merge import merge
from hwm.data.readers import open_store
from hwm.data.sources import SourceOptions, open_source
from hwm.data.sources.videos import videos_in
from hwm.files import listed
from tests.conftest import make_store
from tests.data.onex_toys import make_v1, make_v2
from tests.data.sources.test_folder import make_folder
from tests.data.sources.test_lerobot import write_v21

HERE = Path(__file__).parent
APPLE = b"\0\5\26\7\0\2\0\0Mac OS X        "


def copied(folder: Path) -> None:
    """Copied by macOS to a disk that is not its own, and looked at."""
    for path in list(folder.rglob("*")):
        path.with_name(f"._{path.name}").write_bytes(APPLE)
    for place in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        (place / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")


def videos(path: Path) -> SourceOptions:
    make_folder(path)
    return SourceOptions()


def lerobot_v21(path: Path) -> SourceOptions:
    write_v21(path)
    return SourceOptions()


def lerobot_v3(path: Path) -> SourceOptions:
    shutil.copytree(HERE / "lerobot", path)
    return SourceOptions(camera=("front",))


def rlds(path: Path) -> SourceOptions:
    shutil.copytree(HERE / "rlds" / "toy_base", path)
    return SourceOptions(split="train", source_fps=5.0)


def recording(path: Path) -> SourceOptions:
    make_store(path, video=True, latent=None, tokenizer="")
    return SourceOptions()


@pytest.mark.parametrize("make", [videos, lerobot_v21, lerobot_v3, rlds, recording], ids=lambda f: f.__name__)
def test_a_source_is_the_same_without_them(tmp_path: Path, make: Callable[[Path], SourceOptions]) -> None:
    options = make(tmp_path / "data")
    before = open_source(tmp_path / "data", options)
    copied(tmp_path / "data")
    after = open_source(tmp_path / "data", options)
    assert (type(after), list(after.ids), after.notes) == (type(before), list(before.ids), before.notes)
    for mine, theirs in zip(before, after, strict=True):
        assert np.array_equal(mine.actions, theirs.actions)
        assert sum(1 for _ in theirs.frames()) == theirs.steps


@pytest.mark.parametrize("layout", ["v1", "v2", "v2 flat", "hwm"])
def test_a_store_is_the_same_without_them(tmp_path: Path, layout: str) -> None:
    if layout == "hwm":
        make_store(tmp_path / "data")
    elif layout == "v1":
        make_v1(tmp_path / "data", [9, 4])
    else:
        make_v2(tmp_path / "data", [[20, 14], [17]], flat="flat" in layout)
    before = open_store(tmp_path / "data")
    copied(tmp_path / "data")
    after = open_store(tmp_path / "data")
    assert (type(after), after.steps, after.notes) == (type(before), before.steps, before.notes)
    assert [e.id for e in after.episodes] == [e.id for e in before.episodes]


def test_a_store_under_way_and_stores_that_are_merged(tmp_path: Path) -> None:
    parts = [make_store(tmp_path / name, (4, 3), prefix=name) for name in "ab"]
    for part in parts:
        copied(part.path)
    (tmp_path / "both" / ".partial").mkdir(parents=True)
    copied(tmp_path / "both")
    assert len(merge([p.path for p in parts], tmp_path / "both").episodes) == 4


def test_videos_by_themselves(tmp_path: Path) -> None:
    make_folder(tmp_path / "lab")
    copied(tmp_path / "lab")
    assert [p.name for p in videos_in(tmp_path / "lab")] == ["take_0.mp4", "take_1.mp4"]


def test_a_folder_with_nothing_else_is_empty(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    copied(tmp_path / "new")
    assert listed(tmp_path / "new") == []
    make_v1(tmp_path / "new", [9])
    assert listed(tmp_path / "new" / "actions", "*.bin")
