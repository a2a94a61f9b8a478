"""`hwm evaluate cosmos-ar`: figures by hand, what is written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from hwm import cli
from hwm.convert.cosmos_ar import Published, build, write
from hwm.data.make_onex import MakeOptions, make
from hwm.data.readers import open_store
from hwm.models.cosmos_ar import CosmosAR
from hwm.models.genie import Genie
from hwm.train.checkpoint import save_model
from hwm.types import DataSpec, LatentSpec
from tests.evaluate import pan_world

SMALL = {"dim": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "ffn_hidden_size": 16}


def published(folder: Path, vocab: int, **fields: Any) -> CosmosAR:
    """A small model in the published layout, as a PyTorch file with the fields that differ beside it."""
    fields = {**SMALL, "vocab_size": vocab, **fields}
    torch.manual_seed(0)
    config = Published(**fields)
    model: CosmosAR = config.config(torch.float32).build(config.spec()).eval()
    folder.mkdir()
    torch.save({"model": model.state_dict()}, folder / "model.pt")
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    tokenizer = pan_world.random_tokenizer(root / "tok")
    store = pan_world.record(root / "store", tokenizer, episodes=2, steps=10)
    vocab = store.data_spec().latent.vocab
    assert vocab is not None
    model = published(root / "cosmos", vocab)
    published(root / "reader", vocab, insert_cross_attn=True, context_dim=6, training_type="text_to_video")
    save_model(root / "genie", Genie.tiny().build(store.data_spec()))
    return SimpleNamespace(root=root, store=store, model=model, data=["--data", str(store.path)])


def run(capsys: pytest.CaptureFixture[str], *args: str) -> SimpleNamespace:
    status = cli.main(["evaluate", "cosmos-ar", *args])
    out = capsys.readouterr()
    assert status == 0, out.err
    return out


def test_every_shard_is_read_and_every_token_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(MakeOptions(out=tmp_path / "val_v2.0", source="random", frames=68, shards=2, flat=True))
    files = sorted((tmp_path / "val_v2.0").glob("video_*.bin"))
    maps = [np.fromfile(file, np.int32).reshape(-1, 3, 32, 32) for file in files]
    assert [len(m) for m in maps] == [2, 2]
    model, args = (
        published(tmp_path / "cosmos", 64_000),
        ["--data", str(tmp_path / "val_v2.0"), "--only-eval", "--json"],
    )
    before = set(tmp_path.rglob("*"))
    told = ["--scenario", "fully_teacher_forced", "--batch-size", "1", "--clips", "0"]
    out = json.loads(run(capsys, str(tmp_path / "cosmos"), *args, *told, "--context", "2").out)
    assert set(tmp_path.rglob("*")) == before, "nothing is written"
    clips = [clip for m in maps for clip in m][: out["clips"]]
    assert (out["clips"], out["tokens"]) == (open_store(tmp_path / "val_v2.0").steps // 3, 1024)
    assert out["clips"] >= 3, "of both shards"
    nll, right = [], []
    for clip in clips:
        ids = torch.from_numpy(clip).long().flatten()[None]
        with torch.no_grad():
            logits = model.logits(ids[:, :-1], (3, 32, 32))[0, 2047:]
        nll.append(F.cross_entropy(logits.double(), ids[0, 2048:]).item())
        right.append((logits.argmax(-1) == ids[0, 2048:]).double().mean().item())
    found = out["by_scenario"]["fully_teacher_forced"]
    assert found["ce"] == pytest.approx(np.mean(nll), abs=1e-4)
    assert found["ce_stderr"] == pytest.approx(np.std(nll, ddof=1) / len(nll) ** 0.5, abs=1e-4)
    assert found["accuracy"] == pytest.approx(np.mean(right))


def test_what_is_written_and_what_is_printed(made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [str(made.root / "cosmos"), *made.data, "--clips", "5", "--context-steps", "3", "--horizon", "2"]
    drawn = ["--sampler", "top_p=0.8", "temperature=1.0"]
    tok, out = ["--tokenizer", str(made.root / "tok")], tmp_path / "out"
    printed = run(capsys, *args, *drawn, *tok, "--out", str(out), "--examples", "2")
    wanted = ["clip_0.gif", "clip_0.mp4", "clip_1.gif", "clip_1.mp4", "figures.json"]
    assert sorted(p.name for p in out.iterdir()) == wanted
    assert "was made for 40 x 64 ids" not in printed.err, "a tokenizer that is not recorded is none of note"
    lines = printed.out.splitlines()
    assert any(line.startswith("fully teacher forced: each token given all true tokens before it") for line in lines)
    assert any(line.startswith("autoregressive (temperature 1.0, top-p 0.8)") for line in lines)
    assert sum("cross-entropy" in line for line in lines) == sum(" dB; the last step repeated" in x for x in lines) == 2
    whole = json.loads((out / "figures.json").read_text(encoding="utf-8"))["by_scenario"]
    tokens = json.loads(run(capsys, *args, *drawn, "--only-eval", "--json").out)["by_scenario"]
    for scenario in ("fully_teacher_forced", "autoregressive"):
        for figure in ("ce", "accuracy", "accuracy_copy"):
            assert tokens[scenario][figure] == pytest.approx(whole[scenario][figure], abs=1e-4)
        assert len(whole[scenario]["psnr"]) == 2


def test_weights_in_either_layout_give_the_same(made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = tmp_path / "ours"
    assert cli.main(["convert", "cosmos-ar", str(made.root / "cosmos"), "--out", str(ours)]) == 0
    theirs = tmp_path / "theirs"
    write(made.model, theirs)
    capsys.readouterr()
    args = [*made.data, "--clips", "3", "--only-eval", "--json"]
    found = [json.loads(run(capsys, str(p), *args).out)["by_scenario"] for p in (made.root / "cosmos", ours, theirs)]
    assert found[0] == found[1] == found[2]


def test_a_text_is_read(made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"context": torch.randn(4, 6)}, tmp_path / "told.safetensors")
    save_file({"context": torch.zeros(4, 6)}, tmp_path / "zero.safetensors")
    args = [str(made.root / "reader"), *made.data, "--clips", "3", "--only-eval", "--json"]
    files = [["--text", str(tmp_path / f"{name}.safetensors")] for name in ("told", "zero")]
    told, zero, without = (json.loads(run(capsys, *args, *text).out)["by_scenario"] for text in (*files, []))
    for scenario in ("fully_teacher_forced", "autoregressive"):
        assert zero[scenario]["ce"] == pytest.approx(without[scenario]["ce"], abs=1e-6)
    assert told["fully_teacher_forced"]["ce"] != pytest.approx(without["fully_teacher_forced"]["ce"], abs=1e-6)
    assert cli.main(["evaluate", "cosmos-ar", str(made.root / "cosmos"), *made.data, "--only-eval", *files[0]]) == 2
    assert "cosmos_ar reads no text" in capsys.readouterr().err


def test_weights_of_eight_bits(made, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    args = [str(made.root / "cosmos"), *made.data, "--clips", "3", "--only-eval", "--json"]
    wide, small = (json.loads(run(capsys, *args, *o).out)["by_scenario"] for o in ([], ["--int8"]))
    a, b = (found["fully_teacher_forced"]["ce"] for found in (wide, small))
    assert 0 < abs(a - b) < 0.02 * a


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "name a checkpoint"),
        (("nowhere",), "there is no model called 'nowhere'"),
        (("GENIE",), "is a 'genie', not a 'cosmos_ar'; leave out cosmos-ar"),
        (("COSMOS", "--context-steps", "20"), "no episode has the 21 steps of a window; the longest has 10"),
        (("COSMOS", "--sampler", "top_p=2"), "top_p=2"),
        (("COSMOS", "--sampler", "heat=2"), "there is no field of NextTokenSampler called 'heat'"),
        (("OTHER",), "this model knows 7 ids, and the data has"),
    ],
)
def test_mistakes_are_named(made, args: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if not (made.root / "other").exists():
        published(made.root / "other", 7)
    paths = {name: str(made.root / name.lower()) for name in ("GENIE", "COSMOS", "OTHER")}
    named = [paths.get(a, a) for a in args]
    assert cli.main(["evaluate", "cosmos-ar", *named, *made.data, "--only-eval"]) == 2
    assert message in capsys.readouterr().err


def test_weights_that_end_early_are_named(made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "model.pt"
    cut.write_bytes((made.root / "cosmos" / "model.pt").read_bytes()[:-2000])
    assert cli.main(["evaluate", "cosmos-ar", str(cut), *made.data, "--only-eval"]) == 2
    assert "is not a whole PyTorch file" in capsys.readouterr().err


def test_a_model_of_another_grid_is_fitted_and_one_of_other_ids_is_not(made) -> None:
    fields = {**SMALL, "vocab_size": 60, "video_latent_shape": (3, 4, 4)}
    model = build(fields, Published(**fields).config(torch.float32).build(Published(**fields).spec()).state_dict())
    wide = DataSpec(LatentSpec((2, 9), 60), {}, "another", 7.0)
    model.fit(wide)
    assert (model.spec.latent.grid, model.spec.tokenizer, model.spec.fps) == ((2, 9), "another", 7.0)
