"""GENIE checkpoints as published on the Hugging Face hub, in and out: a folder of config.json and model.safetensors.
And what was recorded of the released code, computed by ours.

Names and layout: github.com/1x-technologies/1xgpt (Apache-2.0), `1x-technologies/GENIE_35M` and `GENIE_138M`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hwm.config import from_json
from hwm.convert.family import Family, Outputs, register
from hwm.convert.folders import read_folder, write_folder
from hwm.convert.public import Inner
from hwm.convert.recorded import Case
from hwm.convert.replay import ReleasedSampler, training
from hwm.data.onex.specs import onex_v1
from hwm.errors import HwmError
from hwm.evaluate.scenarios import temporally_teacher_forced
from hwm.models.genie import Genie
from hwm.types import Batch, DataSpec, LatentSpec, Prediction
from hwm.weights import with_weights

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
            window_stride=max(1, self.T // 2), prompt=self.num_prompt_frames, mup=self.use_mup, qk_norm=self.qk_norm,
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
    model: Genie = read_folder(source, Published, assembled, "GENIE")
    return model


def build(fields: Mapping[str, Any], theirs: Mapping[str, Tensor]) -> Genie:
    """The model of a published config's fields and of published weights.

    Raises:
        HwmError: a field or a tensor is unknown, missing, or of another type or shape.
    """
    return assembled(from_json(Published, fields), theirs, "the state dict")


def assembled(published: Published, theirs: Mapping[str, Tensor], source: Path | str) -> Genie:
    config, spec = published.config(), published.spec()
    model: Genie = with_weights(config, spec, to_ours(theirs, len(spec.latent.levels)), source)
    return model


def write(model: Genie, folder: Path) -> None:
    """Save a model as published ones are: config.json and model.safetensors.

    Raises:
        HwmError: the layout has no place for something of the model's.
    """
    write_folder(folder, Published.of(model), to_theirs(model.state_dict(), model.levels))


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


class Recorded:
    """What was recorded of the released code, computed by a model of ours from the same inputs.

    Shape suffixes: B batch, T step, P prompt step, S cells, V logits.
    """

    def __init__(self, model: Genie, case: Case) -> None:
        self.model, self.given = model, case.given
        self.ids_BTS = self.by_step("tokens")
        batch, steps = self.ids_BTS.shape[:2]
        self.nothing = torch.zeros(batch, steps, 1, 1, device=self.ids_BTS.device)  # actions, at which nobody looks
        self.prompt = model.config.prompt

    def by_step(self, name: str) -> Tensor:
        """Recorded ids (B, T*S) as (B, T, S)."""
        return self.given[name].unflatten(1, (-1, self.model.spec.latent.cells))

    def batch(self, steps: int) -> Batch:
        """The first steps of the clip, and actions of all."""
        return Batch(self.model.latents(self.ids_BTS[:, :steps]), self.nothing, "nobody")

    def logits(self) -> Tensor:
        """Of a clip that is shown whole, the first step included: (B, V, T, H, W)."""
        window = self.model.observe(self.ids_BTS[:, :0], self.nothing, "nobody", self.ids_BTS.shape[1])
        states_BTSD = self.model.decoding_step(window, self.ids_BTS, torch.zeros_like(self.ids_BTS, dtype=torch.bool))
        logits_BTSV = self.model.head(states_BTSD)
        return self.model.latents(logits_BTSV.movedim(-1, 1).flatten(0, 1)).unflatten(0, (-1, logits_BTSV.shape[-1]))

    def training(self, which: int) -> Tensor:
        """Loss (0) or accuracy (1) of a clip that was corrupted and masked."""
        clip = Batch(self.model.latents(self.by_step("labels")), self.nothing, "nobody")
        return training(self.model, clip, self.by_step("masked_ids"))[which]

    def generated(self, steps: int, draws: str = "", use_cache: bool = True) -> Tensor:
        """A rollout from the prompt, by confidence or in the recorded order: (B, T - P, H, W)."""
        batch = self.batch(self.prompt)
        return self.model.rollout(batch, sampler=self.sampler(steps, draws), use_cache=use_cache).latents

    def sampler(self, steps: int, draws: str = "") -> ReleasedSampler:
        """Draws were recorded (..., B, H, W), in the order in which they were made."""
        if not draws:
            return ReleasedSampler(steps=steps, order="confidence")
        drawn = self.given[draws].flatten(0, -4).flatten(2)
        return ReleasedSampler(steps=steps, order="random", draws=iter(drawn))

    def teacher_forced(self, steps: int) -> tuple[Prediction, Tensor, Tensor]:
        """Each step from the true ones before it: the prediction, the truth, and cross-entropy by step."""
        batch = self.batch(self.ids_BTS.shape[1])
        sampler = self.sampler(steps, "eval_unmask_rand_K2" if steps > 1 else "")
        made = temporally_teacher_forced(self.model, batch, 1, sampler=sampler, logits=True)
        truth = batch.latents[:, 1:]
        loss_T = made.cross_entropy(truth)
        assert loss_T is not None  # it has logits
        return made, truth, loss_T

    def loss_by_step(self) -> Tensor:
        return self.teacher_forced(1)[2]

    def loss(self, steps: int) -> Tensor:
        return self.teacher_forced(steps)[2].mean()

    def samples(self, steps: int) -> Tensor:
        return self.teacher_forced(steps)[0].latents

    def accuracy(self, steps: int) -> Tensor:
        made, truth, _ = self.teacher_forced(steps)
        return (made.latents == truth).float().mean()


def outputs(model: Genie, case: Case) -> Outputs:
    """Logits of a clip; loss and accuracy of training; generation; the challenge's evaluation."""
    r = Recorded(model, case)
    return {
        "logits": Inner("logits of a clip shown whole", r.logits),
        "loss": partial(r.training, 0),
        "acc": partial(r.training, 1),
        **{f"maskgit_K{steps}": partial(r.generated, steps) for steps in (1, 2, 4)},
        "maskgit_random_K4": partial(r.generated, 4, "unmask_rand_K4"),
        "eval_ce_per_frame": r.loss_by_step,
        **{f"eval_ce_K{steps}": partial(r.loss, steps) for steps in (1, 2)},
        **{f"eval_acc_K{steps}": partial(r.accuracy, steps) for steps in (1, 2)},
        **{f"eval_samples_K{steps}": partial(r.samples, steps) for steps in (1, 2)},
    }


register("genie", Family(build=build, outputs=outputs, read=read, write=write))
