"""Encoding spread over two workers of a Ray that is begun here, one of which is killed: as if it had not been."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hwm.cli import main
from hwm.commands import tokens
from hwm.commands.spread import on_ray
from hwm.data.store import Store, StoreError
from hwm.encode.episodes import EncodeConfig, encode
from hwm.errors import HwmError
from hwm.tokenizers.pixels import Pixels
from tests.conftest import make_store
from tests.remote.dying import encode_and_die_once
from tests.remote.test_far_data import alike

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two workers, and where one of them notes that it was killed."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")
    killed = tmp_path_factory.mktemp("ray") / "killed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HWM_TEST_KILLED", str(killed))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # which writes into the home folder
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        ray.init(
            address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False,
            object_store_memory=80 << 20,
        )  # fmt: skip
        yield killed
        ray.shutdown()


@pytest.fixture
def recording(tmp_path: Path) -> Store:
    return make_store(tmp_path / "recording", [5, 6, 4, 7, 5, 6, 4], latent=None, tokenizer="", video=True)


@pytest.mark.slow
def test_a_killed_workers_part_is_done_again(
    workers: Path,
    tmp_path: Path,
    recording: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = encode(recording.path, Pixels((32, 32)), tmp_path / "whole", EncodeConfig(keep_video=True, clip=4))
    monkeypatch.setattr(tokens, "encode_here", encode_and_die_once)
    monkeypatch.chdir(tmp_path)
    options = ["--tokenizer", "pixels-32x32", "--clip", "4", "--keep-video"]
    main(["encode", "recording", *options, "--out", "out", "--on", "ray", "--shards", "2", "--device", "cpu"])
    assert workers.read_text(encoding="utf-8") == "e1_clip_00000,e1_clip_00001", (
        "it was killed in the middle of its part"
    )
    store = Store(tmp_path / "out")
    alike(store, whole)
    assert not (tmp_path / "out.parts").exists()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    main(["encode", "recording", *options, "--out", "out"])  # is there already
    main(["encode", "recording", *options, "--out", "out", "--on", "ray", "--shards", "3"])
    main(["encode", "recording", *options, "--every", "2", "--out", "out", "--on", "ray", "--shards", "3"])
    assert "was made with other settings (every: 1, now 2)" in capsys.readouterr().err


def refuse(part: int) -> None:
    raise StoreError(f"part {part} is no good")


def test_what_is_wrong_in_a_part_is_said_here(workers: Path) -> None:
    with pytest.raises(StoreError, match=r"^part 7 is no good$"):
        on_ray(refuse, [7])


def test_parts_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in ([], ["--shards", "4", "--shard", "1"]):
        main(["encode", "mini_heldout", "--out", str(tmp_path / "out"), "--on", "ray", *given])
        assert "say how many with --shards, and leave out --shard" in capsys.readouterr().err


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(HwmError, match=r"humanoid-world-models\[ray\]"):
        on_ray(refuse, [1])
