"""Cosmos-Predict1's autoregressive models as published: read, written, and read again; and what is said of files that
are not. Beside recorded outputs of the public code."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hwm import load
from hwm.cli import main
from hwm.convert import cosmos_ar
from hwm.convert.cases import compare
from hwm.convert.cosmos_ar import SIZES, Published, build, read, write
from hwm.convert.family import families, from_reference
from hwm.errors import CheckpointError, HwmError
from hwm.models.cosmos_ar import CosmosAR
from hwm.types import DataSpec, LatentSpec
from tests.models.toys import toy_spec
from tests.parity import recorded
from tests.test_weights import own_memory

FIELDS: dict[str, Any] = {
    "dim": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_hidden_size": 40, "vocab_size": 60,
    "video_latent_shape": [3, 4, 5],
}  # fmt: skip
YARN = {"apply_yarn": True, "head_dim": 8}
TEXT = {"insert_cross_attn": True, "context_dim": 10, "apply_abs_pos_emb": True, "training_type": "text_to_video"}


def made(dtype: torch.dtype = torch.float32, **more: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fields of the public config, and random weights of its sizes."""
    fields = {**FIELDS, **more}
    published = cosmos_ar.from_json(Published, fields)
    torch.manual_seed(0)
    model = published.config(dtype).build(published.spec())
    return fields, {key: torch.randn_like(x) * 0.2 for key, x in model.state_dict().items()}


def folder(
    path: Path, weights: dict[str, Tensor], fields: dict[str, Any] | None = None, kind: str = "model.pt"
) -> Path:
    """Weights as they are published, and a config where one is given."""
    path.mkdir()
    if kind.endswith(".pt"):
        torch.save({"model": {f"model.{key}": x for key, x in weights.items()}, "step": 3}, path / kind)
    elif kind.endswith(".json"):
        where = {}
        for i, key in enumerate(weights):
            where[key] = f"model-0000{i % 3}.safetensors"
        for file in set(where.values()):
            save_file({key: x for key, x in weights.items() if where[key] == file}, path / file)
        (path / kind).write_text(json.dumps({"metadata": {}, "weight_map": where}), encoding="utf-8")
    else:
        save_file(weights, path / kind)
    if fields is not None:
        (path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    return path


# ---------------------------------------------------------------------- parity
@pytest.mark.parametrize("name", ["4b-style", "12b-style", "5b-style"])
def test_recorded_outputs_are_matched(name: str) -> None:
    case = recorded(f"cosmos-ar-{name}")
    model, rows = compare(case)
    assert isinstance(model, CosmosAR)
    assert {row.name for row in rows} >= {"logits", "logits_kv", "greedy"}
    assert not [row for row in rows if not row.passed]
    assert not model.training
    again = from_reference("cosmos-ar", case.config, {f"model.{key}": x for key, x in case.weights.items()})
    assert all(torch.equal(x, case.weights[key]) for key, x in again.state_dict().items())


def test_recorded_outputs_notice_mistakes() -> None:
    case = recorded("cosmos-ar-12b-style")
    for wrong in ({"apply_yarn": False}, {"rope_theta": 10_000}, {"video_latent_shape": [4, 4, 3]}, {"norm_eps": 0.1}):
        _, rows = compare(case._replace(config={**case.config, **wrong}))
        assert not any(row.passed for row in rows if row.name.startswith("logits")), wrong


# ---------------------------------------------------------------------- files
@pytest.mark.parametrize("more", [{}, YARN, TEXT, YARN | TEXT])
@pytest.mark.parametrize("kind", ["model.pt", "model.safetensors", "model.safetensors.index.json"])
def test_every_kind_of_file_is_read(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    fields, weights = made(**more)
    model = read(folder(tmp_path / "published", weights, fields, kind))
    assert model.config == cosmos_ar.from_json(Published, fields).config(torch.float32)
    assert (model.config.past, model.config.begin) == (2, "training_type" in more)
    assert (model.config.yarn is not None) == ("apply_yarn" in more)
    assert model.spec.latent == LatentSpec((4, 5), 60, stride=8)
    state = model.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[key], x) for key, x in weights.items())
    whole = read(tmp_path / "published" / kind)
    assert whole.config == model.config


def test_cross_attention_in_every_kth_layer_goes_there_and_back(tmp_path: Path) -> None:
    fields, weights = made(**TEXT, n_layers=5, insert_cross_attn_every_k_layers=2)
    assert {int(key.split(".")[1]) for key in weights if ".cross_attention" in key} == {0, 2, 4}
    model = read(folder(tmp_path / "published", weights, fields))
    assert model.config.context_every == 2
    write(model, tmp_path / "back")
    again = read(tmp_path / "back")
    assert again.config == model.config
    assert all(torch.equal(x, weights[key]) for key, x in again.state_dict().items())
    with pytest.raises(CheckpointError, match="cross_attention"):
        build({**fields, "insert_cross_attn_every_k_layers": 3}, weights)
    with pytest.raises(HwmError, match="context_every=0"):
        build({**fields, "insert_cross_attn_every_k_layers": 0}, weights)


def test_a_model_goes_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields, weights = made(torch.bfloat16, **YARN, **TEXT)
    source = folder(tmp_path / "published", {k: x.bfloat16() for k, x in weights.items()}, fields)
    ours, back = tmp_path / "ours", tmp_path / "back"
    assert main(["convert", "cosmos-ar", str(source), "--out", str(ours)]) == 0
    loaded = load(ours)
    assert isinstance(loaded, CosmosAR)
    assert {x.dtype for x in loaded.state_dict().values()} == {torch.bfloat16}
    assert f"cosmos_ar, {sum(p.numel() for p in loaded.parameters()):,} parameters" in capsys.readouterr().out
    assert main(["convert", "cosmos-ar", str(ours), "--out", str(back), "--to", "published"]) == 0
    again = read(back)
    assert again.config == loaded.config == read(source).config
    assert again.spec == loaded.spec
    assert all(torch.equal(x, loaded.state_dict()[key]) for key, x in again.state_dict().items())


