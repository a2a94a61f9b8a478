"""HMA folders as published: read, written, and read again; what is said of those that are not; recorded outputs."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hwm import load
from hwm.cli import main
from hwm.config import from_json
from hwm.convert.cases import compare
from hwm.convert.family import find_family, from_reference
from hwm.convert.hma import PublishedContinuous, PublishedDiscrete
from hwm.errors import CheckpointError, HwmError
from hwm.types import ActionSpec, DataSpec
from tests.models.test_hma import shaken
from tests.models.toys import toy_batch
from tests.parity import recorded

CASES = {"hma-discrete": ("shipped", "shipped-mup", "mlp"), "hma-continuous": ("shipped", "mup-width256")}
NAMES = [f"{family}-{case}" for family, cases in CASES.items() for case in cases]
COMMON: dict[str, Any] = dict(
    num_layers=2, num_heads=2, d_model=16, T=3, S=16, action_network="concat+modulate", action_token_size=2,
    action_domains=["arm", "hand"], d_actions=[6, 2], num_prompt_frames=2,
    action_stats=[[[0.5, 0.0, -1.0], [1.0, 2.0, 0.5]], [[0.0, 0.25], [1.0, 3.0]]],
)  # fmt: skip
FIELDS: dict[str, dict[str, Any]] = {
    "hma-discrete": {**COMMON, "image_vocab_size": 64, "num_factored_vocabs": 2, "qk_norm": False},
    "hma-continuous": {
        **COMMON,
        "patch_size": 2,
        "vae_embed_dim": 3,
        "diffloss_d": 2,
        "diffloss_w": 12,
        "num_sampling_steps": "3",
        "maskgit_steps": 2,
        "qk_norm": False,
        "qkv_bias": True,
        "mlp_bias": False,
    },
}
KINDS: dict[str, Any] = {"hma-discrete": PublishedDiscrete, "hma-continuous": PublishedContinuous}
FAMILIES = sorted(KINDS)


def make(family: str, **more: Any) -> Any:
    """A model of fields of a published config, with random weights."""
    published = from_json(KINDS[family], {**FIELDS[family], **more})
    torch.manual_seed(0)
    return shaken(published.config().build(published.spec()))


def written(family: str, path: Path, **more: Any) -> Path:
    write = find_family(family).write
    assert write is not None
    write(make(family, **more), path)
    return path


def read(family: str, path: Path) -> Any:
    found = find_family(family).read
    assert found is not None
    return found(path)


def change(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **fields}), encoding="utf-8")


# ---------------------------------------------------------------------- recorded of the public code
@pytest.mark.parametrize("name", NAMES)
def test_every_recorded_output_is_ours(name: str) -> None:
    case = recorded(name)
    model, rows = compare(case)
    assert len(rows) >= 9
    assert not [row for row in rows if not row.passed]
    assert model.config.following_actions
    assert set(model.spec.actions) == set(case.config["action_domains"])


@pytest.mark.parametrize("name", [name for name in NAMES if "shipped" in name])
@pytest.mark.parametrize("part", ["action_projectors", "action_mlp", "pos_embed_TSC", "temporal_attn", "mlp.fc1"])
def test_a_weight_that_is_a_little_off_is_noticed(name: str, part: str) -> None:
    case = recorded(name)
    key = next(k for k, v in case.weights.items() if part in k and v.ndim > 1)
    case.weights[key].mul_(1.01)
    assert not all(row.passed for row in compare(case)[1])


def test_another_alignment_of_actions_or_another_stride_is_noticed() -> None:
    for name in ("hma-discrete-shipped-mup", "hma-continuous-shipped"):
        case = recorded(name)
        family = find_family(case.family)
        model = family.build(case.config, case.weights)
        object.__setattr__(model.trunk.config, "following_actions", False)
        robot = case.config["action_domains"][0]
        key = next(k for k in case.out if k.startswith(("logits.", "z.")) and k.endswith(robot))
        with torch.no_grad():
            ours = family.outputs(model, case)[key]().flatten()[:: case.every[key]]
        off = (ours - case.out[key].flatten()).abs().max()
        assert off > 10 * case.tolerance[key]


# ---------------------------------------------------------------------- folders
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("network", ["concat+modulate", "mlp", "concat", "modulate"])
def test_there_and_back(family: str, network: str, tmp_path: Path) -> None:
    folder = written(family, tmp_path / "one", action_network=network)
    model, again = make(family, action_network=network), read(family, folder)
    assert not again.training
    assert (again.config, again.spec) == (model.config, model.spec)
    batch = toy_batch(model.spec, 4).window(0, 2, 4)
    pair = [m.rollout(batch, generator=torch.Generator().manual_seed(0)).latents for m in (model, again)]
    assert torch.equal(*pair)
    find_family(family).write(again, tmp_path / "two")  # type: ignore[misc]
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "two" / name).read_bytes() == (folder / name).read_bytes()
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert fields["action_network"] == network
    assert fields.keys() == asdict(from_json(KINDS[family], fields)).keys()


def test_the_weights_have_the_published_names_and_shapes(tmp_path: Path) -> None:
    found = {
        k: tuple(v.shape) for k, v in load_file(written("hma-discrete", tmp_path / "d") / "model.safetensors").items()
    }
    C, T, S, K = 16, 3, 16, 2
    attention = {"qkv.weight": (3 * C, C), "proj.weight": (C, C), "proj.bias": (C,)}
    told = {
        "linear_out.weight": (C, C), "linear_out.bias": (C,), "adaLN_modulation.0.weight": (C, C),
        "adaLN_modulation.0.bias": (C,), "adaLN_modulation.2.weight": (2 * C, C), "adaLN_modulation.2.bias": (2 * C,),
    }  # fmt: skip
    layer = {
        **{f"norm{i}.{part}": (C,) for i in (1, 2) for part in ("weight", "bias")},
        **{f"{axis}_attn.{k}": v for axis in ("spatial", "temporal") for k, v in attention.items()},
        "mlp.fc1.weight": (4 * C, C), "mlp.fc1.bias": (4 * C,), "mlp.fc2.weight": (C, 4 * C), "mlp.fc2.bias": (C,),
        **{f"action_projectors.{robot}.{k}": v for robot in ("arm", "hand") for k, v in told.items()},
    }  # fmt: skip
    wanted = {
        "pos_embed_TSC": (1, T, S + K, C), "action_mask_tokens": (1, T, 1, C),
        "token_embed.mask_token_embed": (1, C), "out_x_proj.weight": (16, C), "out_x_proj.bias": (16,),
        **{f"token_embed.factored_embeds.{i}.weight": (8, C) for i in (0, 1)},
        **{f"decoder.layers.{i}.{k}": v for i in (0, 1) for k, v in layer.items()},
    }  # fmt: skip
    for robot, width, dim in (("arm", 6, 3), ("hand", 2, 2)):
        wanted |= {
            f"action_preprocessor.{robot}.mean": (dim,), f"action_preprocessor.{robot}.std": (dim,),
            f"action_mlp.{robot}.model.0.weight": (C, width), f"action_mlp.{robot}.model.0.bias": (C,),
            f"action_mlp.{robot}.model.1.weight": (C,), f"action_mlp.{robot}.model.1.bias": (C,),
            f"action_mlp.{robot}.model.3.weight": (C, C), f"action_mlp.{robot}.model.3.bias": (C,),
            f"action_out_projectors.{robot}.weight": (width, C), f"action_out_projectors.{robot}.bias": (width,),
        }  # fmt: skip
    assert found == wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_the_command_line(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(family, tmp_path / "published")
    assert main(["convert", family, str(folder), "--out", str(tmp_path / "ours")]) == 0
    assert load(tmp_path / "ours").name == family.replace("-", "_")
    assert main(["convert", family, str(tmp_path / "ours"), "--to", "published", "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "config.json").read_bytes() == (folder / "config.json").read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_among_the_weights_have_the_last_word(family: str, tmp_path: Path) -> None:
    folder = written(family, tmp_path / "published")
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["action_preprocessor.arm.mean"] += 1.0
    save_file(weights, path)
    assert read(family, folder).spec.actions["arm"].mean == (1.5, 1.0, 0.0)
    del weights["action_preprocessor.arm.mean"]
    save_file(weights, path)
    with pytest.raises(CheckpointError, match="holds no statistics of the actions of 'arm'"):
        read(family, folder)


# ---------------------------------------------------------------------- mistakes
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layers": 3}, r"blocks.2.fc1.(bias|weight) is missing"),
        ({"num_layers": 1}, r"blocks.1.fc1.(bias|weight) is not known"),
        ({"qk_norm": True}, r"space.norm.bias is missing"),
        ({"T": 4}, r"instead of \(4, "),
        ({"T": 1}, r"window_stride=1 must be between"),
        ({"S": 10}, r"S=10 cells a step are not a square"),
        ({"num_heads": "2"}, r"num_heads takes int"),
        ({"n_head": 2}, r"no field of Published\w+ called 'n_head'; did you mean num_heads"),
        ({"action_network": "concat+cross_attention"}, "mixes samples and steps"),
        ({"action_network": "tokens"}, "names none of concat, mlp"),
        ({"jointly_predict_actions": True}, "predicts actions"),
        ({"action_domains": ["arm"]}, "must have one entry a robot"),
        ({"action_domains": None}, "must have one entry a robot"),
        ({"d_actions": [7, 2]}, "'arm' has actions of 7 numbers a step, 3 means"),
    ],
)
def test_configs_that_the_weights_are_not_of_are_refused(
    family: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = written(family, tmp_path / "published")
    change(folder, **fields)
    with pytest.raises(CheckpointError, match=message):
        read(family, folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_folders_that_are_not_whole_are_refused(family: str, tmp_path: Path) -> None:
    folder = written(family, tmp_path / "published")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"cannot read the weights .*model.safetensors"):
        read(family, folder)
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config.json, which a published HMA folder has"):
        read(family, folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_layout_has_no_place_for_is_refused(family: str, tmp_path: Path) -> None:
    model = make(family)
    write = find_family(family).write
    assert write is not None
    for changes, message in (
        ({"following_actions": False}, "actions that lead to their step"),
        ({"action_heads": False}, "without the weights for predicting actions"),
        ({"clamp_actions": True}, "clamped actions"),
        ({"horizon": 2}, "several frames predicted at once"),
        ({"action_network": ("cross_attend",)}, "action_network"),
        ({"action_network": ("add", "modulate")}, "action_network"),
    ):
        with pytest.raises(HwmError, match=message):
            write(replace(model.config, **changes).build(model.spec), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_continuous_layout_and_its_mistakes(tmp_path: Path) -> None:
    folder = written("hma-continuous", tmp_path / "published")
    found = {k: tuple(v.shape) for k, v in load_file(folder / "model.safetensors").items()}
    assert found["pos_embed_TSC"] == (1, 3, 16 + 2, 16), "a row for every latent cell"
    assert found["diffusion_pos_embed_learned"] == (1, 3 * 4, 16)
    assert found["mask_token"] == (1, 1, 3)
    assert found["token_embed.weight"] == (16, 12)
    assert found["diffloss.net.final_layer.linear.weight"] == (24, 12)
    assert found["diffloss.net.res_blocks.1.adaLN_modulation.1.weight"] == (36, 12)
    assert found["action_diff_losses.arm.net.input_proj.weight"] == (12, 6)
    assert {k.split(".")[0] for k in found} == {
        "pos_embed_TSC", "diffusion_pos_embed_learned", "mask_token", "token_embed", "decoder", "out_x_proj",
        "decoder_norm", "z_proj_ln", "diffloss", "action_diff_losses", "action_mask_tokens", "action_mlp",
        "action_preprocessor",
    }  # fmt: skip
    for fields, message in (
        ({"patch_size": 3}, "does not split into patches"),
        ({"num_sampling_steps": "ddim"}, "must be a number"),
        ({"diffloss_d": 1}, r"action_heads.arm.net.res_blocks.1.\S+ is not known"),
    ):
        kept = (folder / "config.json").read_text(encoding="utf-8")
        change(folder, **fields)
        with pytest.raises(CheckpointError, match=message):
            read("hma-continuous", folder)
        (folder / "config.json").write_text(kept, encoding="utf-8")
    model, write = make("hma-continuous"), find_family("hma-continuous").write
    assert write is not None
    known = model.config.build(replace(model.spec, latent_mean=(0.0,) * 3, latent_std=(1.0,) * 3))
    with pytest.raises(HwmError, match="no statistics of latents"):
        write(known, tmp_path / "x")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_a_state_dict(family: str, tmp_path: Path) -> None:
    read = load_file(written(family, tmp_path / "published") / "model.safetensors")
    weights = {name: tensor.clone() for name, tensor in read.items()}  # of a file they need not be aligned
    model = from_reference(family, FIELDS[family], weights)
    assert isinstance(model.spec, DataSpec)
    assert model.spec.actions["arm"] == ActionSpec(
        2, ("action_0", "action_1", "action_2"), (0.5, 0.0, -1.0), (1.0, 2.0, 0.5)
    )
    key = "decoder.layers.0.mlp.fc1.weight"
    assert model.trunk.blocks[0].fc1.weight.data_ptr() == weights[key].data_ptr(), "no second copy of the weights"
