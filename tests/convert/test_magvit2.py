"""MAGVIT2 checkpoints as published: which of their weights are read, and what is said of other files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hwm.convert.magvit2 import FILE, read, write
from hwm.errors import CheckpointError
from hwm.tokenizers.magvit2 import MAGVIT2
from hwm.types import DataSpec, LatentSpec

SIZE = (16, 32)


def build(seed: int, **changes: Any) -> MAGVIT2:
    torch.manual_seed(seed)
    config = MAGVIT2.Config(**{"base": 32, "multipliers": (1, 2, 2), "blocks": 2, **changes})
    return config.build(DataSpec(LatentSpec(SIZE, channels=3), {})).eval()


def published(model: MAGVIT2, average: MAGVIT2 | None = None) -> dict[str, Any]:
    """A training checkpoint as published: network, average, discriminator, optimizer."""
    tensors: dict[str, Tensor] = dict(model.state_dict())
    tensors["loss.discriminator.main.0.weight"] = torch.ones(4)
    if average:
        tensors |= {"model_ema." + k.replace(".", ""): v for k, v in average.state_dict().items()}
        tensors |= {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(7)}
        tensors["model_ema.lossdiscriminatormain0weight"] = torch.ones(4)
    return {"state_dict": tensors, "optimizer_states": [{"state": {0: {"step": 3}}}], "epoch": 1}


def equal(a: MAGVIT2, b: MAGVIT2) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_names_without_dots_are_unambiguous() -> None:
    names = build(0).state_dict().keys()
    assert len({n.replace(".", "") for n in names}) == len(names)
    assert "decoder.conv_in.weight" in names  # model_ema.decoderconv_inweight


def test_the_moving_average_is_read_where_there_is_one(tmp_path: Path) -> None:
    model, average = build(0), build(1)
    assert not equal(model, average)
    torch.save(published(model, average), tmp_path / "magvit2.ckpt")
    found = read(tmp_path / "magvit2.ckpt", SIZE)
    assert equal(found, average)
    assert found.config == average.config
    assert not found.training
    torch.save(published(model), tmp_path / "plain.ckpt")
    assert equal(read(tmp_path / "plain.ckpt", SIZE), model)
    save_file(published(model, average)["state_dict"], tmp_path / "same.safetensors")
    assert equal(read(tmp_path / "same.safetensors", SIZE), average)


@pytest.mark.parametrize(
    "changes", [{"bits": 10}, {"blocks": 1}, {"multipliers": (1, 1)}, {"multipliers": (2, 1)}, {"base": 64}]
)
def test_sizes_are_read_off_the_weights(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = build(0, **changes)
    write(model, tmp_path)
    found = read(tmp_path, SIZE)  # a folder that `write` made
    assert found.config == model.config
    assert equal(found, model)
    assert (tmp_path / FILE).exists()
    video = torch.rand(1, 2, 3, *SIZE)
    assert torch.equal(found.encode(video), model.encode(video))


def test_the_first_convolution_has_the_base_width_whatever_the_first_level_has() -> None:
    shapes = {k: tuple(v.shape) for k, v in build(0, multipliers=(2, 1)).state_dict().items()}
    assert shapes["encoder.conv_in.weight"] == (32, 3, 3, 3)
    assert shapes["encoder.down.0.block.0.conv1.weight"] == (64, 32, 3, 3)
    assert shapes["encoder.conv_out.weight"] == (18, 32, 1, 1)
    assert shapes["decoder.conv_in.weight"] == (32, 18, 3, 3)
    assert shapes["decoder.conv_out.weight"] == (3, 64, 3, 3)


def test_pictures_are_of_the_published_size_by_default(tmp_path: Path) -> None:
    write(build(0, multipliers=(1, 1, 1, 1, 1)), tmp_path)
    found = read(tmp_path)
    assert found.size == (256, 256)
    assert found.latent == LatentSpec((16, 16), 2**18, levels=(512, 512))


def test_files_that_are_not_whole_or_not_of_magvit2_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "magvit2.ckpt"

    def fails(whole: dict[str, Any], message: str) -> None:
        torch.save(whole, path)
        with pytest.raises(CheckpointError, match=message):
            read(path, SIZE)

    model, average = build(0), build(1)
    whole = published(model, average)
    del whole["state_dict"]["model_ema.decoderconv_inweight"]
    fails(whole, "averages of some weights only; model_ema.decoderconv_inweight is missing")
    fails({"state_dict": {"classifier.weight": torch.ones(2)}}, "holds no MAGVIT2")
    bare = dict(model.state_dict())
    fails({k: v for k, v in bare.items() if k != "encoder.conv_in.weight"}, "encoder.conv_in.weight' is missing")
    fails({k: v for k, v in bare.items() if k.startswith("decoder.")}, "holds no whole MAGVIT2")
    fails({k: v for k, v in bare.items() if k != "decoder.norm_out.bias"}, "decoder.norm_out.bias is missing")
    fails({**bare, "decoder.conv_out.weight": torch.ones(3, 32, 1, 1)}, r"\(3, 32, 1, 1\) instead of \(3, 32, 3, 3\)")
    fails({**bare, "encoder.quant.weight": torch.ones(2)}, "encoder.quant.weight is not known")
    torch.save(whole, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"magvit2.ckpt is not a whole PyTorch file"):
        read(path)
