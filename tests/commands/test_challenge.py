"""From a folder in 1X's layout to a submission that is looked over, by the commands alone."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hwm.cli import main
from hwm.commands.challenge import VERBS
from hwm.tokenizers.tiny import TinyTokenizer
from hwm.train.checkpoint import save_model
from hwm.types import DataSpec, LatentSpec

TINY = ["--model.dim", "16", "--model.depth", "1", "--model.heads", "2", "--model.factorized"]
FEW = ["--train.steps", "3", "--train.batch-size", "2", "--train.warmup", "1", "--train.dtype", "float32",
       "--train.val-every", "0", "--train.val-batches", "1", "--train.threads", "1"]  # fmt: skip
SENDER = [x for f in ("method", "team", "authors", "email", "institution", "country") for x in (f"--sender.{f}", f)]


def hwm(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data made by the commands, and a model trained for three updates on each kind of it."""
    lab = tmp_path_factory.mktemp("lab")
    common = ("data", "make-onex", "--source", "random")
    assert hwm(*common, "--out", lab / "train", "--frames", 200) == 0
    assert hwm(*common, "--out", lab / "val", "--frames", 120, "--flat", "--shards", 1, "--seed", 1) == 0
    assert hwm(*common, "--out", lab / "test", "--frames", 640, "--version", "2.0-test") == 0
    assert hwm(*common, "--out", lab / "raw", "--frames", 150, "--flat", "--shards", 1, "--version", "2.0-raw") == 0
    assert hwm("train", "next_block_base", "--out", lab / "model", "--data.stores", lab / "train", *TINY, *FEW) == 0
    torch.manual_seed(0)
    spec = DataSpec(LatentSpec((64, 64), channels=3), {})
    save_model(lab / "tokenizer", TinyTokenizer.tiny().build(spec))
    encode = ("encode", lab / "raw", "--tokenizer", lab / "tokenizer", "--every", 3, "--keep-video")
    assert hwm(*encode, "--out", lab / "encoded") == 0
    stores = ("--data.stores", lab / "encoded", "--data.val-stores", lab / "encoded")
    train = ("train", "next_block_mini", *stores, "--out", lab / "painter")
    assert hwm(*train, *TINY, *FEW, "--train.optimizer", "adamw") == 0
    return lab


