"""`hwm data make-onex`: small folders in 1X's layouts, of the embedded data or of random numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hwm import cli
from hwm.assets import STORES
from hwm.data.clips import Clips
from hwm.data.make_onex import MakeOptions, make
from hwm.data.onex.raw import OneXRaw
from hwm.data.onex.v1 import OneXV1
from hwm.data.onex.v2 import OneXTest, OneXV2
from hwm.data.readers import open_store
from hwm.errors import HwmError
from hwm.loading import load_tokenizer
from tests.conftest import make_store

KINDS = {"1.1": OneXV1, "2.0": OneXV2, "2.0-raw": OneXRaw, "2.0-test": OneXTest}
needs_mini = pytest.mark.skipif(not STORES["mini_heldout"].exists(), reason="needs the embedded set mini_heldout")


@pytest.mark.parametrize("source", ["random", pytest.param("mini_heldout", marks=needs_mini)])
@pytest.mark.parametrize("version", sorted(KINDS))
def test_every_layout_is_made(tmp_path: Path, version: str, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made"
    command = ["data", "make-onex", "--version", version, "--out", str(out), "--source", source, "--frames", "220"]
    assert cli.main(command) == 0
    assert f"{out}: 1X World Model Challenge" in capsys.readouterr().out
    store = open_store(out)
    assert type(store) is KINDS[version]
    store.verify()
    assert np.asarray(store.statistics[1]).max() > 0
    if store.latents is not None:
        assert len(Clips(store, 3)) > 0
    assert cli.main(command) == 2
    assert "holds something already" in capsys.readouterr().err
    assert cli.main(["view", str(out)]) == 0
    assert "1x_eve" in capsys.readouterr().out


@needs_mini
def test_the_embedded_data_keeps_its_time(tmp_path: Path) -> None:
    """Frame f of an episode has the f-th picture, the action that leads to it, and the ids of its step."""
    mini = open_store("mini_heldout")
    k, first = mini.header.actions_per_step, mini.episodes[0]
    rows = np.asarray(mini.actions[first.start : first.stop], np.float32).reshape(-1, 25)[k - 1 :]
    v1 = make(MakeOptions(out=tmp_path / "v1", version="1.1", frames=300))
    assert np.array_equal(v1.actions[:], rows[:300, None])
    ids = np.asarray(mini.latents[first.start : first.start + 100])
    assert np.array_equal(v1.latents[::k][:, ::2, ::2], ids)
    assert np.array_equal(v1.latents[2::k][:, 1::2, 1::2], ids)
    v2 = make(MakeOptions(out=tmp_path / "v2", frames=170, shards=1))
    assert np.array_equal(v2.actions[2::3][:, -1], rows[16:170:17])
    shown = np.array([0, 8, 16]) + 17 * np.arange(10)[:, None]
    assert np.array_equal(v2.latents[:][:, ::4, ::4], ids[shown.ravel() // k])
    raw = make(MakeOptions(out=tmp_path / "raw", version="2.0-raw", frames=60))
    mine = [np.stack(list(raw.frames(e))).astype(float) for e in raw.episodes]
    camera = np.stack(list(mini.frames(first, stop=60))).astype(float)
    assert np.abs(np.concatenate(mine) - camera).mean() < 3  # compressed once more


def test_random_data_follow_their_seed(tmp_path: Path) -> None:
    a, b, c = (
        make(MakeOptions(out=tmp_path / name, source="random", frames=100, seed=seed))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert np.array_equal(a.latents[:], b.latents[:])
    assert np.array_equal(a.actions[:], b.actions[:])
    assert not np.array_equal(a.actions[:], c.actions[:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "0 frames do not fill 2 shards"),
        ({"frames": 3, "shards": 4}, "3 frames do not fill 4 shards"),
        ({"version": "2.0-test", "frames": 70}, "hold [01] test samples of 64 states"),
        ({"source": "nowhere"}, "there is no store nowhere"),
        ({"source": "mini_heldout", "frames": 10**7}, "fewer than the 10,000,000 asked for|there is no store"),
    ],
)
def test_what_cannot_be_made_is_explained(tmp_path: Path, changes: dict, message: str) -> None:
    options = {"source": "random", "frames": 100, **changes}
    with pytest.raises(HwmError, match=message):
        make(MakeOptions(out=tmp_path / "a", **options))
    assert not (tmp_path / "a").exists()


def test_a_source_must_be_of_the_same_robot(tmp_path: Path) -> None:
    make_store(tmp_path / "other")
    with pytest.raises(HwmError, match="has not the 25 actions of 1X's robot at 30 a second"):
        make(MakeOptions(out=tmp_path / "a", source=str(tmp_path / "other")))


def test_the_verb_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data"]) == 0
    assert {"download", "make-onex"} <= set(capsys.readouterr().out.split())
    assert cli.main(["data", "make-onx"]) == 2
    assert "did you mean make-onex" in capsys.readouterr().err


# ----------------------------------------------------------------- stand-ins
@needs_mini
@pytest.mark.parametrize(("version", "repeat", "stride"), [("1.1", 2, 1), ("2.0", 4, 8)])
def test_what_was_made_of_the_embedded_data_can_be_shown(
    version: str, repeat: int, stride: int, tmp_path: Path
) -> None:
    make(MakeOptions(out=tmp_path / "made", version=version, frames=34))
    store, tokenizer = open_store(tmp_path / "made"), load_tokenizer(f"stand-in-{version}")
    assert tokenizer.answers_to(store.header.tokenizer)
    assert tokenizer.latent == store.header.latent
    ids = torch.from_numpy(np.asarray(store.latents[:3], dtype=np.int64))[None]
    video = tokenizer.decode(ids)
    assert len(video[0]) == tokenizer.latent.frames(3)
    small = load_tokenizer("tiny").decode(ids[..., ::repeat, ::repeat])
    assert torch.equal(video[:, -1], small[:, -1])
    assert torch.equal(video[:, 1 : 1 + stride], small[:, 1:2].expand(-1, stride, -1, -1, -1))
    again = tokenizer.encode(video)
    assert again.shape == ids.shape
    assert torch.equal(
        again, again[..., ::repeat, ::repeat].repeat_interleave(repeat, -1).repeat_interleave(repeat, -2)
    )
    with pytest.raises(HwmError, match="takes ids of a grid of"):
        tokenizer.decode(ids[..., :5])


def test_there_are_two_stand_ins() -> None:
    with pytest.raises(HwmError, match=r"did you mean stand-in-2\.0"):
        load_tokenizer("stand-in-2")
