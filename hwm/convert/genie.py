"""GENIE checkpoints as published on the Hugging Face hub, in and out: a folder of config.json and model.safetensors.

Names and layout: github.com/1x-technologies/1xgpt (Apache-2.0), `1x-technologies/GENIE_35M` and `GENIE_138M`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from hwm.config import from_json
from hwm.convert.weights import read_weights, with_weights
from hwm.data.files import write_atomically
from hwm.data.onex.specs import onex_v1
from hwm.models.genie import Genie
from hwm.train.checkpoint import CheckpointError, save_tensors
from hwm.types import DataSpec, HwmError, LatentSpec

DATA = onex_v1()  # which the published models are of: MAGVIT2 ids, two frames a second

# beginnings and middles of names: theirs, ours
RENAMED = (
    ("decoder.layers.", "blocks."),
    (".spatial_attn.", ".space."),
    (".temporal_attn.", ".time."),
    (".mlp.fc", ".fc"),
    ("out_x_proj.", "head."),
)
POSITION, MASK, TABLE = "pos_embed_TSC", "token_embed.mask_token_embed", "token_embed.factored_embeds.{}.weight"


@dataclass(frozen=True, kw_only=True)
class Published:
    """The fields of a published config.json, and what those that may be absent stand for.

    Attributes:
        T, S: steps of a window, and tokens of a step (a square).
        factored_vocab_size: by default the root of `image_vocab_size`.
        num_prompt_frames: as `Genie.Config.prompt`.
        attn_drop: no effect in the released code; none here.
    """

    num_layers: int
    num_heads: int
    d_model: int
    T: int = 16
    S: int = 256
    image_vocab_size: int = 2**18
    use_mup: bool = False
    num_factored_vocabs: int = 1
    factored_vocab_size: int | None = None
    max_corrupt_rate: float = 0.2
    non_mlm_ratio: float = 0.5
    num_prompt_frames: int = 8
    qkv_bias: bool = False
    proj_bias: bool = True
    attn_drop: float = 0.0
    qk_norm: bool = True
    mlp_ratio: float = 4.0
    mlp_drop: float = 0.0
    mlp_bias: bool = True

    def config(self) -> Genie.Config:
        """The model's config; what the file does not say keeps its default."""
        return Genie.Config(
            dim=self.d_model, depth=self.num_layers, heads=self.num_heads, mlp_ratio=self.mlp_ratio,
            mlp_drop=self.mlp_drop, max_corrupt=self.max_corrupt_rate, non_mlm=self.non_mlm_ratio, past=self.T - 1,
            hop=max(1, self.T // 2), prompt=self.num_prompt_frames, mup=self.use_mup, qk_norm=self.qk_norm,
            qkv_bias=self.qkv_bias, proj_bias=self.proj_bias, mlp_bias=self.mlp_bias,
        )  # fmt: skip

    def spec(self) -> DataSpec:
        """What the model reads. It knows no robot: it takes no actions."""
        side, vocabs = math.isqrt(self.S), self.num_factored_vocabs
        if side * side != self.S:
            raise HwmError(f"S={self.S} tokens a step are not a square")
        if vocabs < 1:
            raise HwmError(f"num_factored_vocabs={vocabs} must be at least 1")
        size = self.factored_vocab_size or round(self.image_vocab_size ** (1 / vocabs))
        latent = LatentSpec((side, side), self.image_vocab_size, levels=(size,) * vocabs)
        return DataSpec(latent, {}, DATA.tokenizer if latent == DATA.latent else "", DATA.fps)

    @classmethod
    def of(cls, model: Genie) -> Published:
        """The fields of a model of ours.

        Raises:
            HwmError: the layout has no place for something of the model's: actions, or digits of several sizes.
        """
        c, latent = model.config, model.spec.latent
        if c.actions:
            raise HwmError("the published layout of GENIE has no actions: this model can only be kept in ours")
        if latent.grid[0] != latent.grid[1] or len(set(model.levels)) != 1:
            raise HwmError(
                f"the published layout of GENIE is for square grids and digits of one size, not for {latent.grid} and "
                f"{model.levels}: this model can only be kept in ours"
            )
        return cls(
            num_layers=c.depth, num_heads=c.heads, d_model=c.dim, T=c.past + c.horizon, S=latent.cells,
            image_vocab_size=model.vocab, use_mup=c.mup, num_factored_vocabs=len(model.levels),
            factored_vocab_size=model.levels[0], max_corrupt_rate=c.max_corrupt, non_mlm_ratio=c.non_mlm,
            num_prompt_frames=c.prompt, qkv_bias=c.qkv_bias, proj_bias=c.proj_bias, qk_norm=c.qk_norm,
            mlp_ratio=c.mlp_ratio, mlp_drop=c.mlp_drop, mlp_bias=c.mlp_bias,
        )  # fmt: skip


def read(source: Path) -> Genie:
    """The model of a published folder.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights are not of the config.
    """
    path = source / "config.json"
    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}, which a published GENIE folder has: {error}") from error
    try:
        published = from_json(Published, fields)
        config, spec = published.config(), published.spec()
        theirs = read_weights(source / "model.safetensors")
        model: Genie = with_weights(config, spec, to_ours(theirs, len(spec.latent.levels)), source)
    except CheckpointError:
        raise
    except HwmError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return model


def write(model: Genie, folder: Path) -> None:
    """Save a model as published ones are: config.json and model.safetensors.

    Raises:
        HwmError: the layout has no place for something of the model's.
    """
    text = json.dumps(asdict(Published.of(model)), indent=2, sort_keys=True)
    weights = to_theirs(model.state_dict(), model.levels)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "model.safetensors", weights)
    write_atomically(folder / "config.json", text.encode())


def to_ours(theirs: Mapping[str, Tensor], vocabs: int) -> dict[str, Tensor]:
    """Published names and shapes -> ours: one table for all digits, and no axes of length one.

    What is missing stays missing, and unknown names stay as they are, for `with_weights` to find.
    """
    ours = {}
    for name, tensor in theirs.items():
        for old, new in RENAMED:
            name = name.replace(old, new)
        ours[name] = tensor
    for old, new in ((POSITION, "position"), (MASK, "embed.mask_vector")):
        if old in ours:
            ours[new] = ours.pop(old).squeeze(0)
    tables = [TABLE.format(i) for i in range(vocabs)]
    if all(name in ours and ours[name].ndim == 2 for name in tables):
        ours["embed.table.weight"] = torch.cat([ours.pop(name) for name in tables])
    return ours


def to_theirs(ours: Mapping[str, Tensor], levels: tuple[int, ...]) -> dict[str, Tensor]:
    """The inverse of `to_ours`."""
    theirs = {}
    for name, tensor in ours.items():
        for old, new in RENAMED:
            name = name.replace(new, old)
        theirs[name] = tensor
    theirs[POSITION] = theirs.pop("position")[None]
    theirs[MASK] = theirs.pop("embed.mask_vector")[None]
    for i, table in enumerate(theirs.pop("embed.table.weight").split(levels)):
        theirs[TABLE.format(i)] = table
    return theirs
