"""`hwm convert`: from published folders and files to ours, and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hwm import load, load_tokenizer
from hwm.cli import main
from hwm.convert import genie, magvit2
from hwm.models.genie import Genie
from hwm.tokenizers.magvit2 import MAGVIT2
from hwm.types import DataSpec, LatentSpec


@pytest.fixture
def model(tmp_path: Path) -> Path:
    spec = DataSpec(LatentSpec((3, 3), 64, levels=(8, 8)), {})
    genie.write(replace(Genie.tiny(), actions=False).build(spec), tmp_path / "GENIE")
    return tmp_path / "GENIE"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    made = MAGVIT2.tiny().build(DataSpec(LatentSpec((8, 8), channels=3), {}))
    torch.save({"state_dict": made.state_dict()}, tmp_path / "magvit2.ckpt")
    return tmp_path / "magvit2.ckpt"


def test_a_model_goes_there_and_back(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, back = tmp_path / "ours", tmp_path / "back"
    assert main(["convert", "genie", str(model), "--out", str(ours)]) == 0
    loaded = load(ours)
    count = sum(p.numel() for p in loaded.parameters())
    assert f"genie, {count:,} parameters" in capsys.readouterr().out
    assert main(["convert", "genie", str(ours), "--out", str(back), "--to", "published"]) == 0
    for name in ("config.json", "model.safetensors"):
        assert (back / name).read_bytes() == (model / name).read_bytes()


def test_a_tokenizer_goes_there_and_back(tokenizer: Path, tmp_path: Path) -> None:
    ours, back = tmp_path / "ours", tmp_path / "back"
    assert main(["convert", "magvit2", str(tokenizer), "--out", str(ours)]) == 0
    loaded = load_tokenizer(ours)
    assert isinstance(loaded, MAGVIT2)
    assert main(["convert", "magvit2", str(ours), "--out", str(back), "--to", "published"]) == 0
    again = magvit2.read(back)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in again.state_dict().items())


def test_mistakes_are_told(model: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(message: str, *args: str) -> None:
        assert main(["convert", *args]) == 2
        assert message in capsys.readouterr().err

    fails("there is no published layout called 'genia'; did you mean genie", "genia", str(model), "--out", "x")
    fails("there is no", "genie", str(tmp_path / "nowhere"), "--out", str(tmp_path / "x"))
    fails("config.json", "genie", str(tmp_path), "--out", str(tmp_path / "x"))
    fails("is not an empty folder", "genie", str(model), "--out", str(model))
    fails("is not an empty folder", "genie", str(model), "--out", str(tokenizer))
    fails("no checkpoint", "genie", str(model), "--out", str(tmp_path / "x"), "--to", "published")
    assert main(["convert", "magvit2", str(tokenizer), "--out", str(tmp_path / "ours")]) == 0
    fails(
        "checkpoint of a 'magvit2'", "genie", str(tmp_path / "ours"), "--out", str(tmp_path / "x"), "--to", "published"
    )
    assert not (tmp_path / "x").exists()