def test_compression_on_test_samples(lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "submission"
    command = ("challenge", "compression", "--model", lab / "model", "--data", lab / "test", "--clips", 2, "--out", out)
    assert hwm(*command, "--zip", *SENDER) == 0
    said = capsys.readouterr().out
    assert "2 samples, looked over and whole; packed in" in said
    assert "Not publicly documented" in said
    assert "README.txt says nothing of" not in said
    with np.load(out / "1.npz") as file:
        assert (file["indices"].dtype, file["indices"].shape) == (np.int32, (3, 32, 32, 500))
        assert (file["values"].dtype, file["values"].shape) == (np.float32, (3, 32, 32, 500))
    with zipfile.ZipFile(out / "submission.zip") as archive:
        assert sorted(archive.namelist()) == ["0.npz", "1.npz", "README.txt"]
    assert hwm("challenge", "validate", out) == 0

    whole = (out / "1.npz").read_bytes()
    (out / "1.npz").write_bytes(whole[:-1000])
    (out / "0.npz").unlink()
    capsys.readouterr()
    assert hwm("challenge", "validate", out) == 2
    told = capsys.readouterr()
    assert "0.npz: expected the file, found none" in told.out
    assert "1.npz: expected an .npz archive of two arrays, it cannot be read" in told.out
    assert "2 problems in 2 files" in told.err

    assert hwm(*command) == 0  # the same command mends it
    assert (out / "1.npz").read_bytes() == whole
    assert hwm("challenge", "validate", out) == 0
    capsys.readouterr()
    assert hwm(*command, "--top", 400) == 2
    assert "was begun with other settings" in capsys.readouterr().err


def test_compression_on_held_out_data_is_scored(lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "submission"
    command = ("challenge", "compression", "--model", lab / "model", "--data", lab / "val", "--clips", 2, "--out", out)
    assert hwm(*command, "--train", lab / "train", "--context", 3, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert json.loads((out / "results.json").read_text(encoding="utf-8")) == found
    scores = found["scores"]
    assert scores["model"]["top_ce"]["clips"] == 2
    # untrained on random ids: no better than a uniform guess, and not much worse
    assert scores["model"]["ce"]["mean"] == pytest.approx(scores["uniform"], abs=0.1)
    assert scores["unigram"]["ce"]["mean"] == pytest.approx(scores["uniform"], abs=0.7)
    assert {"model", "copy", "unigram", "uniform"} == set(scores)
    assert hwm(*command, "--train", lab / "train") == 0
    table = capsys.readouterr().out
    assert "Top-500 CE, nats" in table
    assert "unigram" in table


def test_sampling_from_raw_video(lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "submission"
    command = ("challenge", "sampling", "--model", lab / "painter", "--data", lab / "raw", "--tokenizer",
               lab / "tokenizer", "--target", 40, "--clips", 2, "--out", out)  # fmt: skip
    assert hwm(*command, "--samples", 3, "--sampler", "pick=sample", "temperature=1.0") == 0
    said = capsys.readouterr().out
    assert "frames 1 to 16, one in 3, make 6 steps, 8 more are predicted, frame 40 is shown" in said
    assert "pictures are made at 64 x 64, as the tokenizer's are, and resized to 512 x 512" in said
    for line in ("the picture, mean of 3", "one sample", "the last frame seen, repeated"):
        assert line in said
    pictures = sorted(out.glob("*.png"))
    assert len(pictures) == 2
    assert np.asarray(Image.open(pictures[0])).shape == (512, 512, 3)
    assert hwm("challenge", "validate", out) == 0
    pictures[0].write_bytes(pictures[0].read_bytes()[:-20])
    assert hwm("challenge", "validate", out) == 2
    assert f"{pictures[0].name}: expected a whole PNG picture" in capsys.readouterr().out


def test_averaging_what_does_not_differ_is_said(lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("challenge", "sampling", "--model", lab / "painter", "--data", lab / "encoded", "--tokenizer",
               lab / "tokenizer", "--target", 22, "--clips", 1, "--size", 32, 32)  # fmt: skip
    assert hwm(*command, "--samples", 2, "--out", tmp_path / "two") == 0
    assert "All samples of a clip are alike" in capsys.readouterr().out
    assert hwm(*command, "--samples", 1, "--out", tmp_path / "one") == 0
    assert "All samples of a clip are alike" not in capsys.readouterr().out
    (one,), (two,) = ((tmp_path / n).glob("*.png") for n in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_mistakes_end_in_one_message(lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, painter = lab / "model", lab / "painter"
    for words, said in (
        (("compression", "--model", model, "--data", lab / "raw"), "holds no token ids"),
        (("compression", "--model", painter, "--data", lab / "val"), "the model reads LatentSpec"),
        (("compression", "--model", lab / "absent", "--data", lab / "val"), "there is no model called"),
        (("sampling", "--model", model, "--data", lab / "raw"), "there is no tokenizer called 'cosmos-dv8x8x8'"),
        (
            ("sampling", "--model", painter, "--tokenizer", lab / "tokenizer", "--data", lab / "val"),
            "has no video to take frames from",
        ),
        (
            ("sampling", "--model", painter, "--tokenizer", lab / "tokenizer", "--data", lab / "raw", "--target", 10),
            "comes after the 17 that are seen",
        ),
    ):
        assert hwm("challenge", *words, "--out", tmp_path / "out") == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert hwm("challenge", "compresion") == 2
    assert "did you mean compression" in capsys.readouterr().err
    assert hwm("challenge", "--help") == 0
    shown = capsys.readouterr().out
    assert all(f"  {verb} " in shown for verb in VERBS)
