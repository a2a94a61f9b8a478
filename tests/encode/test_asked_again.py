"""A complete store answers the request that made it, and no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hwm.cli import main
from hwm.data.merge import merge
from hwm.data.show import facts
from hwm.data.sources import SourceOptions, open_source
from hwm.data.store import Store, StoreError
from hwm.data.writer import Writer
from hwm.encode.episodes import EncodeConfig, encode
from hwm.tokenizers.pixels import Pixels
from tests.conftest import make_arrays, make_header, make_store

SMALL = Pixels((8, 8))
GIVEN = EncodeConfig(every=2)


@pytest.fixture
def recording(tmp_path: Path) -> Store:
    return make_store(tmp_path / "recording", [8, 6, 7], latent=None, tokenizer="", video=True)


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({"every": 3}, {}, r"every: 2, now 3"),
        ({"clip": 2}, {}, r"clip: 0, now 2"),
        ({"crop": True}, {}, r"crop: False, now True"),
        ({"keep_video": True}, {}, r"keep_video: False, now True"),
        ({"half_actions": True}, {}, r"half_actions: False, now True"),
        ({"shards": 3}, {}, r"shards: 1, now 3"),
        (
            {},
            {"actions": ("right",), "embodiment": "arm"},
            r"embodiment: '', now 'arm'; actions: \[\], now \['right'\]",
        ),
        ({}, {"split": "[:2]"}, r"split: '', now '\[:2\]'"),
        ({}, {"fps": 10.0}, r"fps: 0.0, now 10.0"),
    ],
)
def test_another_request_is_refused_by_name(
    tmp_path: Path, recording: Store, change: dict[str, object], options: dict[str, object], said: str
) -> None:
    made = encode(recording.path, SMALL, tmp_path / "out", GIVEN)
    before = (tmp_path / "out/meta.json").read_bytes()
    assert encode(recording.path, SMALL, tmp_path / "out", GIVEN).episodes == made.episodes
    source = open_source(recording.path, SourceOptions(**options))  # type: ignore[arg-type]
    asked = EncodeConfig(**{"every": 2, **change})  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=rf"is complete, and was made with other settings \({said}"):
        encode(source, SMALL, tmp_path / "out", asked)
    assert (tmp_path / "out/meta.json").read_bytes() == before


def test_how_it_is_computed_matters_not(tmp_path: Path, recording: Store) -> None:
    made = encode(recording.path, SMALL, tmp_path / "out")
    again = encode(
        open_source(recording.path, SourceOptions(kind="store")), SMALL, tmp_path / "out", EncodeConfig(batch=2)
    )
    assert again.episodes == made.episodes


def test_another_source_tokenizer_or_statistics(tmp_path: Path, recording: Store) -> None:
    encode(recording.path, SMALL, tmp_path / "out")
    twin = make_store(tmp_path / "twin", [8, 6, 7], seed=9, latent=None, tokenizer="", video=True)  # of the same names
    with pytest.raises(StoreError, match=r"source: '.*recording', now '.*twin'"):
        encode(twin.path, SMALL, tmp_path / "out")
    with pytest.raises(StoreError, match=r"tokenizer: 'pixels-8x8', now 'pixels-4x8'"):
        encode(recording.path, Pixels((4, 8)), tmp_path / "out")
    with pytest.raises(StoreError, match=r"statistics: '', now '.*twin'"):
        encode(recording.path, SMALL, tmp_path / "out", statistics=twin)
    encode(recording.path, SMALL, tmp_path / "held", statistics=twin)
    meta = json.loads((twin.path / "meta.json").read_bytes())
    meta["statistics"]["mean"][0] += 1  # the training store was made anew
    (twin.path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(StoreError, match=r"statistics: others than those of .*twin"):
        encode(recording.path, SMALL, tmp_path / "held", statistics=Store(twin.path))


def test_another_number_format(tmp_path: Path, recording: Store) -> None:
    class Weighed(torch.nn.Module, Pixels):  # type: ignore[misc]
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            Pixels.__init__(self, (8, 8))
            self.weight = torch.nn.Parameter(torch.ones(1))

    encode(recording.path, Weighed(), tmp_path / "out")
    with pytest.raises(StoreError, match=r"dtype: 'float32', now 'bfloat16'"):
        encode(recording.path, Weighed().to(torch.bfloat16), tmp_path / "out")


def test_a_source_that_has_changed(tmp_path: Path) -> None:
    make_store(tmp_path / "r", [8, 6], latent=None, tokenizer="", video=True)
    encode(tmp_path / "r", SMALL, tmp_path / "out")
    (tmp_path / "r").rename(tmp_path / "old")
    make_store(tmp_path / "r", [8, 6, 7], latent=None, tokenizer="", video=True)
    with pytest.raises(StoreError, match="is complete, but lacks episode 'e2': the source has changed since"):
        encode(tmp_path / "r", SMALL, tmp_path / "out")


def test_what_was_left_out_is_missed_by_who_asks_for_all(tmp_path: Path, recording: Store) -> None:
    recording.video(recording.episodes[1]).write_bytes(b"nothing")
    encode(recording.path, SMALL, tmp_path / "out", EncodeConfig(skip_bad=True))
    assert encode(recording.path, SMALL, tmp_path / "out", EncodeConfig(skip_bad=True)).skipped.keys() == {"e1"}
    with pytest.raises(StoreError, match=r"complete but for 1 episodes that were left out \(--skip-bad\), as 'e1': "):
        encode(recording.path, SMALL, tmp_path / "out")


def test_stores_that_recorded_no_settings(tmp_path: Path, recording: Store) -> None:
    """They are read, and refused only for what is known of them."""
    encode(recording.path, SMALL, tmp_path / "out", GIVEN)
    meta = json.loads((tmp_path / "out/meta.json").read_bytes())
    assert meta.pop("settings")["every"] == 2
    (tmp_path / "out/meta.json").write_text(json.dumps(meta), encoding="utf-8")
    assert encode(recording.path, SMALL, tmp_path / "out", GIVEN).settings == {}
    assert "settings" not in facts(Store(tmp_path / "out"))
    for other, said in (
        (EncodeConfig(every=2, keep_video=True), "keep_video: False, now True"),
        (EncodeConfig(every=3), "actions_per_step: 4, now 6"),
        (EncodeConfig(every=2, shards=2), r"part: None, now \(0, 2\)"),
    ):
        with pytest.raises(StoreError, match=said):
            encode(recording.path, SMALL, tmp_path / "out", other)


def test_settings_are_shown_and_kept_when_parts_are_joined(
    tmp_path: Path, recording: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["encode", str(recording.path), "--tokenizer", "pixels-8x8", "--crop", "--shards", "2"]
    for i in range(2):
        assert main([*words, "--shard", str(i), "--out", str(tmp_path / f"p{i}")]) == 0
    merged = merge([tmp_path / "p0", tmp_path / "p1"], tmp_path / "all")
    said = facts(merged)["settings"]
    for setting in (f"source {recording.path.resolve()}", "kind store", "crop", "shards 1", "every 1", "dtype float32"):
        assert setting in said.split(", ")
    assert "shard 1" not in said.split(", "), "of one part alone"
    assert main([*words, "--shard", "0", "--out", str(tmp_path / "p0"), "--keep-video"]) == 2
    assert "keep_video: False, now True" in capsys.readouterr().err


def test_work_goes_on_only_with_the_same_settings(tmp_path: Path) -> None:
    header = make_header()
    begun = Writer(tmp_path / "s", header, {"camera": "top", "crop": False})
    begun.add("e0", *make_arrays(header, 4))
    with pytest.raises(StoreError, match=r"begun with other settings \(camera: 'top', now 'wrist'\)"):
        Writer(tmp_path / "s", header, {"camera": "wrist", "crop": False})
    Writer(tmp_path / "s", header)  # as a process does that adds episodes
    made = Writer(tmp_path / "s", header, {"camera": "top", "newer": 1}).finish()
    assert made.settings == {"camera": "top", "newer": 1}
