"""MAGVIT2 weights as published by 1X, in and out: `magvit2.ckpt` of the data set `1x-technologies/worldmodel`.

The file is a training checkpoint: the network, a moving average of it under other names, a discriminator, a perceptual
loss and optimizer states. The moving average is what the published tokens were decoded with, and all that is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from hwm.convert.weights import read_weights, with_weights
from hwm.tokenizers.magvit2 import MAGVIT2
from hwm.train.checkpoint import CheckpointError, save_tensors
from hwm.types import DataSpec, LatentSpec

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
    spec = DataSpec(LatentSpec(size, channels=3), {}, f"pixels-{size[0]}x{size[1]}")
    module: MAGVIT2 = with_weights(config_of(weights, path), spec, weights, path)
    return module


def write(module: MAGVIT2, folder: Path) -> None:
    """Save the weights under their published names as `magvit2.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / FILE, module.state_dict())


def averaged(weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
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
