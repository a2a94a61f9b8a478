"""MAGVIT2 weights as published by 1X, in and out: `magvit2.ckpt` of the data set `1x-technologies/worldmodel`.

The file is a training checkpoint: the network, a moving average of it under other names, a discriminator, a perceptual
loss and optimizer states. The moving average is what the published tokens were decoded with, and all that is read.

Also what was recorded of the released code, computed by ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from hwm.config import from_json
from hwm.convert.family import Family, Outputs, register
from hwm.convert.public import Inner
from hwm.convert.recorded import Case
from hwm.convert.replay import unclamped
from hwm.encode.files import for_size
from hwm.errors import CheckpointError, HwmError
from hwm.tokenizers.magvit2 import MAGVIT2
from hwm.types import DataSpec, LatentSpec, join_digits, split_digits
from hwm.weights import read_weights, save_tensors, with_weights

FILE = "magvit2.safetensors"
PARTS = ("encoder.", "decoder.")
AVERAGE = "model_ema."


def read(source: Path, size: tuple[int, int] = (256, 256)) -> MAGVIT2:
    """The tokenizer that a published file holds: `magvit2.ckpt`, or a safetensors file of the same names.

    Widths, levels and blocks are read off the weights.

    Args:
        size: (height, width) of the pictures; the network takes any multiples of 16.

    Raises:
        CheckpointError: the file is damaged, or not of a MAGVIT2.
    """
    path = source / FILE if source.is_dir() else source
    weights = averaged(read_weights(path), path)
    return of_size(config_of(weights, path), weights, size, path)


def of_size(
    config: MAGVIT2.Config, weights: Mapping[str, Tensor], size: tuple[int, int], source: Path | str
) -> MAGVIT2:
    """The tokenizer of these weights, for pictures of (height, width)."""
    spec = DataSpec(LatentSpec(size, channels=3), {}, f"pixels-{size[0]}x{size[1]}")
    module: MAGVIT2 = with_weights(config, spec, weights, source)
    return module


@dataclass(frozen=True, kw_only=True)
class Published:
    """The fields of the released config that the network is made of.

    Attributes:
        resolution: height and width of pictures. The released config has no such field: its network takes any.
    """

    in_channels: int = 3
    out_channels: int = 3
    z_channels: int = 18
    base_channels: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    num_codebooks: int = 1
    resolution: int = 256

    def config(self) -> MAGVIT2.Config:
        if (self.in_channels, self.out_channels, self.num_codebooks) != (3, 3, 1):
            raise HwmError(f"only pictures of three channels and one codebook are known here, not {self}")
        return MAGVIT2.Config(
            bits=self.z_channels, base=self.base_channels, multipliers=self.ch_mult, blocks=self.num_res_blocks,
            factors=2 if self.z_channels % 2 == 0 else 1,
        )  # fmt: skip


def build(fields: Mapping[str, Any], weights: Mapping[str, Tensor]) -> MAGVIT2:
    """The tokenizer of a released config's fields and of its weights; fields that only concern training may be there.

    Raises:
        HwmError: a field is of another type, or a tensor is missing, unknown or of another shape.
    """
    published = from_json(Published, {k: v for k, v in fields.items() if k in Published.__dataclass_fields__})
    source = "the state dict"
    size = (published.resolution, published.resolution)
    return of_size(published.config(), averaged(weights, source), size, source)


def write(module: MAGVIT2, folder: Path) -> None:
    """Save the weights under their published names as `magvit2.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / FILE, module.state_dict())


def averaged(weights: Mapping[str, Tensor], path: Path | str) -> dict[str, Tensor]:
    """Encoder and decoder out of a checkpoint; their moving average, where there is one.

    The average's names are those of the weights without their dots: `model_ema.encoderconv_inweight`.
    """
    own = {name: tensor for name, tensor in weights.items() if name.startswith(PARTS)}
    if not own:
        raise CheckpointError(f"{path} holds no MAGVIT2: it has no weights named encoder.* and decoder.*")
    if not any(name.startswith(AVERAGE) for name in weights):
        return own
    names = {name: AVERAGE + name.replace(".", "") for name in own}
    missing = sorted(set(names.values()) - weights.keys())
    if missing:
        raise CheckpointError(f"{path} has averages of some weights only; {', '.join(missing[:3])} is missing")
    return {name: weights[average] for name, average in names.items()}


def config_of(weights: Mapping[str, Tensor], path: Path) -> MAGVIT2.Config:
    """The config that the weights are of."""
    try:
        base = weights["encoder.conv_in.weight"].shape[0]
        bits = weights["encoder.conv_out.weight"].shape[0]
        levels = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.down."))
        blocks = 1 + max(int(name.split(".")[4]) for name in weights if name.startswith("encoder.down.0.block."))
        widths = [weights[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)]
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path} holds no whole MAGVIT2: {error} is missing") from error
    return MAGVIT2.Config(bits=bits, base=base, multipliers=tuple(w // base for w in widths), blocks=blocks)


def outputs(model: MAGVIT2, case: Case) -> Outputs:
    """Latents, ids in both orders of bits, signs and reconstruction of pictures of any size, (B, 3, H, W) in [-1, 1].

    What comes after the signs is computed from our own: that they are the recorded ones is another output.
    """

    @cache
    def sized() -> MAGVIT2:
        height, width = case.given["image"].shape[-2:]
        return cast(MAGVIT2, for_size(model, (height, width)))

    def latent() -> Tensor:
        found: Tensor = model.encoder(case.given["image"])
        return found

    def ids() -> Tensor:
        return sized().encode((case.given["image"][:, None] + 1) / 2)[:, 0]

    def ids_reversed() -> Tensor:
        """The released `encode` reads the same signs from the other end."""
        bits = (2,) * model.config.bits
        return join_digits(split_digits(ids(), bits).flip(-1), bits)

    def code() -> Tensor:
        return model.codes(ids())

    def shown() -> Tensor:
        found = ids()
        return unclamped(sized().decode(found[:, None])[:, 0], model.decoder(model.codes(found)))

    return {
        "latent": Inner("the encoder, before its signs are taken", latent),
        "indices": ids,
        "indices_encode": ids_reversed,
        "code": code,
        "recon": Inner("beyond black and white the decoder", shown),
    }


register("magvit2", Family(build=build, outputs=outputs, read=read, write=write))
