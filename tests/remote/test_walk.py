"""The ways that pages describe from a bucket: walked as those on this disk, which nothing but the model is on."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwm import far
from tests.remote.conftest import Bucket
from tests.test_docs import ROOT
from tests.test_walks import Walk, follow, walks


@pytest.mark.slow
@pytest.mark.parametrize("walk", walks(far=True))
def test_every_step_of_the_way_can_be_walked(
    walk: Walk, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, place = bucket.client, walk.place.removeprefix("s3://")
    client.mkdir(place.partition("/")[0])  # type: ignore[attr-defined]
    client.put(str(ROOT / walk.source), place, recursive=True)  # type: ignore[attr-defined]
    (tmp_path / "walk").mkdir()
    monkeypatch.chdir(tmp_path / "walk")
    follow(walk, monkeypatch)
    assert sorted(path.name for path in Path().iterdir()) == ["arm.html", "arm.json", "arm.png", "runs"]
    assert not list((far.cache() / "staged").rglob("*.bin")), "what was sent is not kept twice"