@pytest.mark.parametrize("name", sorted(SIZES))
def test_published_models_are_known_by_their_sizes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = SIZES[name]
    with torch.device("meta"):
        state = published.config(torch.bfloat16).build(published.spec()).state_dict()
    state = {key: x.bfloat16() for key, x in state.items()}
    state |= {"layers.0.attention._extra_state": torch.zeros(0)}
    (tmp_path / "model.pt").touch()
    monkeypatch.setattr(cosmos_ar, "read_weights", lambda path: {f"model.{key}": x for key, x in state.items()})
    model = read(tmp_path)
    assert model.config == published.config(torch.bfloat16)
    assert model.config.dtype == "bfloat16"
    assert model.spec.latent.grid == (40, 64)
    assert model.spec.tokenizer == "cosmos-dv8x16x16"
    assert {x.dtype for x in model.state_dict().values()} == {torch.bfloat16}
    (tmp_path / "config.json").write_text('{"video_latent_shape": [3, 32, 32]}', encoding="utf-8")
    other = read(tmp_path)
    assert other.spec.latent.grid == (32, 32)
    assert other.config == replace(model.config, past=2, window_stride=1)


def test_mistakes_are_named(tmp_path: Path) -> None:
    fields, weights = made()
    for i, (change, fields_, message) in enumerate([
        ({"norm.weight": None}, fields, r"do not fit a 'cosmos_ar': norm.weight is missing"),
        ({"more": torch.zeros(1)}, fields, "more is not known"),
        ({}, {**fields, "dim": 28}, r"instead of \("),
        ({}, {**fields, "n_layers": 1}, "layers.1.attention.k_norm.weight is not known"),
        ({}, {**fields, "n_layer": 1}, "no field of Published called 'n_layer'; did you mean n_layers"),
        ({}, {**fields, "dim": "wide"}, "dim takes int"),
        ({}, {**fields, "fuse_qkv": True}, "fuse_qkv=True is not what published Cosmos models have"),
        ({}, {**fields, "apply_yarn": True, "yarn_scale": None}, "apply_yarn needs yarn_scale"),
        ({}, None, "a width of 24 and 2 layers: none of the published models"),
        ({"tok_embeddings.weight": None}, None, "no tok_embeddings.weight and 2 layers"),
        ({}, [], "is not an object of fields"),
    ]):  # fmt: skip
        changed: dict[str, Any] = {**weights, **change}
        source = folder(tmp_path / str(i), {k: x for k, x in changed.items() if x is not None}, fields_)
        with pytest.raises(CheckpointError, match=message):
            read(source)


@pytest.mark.parametrize("kind", ["model.pt", "model.safetensors", "model.safetensors.index.json"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_files_are_named(kind: str, share: float, tmp_path: Path) -> None:
    fields, weights = made()
    source = folder(tmp_path / "published", weights, fields, kind)
    file = source / kind if share or not kind.endswith(".json") else source / "model-00001.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=file.name):
        read(source)


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    fields, weights = made()
    index = "model.safetensors.index.json"
    source = folder(tmp_path / "published", weights, fields, index)
    where = json.loads((source / index).read_text(encoding="utf-8"))["weight_map"]
    (source / "model-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002\.safetensors"):
        read(source)
    for wrong, message in (
        ({**where, "norm.weight": "../norm.safetensors"}, "names '../norm.safetensors', which is not a file beside it"),
        ({"norm.bias": "model-00000.safetensors"}, "lacks norm.bias, which"),
        ([], "cannot read"),
    ):
        (source / index).write_text(json.dumps({"weight_map": wrong} if wrong else wrong), encoding="utf-8")
        with pytest.raises(CheckpointError, match=message):
            read(source)
    (source / index).unlink()
    with pytest.raises(CheckpointError, match=r"holds 2 files .* and no index of them"):
        read(source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds no weights"):
        read(tmp_path / "empty")


@pytest.mark.parametrize("changes", [{"actions": True}, {"factorized": True}, {"absolute": "float32"}])
def test_what_the_layout_has_no_place_for_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    spec = DataSpec(LatentSpec((4, 4), 60, levels=(3, 4, 5)), toy_spec().actions)
    model = replace(CosmosAR.tiny(), **{"actions": False, **changes}).build(spec)
    with pytest.raises(HwmError, match="can only be kept in ours"):
        write(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_weights_become_the_parameters_themselves() -> None:
    assert "cosmos-ar" in families()
    fields, weights = made()
    model = build(fields, weights)
    assert all(x.data_ptr() == weights[key].data_ptr() for key, x in model.state_dict().items())


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_large_weights_of_a_pytorch_file_are_mapped_and_not_copied(tmp_path: Path) -> None:
    """Those of safetensors files are read into memory, aligned; `test_cosmos_ar_memory` holds them to one copy."""
    fields, weights = made(torch.bfloat16, dim=512, ffn_hidden_size=4096, vocab_size=32_000)
    weights = {key: x.bfloat16() for key, x in weights.items()}
    size = sum(x.nbytes for x in weights.values())
    assert size > 80e6
    source = folder(tmp_path / "published", weights, fields, "model.pt")
    before = own_memory()
    model = read(source)
    assert own_memory() - before < 0.1 * size
    assert all(torch.equal(x, weights[key]) for key, x in model.state_dict().items())
    assert own_memory() - before < 0.1 * size, "reading them does not copy them either"
