"""GENIE folders as published: read, written, and read again; and what is said of folders that are not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hwm.convert.genie import Published, read, to_ours, to_theirs, write
from hwm.data.onex.specs import onex_v1
from hwm.errors import CheckpointError, HwmError
from hwm.models.genie import Genie
from hwm.types import Batch, DataSpec, LatentSpec
from tests.models.toys import toy_spec

SPEC = DataSpec(LatentSpec((3, 3), 64, levels=(8, 8)), {})
CONFIG = Genie.Config(dim=32, depth=2, heads=2, past=3, window_stride=2, prompt=2)


def build(config: Genie.Config = CONFIG, spec: DataSpec = SPEC) -> Genie:
    torch.manual_seed(0)
    model = config.build(spec).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(build(), tmp_path / "published")
    return tmp_path / "published"


def change(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **fields}), encoding="utf-8")


@pytest.mark.parametrize("dim", [256, 512])
def test_the_layout_is_the_published_one(dim: int) -> None:
    with torch.device("meta"):
        model = Genie.Config(dim=dim).build(onex_v1())
    layer = {
        **{f"norm{i}.{part}": (dim,) for i in (1, 2) for part in ("weight", "bias")},
        **{f"{attn}.qkv.weight": (3 * dim, dim) for attn in ("spatial_attn", "temporal_attn")},
        **{f"{attn}.proj.weight": (dim, dim) for attn in ("spatial_attn", "temporal_attn")},
        **{f"{attn}.proj.bias": (dim,) for attn in ("spatial_attn", "temporal_attn")},
        "mlp.fc1.weight": (4 * dim, dim), "mlp.fc1.bias": (4 * dim,),
        "mlp.fc2.weight": (dim, 4 * dim), "mlp.fc2.bias": (dim,),
    }  # fmt: skip
    expected = {
        "pos_embed_TSC": (1, 16, 256, dim),
        "token_embed.mask_token_embed": (1, dim),
        "token_embed.factored_embeds.0.weight": (512, dim),
        "token_embed.factored_embeds.1.weight": (512, dim),
        **{f"decoder.layers.{i}.{name}": shape for i in range(32) for name, shape in layer.items()},
        "out_x_proj.weight": (1024, dim),
        "out_x_proj.bias": (1024,),
    }
    theirs = to_theirs(model.state_dict(), model.levels)
    assert {k: tuple(v.shape) for k, v in theirs.items()} == expected


def test_the_config_file_is_as_long_as_the_published_one(tmp_path: Path) -> None:
    """The published config.json of GENIE_35M and of GENIE_138M have 406 bytes."""
    spec = replace(onex_v1(), actions={})
    for dim in (256, 512):
        write(Genie.Config(dim=dim, depth=0).build(spec), tmp_path / str(dim))
        text = (
            (tmp_path / str(dim) / "config.json")
            .read_text(encoding="utf-8")
            .replace('"num_layers": 0', '"num_layers": 32')
        )
        assert len(text) == 406
        model = Published(**json.loads(text))
        assert (model.config(), model.spec()) == (Genie.Config(dim=dim), spec)


@given(
    st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from([(8, 8), (64,), (4, 4, 4)]), st.sampled_from([2.0, 4.0]),
)  # fmt: skip
def test_there_and_back(
    mup: bool, qk_norm: bool, qkv_bias: bool, proj_bias: bool, mlp_bias: bool, levels: tuple[int, ...], ratio: float
) -> None:
    config = replace(
        CONFIG, mup=mup, qk_norm=qk_norm, qkv_bias=qkv_bias, proj_bias=proj_bias, mlp_bias=mlp_bias, mlp_ratio=ratio
    )
    model = build(config, replace(SPEC, latent=LatentSpec((3, 3), 64, levels=levels)))
    published = Published.of(model)
    assert published.config() == config
    assert published.spec().latent == model.spec.latent
    back = to_ours(to_theirs(model.state_dict(), model.levels), len(levels))
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[k], v) for k, v in model.state_dict().items())


def test_a_folder_gives_the_same_predictions(folder: Path, tmp_path: Path) -> None:
    model, again = build(), read(folder)
    assert not again.training
    assert again.config == model.config
    batch = Batch(torch.randint(64, (2, 2, 3, 3)), torch.zeros(2, 4, 1, 1), "anybody")
    one, two = (m.rollout(batch, logits=True, generator=torch.Generator().manual_seed(0)) for m in (model, again))
    assert torch.equal(one.latents, two.latents)
    torch.testing.assert_close(one.logits, two.logits)
    write(again, tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == ["config.json", "model.safetensors"]
    first, second = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(v, second[k]) for k, v in first.items())


def test_fields_that_are_absent_have_their_published_defaults(folder: Path) -> None:
    fields = {"num_layers": 1, "num_heads": 8, "d_model": 256}
    made = Published(**fields)  # type: ignore[arg-type]
    assert made.config() == Genie.Config(depth=1, mup=False, qk_norm=True)
    assert made.spec().latent == LatentSpec((16, 16), 2**18, levels=(2**18,))
    assert Published(**fields, num_factored_vocabs=3, image_vocab_size=64_000).spec().latent.levels == (40, 40, 40)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": 64}, r"instead of"),
        ({"num_layers": 3}, r"blocks.2.fc1.bias is missing"),
        ({"num_layers": 1}, r"blocks.1.fc1.bias is not known"),
        ({"qk_norm": True}, r"space.norm.bias is missing"),
        ({"T": 5}, r"position is \(4, 9, 32\) instead of \(5, 9, 32\)"),
        ({"T": 1}, r"window_stride=1 must be between"),
        ({"S": 10}, r"S=10 tokens a step are not a square"),
        ({"num_factored_vocabs": 0}, r"num_factored_vocabs=0"),
        ({"num_factored_vocabs": 1, "factored_vocab_size": None}, r"token_embed.factored_embeds.1.weight is not known"),
        ({"factored_vocab_size": 9}, r"levels \(9, 9\) multiply to 81"),
        ({"num_heads": 5}, r"does not split into 5 heads"),
        ({"num_heads": "2"}, r"num_heads takes int"),
        ({"n_head": 2}, r"no field of Published called 'n_head'; did you mean num_heads"),
    ],
)
def test_configs_that_the_weights_are_not_of_are_refused(folder: Path, fields: dict[str, Any], message: str) -> None:
    change(folder, **fields)
    with pytest.raises(CheckpointError, match=message) as caught:
        read(folder)
    assert str(folder) in str(caught.value)


def test_weights_that_are_not_of_the_config_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    good = load_file(path)
    for name, value, message in (
        ("out_x_proj.bias", None, "head.bias is missing"),
        ("token_embed.factored_embeds.1.weight", None, "embed.table.weight is missing"),
        ("pos_embed_TSC", good["pos_embed_TSC"][:, :2].clone(), r"position is \(2, 9, 32\)"),
        ("action_embed.weight", torch.ones(2), "action_embed.weight is not known"),
    ):
        changed = {k: v.clone() for k, v in good.items() if k != name}
        save_file(changed if value is None else {**changed, name: value}, path)
        with pytest.raises(CheckpointError, match=message):
            read(folder)


def test_folders_that_are_not_whole_are_refused(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"cannot read the weights .*model.safetensors"):
        read(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read the weights .*model.safetensors"):
        read(folder)
    for text in ("{", "[1]", ""):
        (folder / "config.json").write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"config.json"):
            read(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config.json, which a published GENIE folder has"):
        read(folder)


def test_what_the_layout_has_no_place_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HwmError, match="has no actions"):
        write(build(replace(CONFIG, actions=True), toy_spec()), tmp_path)
    with pytest.raises(HwmError, match=r"digits of one size, not for \(4, 4\) and \(3, 4, 5\)"):
        write(build(CONFIG, toy_spec()), tmp_path)
    with pytest.raises(HwmError, match="square grids"):
        write(build(CONFIG, DataSpec(LatentSpec((2, 3), 64, levels=(8, 8)), {})), tmp_path)
    assert not list(tmp_path.iterdir())
