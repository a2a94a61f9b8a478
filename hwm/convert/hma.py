"""HMA checkpoints as published on the Hugging Face hub, in and out: folders of config.json and model.safetensors.

Names and layout: github.com/liruiw/HMA (Apache-2.0), `liruiw/hma-base-disc` and `liruiw/hma-base-cont`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hwm.config import from_json
from hwm.convert.family import Family, Outputs, register
from hwm.convert.folders import read_folder, write_folder
from hwm.convert.hma_replay import continuous_outputs, discrete_outputs
from hwm.convert.recorded import Case
from hwm.data.onex.specs import onex_v1
from hwm.errors import CheckpointError, HwmError
from hwm.models.hma_continuous import HMAContinuous, MARSampler
from hwm.models.hma_discrete import HMADiscrete
from hwm.nn.actions import module_key
from hwm.types import ActionSpec, DataSpec, LatentSpec
from hwm.weights import with_weights

FPS = 2.0  # what the published models were trained at, nearly: a whole number of frames is left out
MAGVIT2 = onex_v1()  # of which tokenizer the discrete models read ids

# parts of names, and beginnings of names: theirs, ours
PARTS = (
    (".spatial_attn.", ".space."),
    (".temporal_attn.", ".time."),
    (".mlp.fc", ".fc"),
    (".action_projectors.", ".told.0."),
    (".adaLN_modulation.", ".read."),
    (".linear_out.", ".out."),
    (".model.", ".mix."),
)
BEGINNINGS = (("decoder.layers.", "trunk.blocks."), ("action_mlp.", "trunk.stems."))
DISCRETE = (*BEGINNINGS, ("action_out_projectors.", "action_heads."), ("out_x_proj.", "head."))
CONTINUOUS = (
    *BEGINNINGS, ("action_diff_losses.", "action_heads."), ("out_x_proj.", "out."), ("decoder_norm.", "norm_out."),
    ("z_proj_ln.", "trunk.norm."), ("diffloss.net.", "head."), ("token_embed.", "embed."),
)  # fmt: skip
Names = tuple[tuple[str, str], ...]
MASK_CELL, POSITION_OUT = "mask_token", "diffusion_pos_embed_learned"
POSITION, ACTION_MASK, STATISTICS = "pos_embed_TSC", "action_mask_tokens", "action_preprocessor."
MASK, TABLE = "token_embed.mask_token_embed", "token_embed.factored_embeds.{}.weight"
# what `action_network` may contain, and what it means; of the last three it is the first that counts
CONCATENATE, LAYER_WAYS = "concat", {"mlp": "add", "cross_attention": "", "modulate": "modulate"}


@dataclass(frozen=True, kw_only=True)
class Published:
    """The fields of a published config.json, and what those that may be absent stand for.

    Attributes:
        T, S: steps of a window, and tokens of a step (a square).
        factored_vocab_size: by default the root of `image_vocab_size`.
        dataloader_mask_ratio_min: as `HMADiscrete.Config.least_kept`.
        num_prompt_frames: as `HMADiscrete.Config.prompt`.
        action_domains, d_actions, action_stats: of each robot its name, the numbers of a step's actions together, and
            mean and standard deviation of one action.
        action_network: see `LAYER_WAYS`.
        jointly_predict_actions, jointly_predict_states: what is predicted; no published model predicts actions.
        dataloader_apply_mask, dataloader_apply_corruption, drop_action_ratio, arch, random_dummy_action, init_actions,
            d_action, use_actions, shared_action_mlps, action_contrastive_loss, label_drop_prob, action_loss_weight,
            attn_drop: without effect on what a published model computes.
    """

    num_layers: int
    num_heads: int
    d_model: int
    T: int = 12
    S: int = 256
    image_vocab_size: int | None = 2**18
    use_mup: bool = False
    dataloader_apply_mask: bool = True
    dataloader_apply_corruption: bool = True
    dataloader_mask_ratio_min: float = 0.2
    drop_action_ratio: float = 0.0
    arch: str = "STTransformerDecoder"
    random_dummy_action: bool = True
    num_factored_vocabs: int = 1
    factored_vocab_size: int | None = None
    max_corrupt_rate: float = 0.2
    non_mlm_ratio: float = 0.2
    num_prompt_frames: int = 4
    init_actions: bool = False
    d_action: int = 28
    use_actions: bool = True
    action_domains: tuple[str, ...] | None = None
    d_actions: tuple[int, ...] | None = None
    action_stats: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] | None = None
    action_network: str = "mlp"
    shared_action_mlps: bool = True
    action_contrastive_loss: bool = False
    jointly_predict_actions: bool = False
    jointly_predict_states: bool = True
    action_token_size: int = 64
    label_drop_prob: float = 0.5
    action_loss_weight: float = 0.5
    qkv_bias: bool = False
    proj_bias: bool = True
    attn_drop: float = 0.0
    qk_norm: bool = True
    mlp_ratio: float = 4.0
    mlp_drop: float = 0.0
    mlp_bias: bool = True

    def ways(self) -> tuple[str, ...]:
        """`action_network` in our terms."""
        layer = next((way for part, way in LAYER_WAYS.items() if part in self.action_network), None)
        if layer == "":
            raise HwmError(
                f"action_network={self.action_network!r}: the released cross-attention mixes samples and steps, and is "
                "not computed here"
            )
        found = (*(["concatenate"] if CONCATENATE in self.action_network else []), *([layer] if layer else []))
        if not found:
            raise HwmError(f"action_network={self.action_network!r} names none of concat, {', '.join(LAYER_WAYS)}")
        return found

    def common(self) -> dict[str, Any]:
        """What the configs of both our models have; what the file does not say keeps its default."""
        if self.jointly_predict_actions or not self.jointly_predict_states:
            raise HwmError("jointly_predict_actions: a model that predicts actions is not made here")
        return dict(
            dim=self.d_model, depth=self.num_layers, heads=self.num_heads, mlp_ratio=self.mlp_ratio,
            mlp_drop=self.mlp_drop, non_mlm=self.non_mlm_ratio, past=self.T - 1, window_stride=max(1, self.T // 2),
            prompt=self.num_prompt_frames, mup=self.use_mup, qk_norm=self.qk_norm, qkv_bias=self.qkv_bias,
            proj_bias=self.proj_bias, mlp_bias=self.mlp_bias, action_network=self.ways(),
            action_tokens=self.action_token_size, clamp_actions=False, following_actions=True, action_heads=True,
        )  # fmt: skip

    def actions(self) -> dict[str, ActionSpec]:
        """The robots that the model knows. Nothing says what the numbers of their actions are called."""
        names, widths, statistics = self.action_domains, self.d_actions, self.action_stats
        if not names or not widths or not statistics or not len(names) == len(widths) == len(statistics):
            raise HwmError(
                "action_domains, d_actions and action_stats must have one entry a robot, and one robot at least"
            )
        found = {}
        for name, width, (mean, std) in zip(names, widths, statistics, strict=True):
            if not mean or len(mean) != len(std) or width % len(mean):
                raise HwmError(
                    f"{name!r} has actions of {width} numbers a step, {len(mean)} means and {len(std)} deviations"
                )
            found[name] = ActionSpec(width // len(mean), tuple(f"action_{i}" for i in range(len(mean))), mean, std)
        return found

    def side(self) -> int:
        """Rows and columns of a step."""
        side = math.isqrt(self.S)
        if side * side != self.S:
            raise HwmError(f"S={self.S} cells a step are not a square")
        return side

    @staticmethod
    def of(model: Any) -> dict[str, Any]:
        """The fields that are common to both kinds, of a model of ours.

        Raises:
            HwmError: the layout has no place for something of the model's.
        """
        c, latent, actions = model.config, model.spec.latent, model.spec.actions
        names = {ours: theirs for theirs, ours in LAYER_WAYS.items() if ours}
        layers = [way for way in c.action_network if way != "concatenate"]
        wrong = {
            "grids that are not square": latent.grid[0] != latent.grid[1],
            "several frames predicted at once": c.horizon != 1,
            "actions that lead to their step (following_actions=False)": not c.following_actions,
            "models without the weights for predicting actions (action_heads=False)": not c.action_heads,
            "clamped actions (clamp_actions=True)": c.clamp_actions,
            f"action_network={c.action_network}": len(layers) > 1 or not set(layers) <= names.keys(),
        }
        for what, is_so in wrong.items():
            if is_so:
                raise HwmError(f"the published layout of HMA has no {what}: this model can only be kept in ours")
        ways = [CONCATENATE] * ("concatenate" in c.action_network) + [names[way] for way in layers]
        return dict(
            num_layers=c.depth, num_heads=c.heads, d_model=c.dim, T=c.past + 1, use_mup=c.mup,
            non_mlm_ratio=c.non_mlm, num_prompt_frames=c.prompt, init_actions=True,
            action_domains=tuple(module_key(e) for e in actions),
            d_actions=tuple(a.per_step * a.dim for a in actions.values()),
            action_stats=tuple((a.mean, a.std) for a in actions.values()), action_network="+".join(ways),
            action_token_size=c.action_tokens, qkv_bias=c.qkv_bias, proj_bias=c.proj_bias, qk_norm=c.qk_norm,
            mlp_ratio=c.mlp_ratio, mlp_drop=c.mlp_drop, mlp_bias=c.mlp_bias,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PublishedDiscrete(Published):
    """Of a model of token ids."""

    def config(self) -> HMADiscrete.Config:
        return HMADiscrete.Config(
            **self.common(), max_corrupt=self.max_corrupt_rate, least_kept=self.dataloader_mask_ratio_min
        )

    def spec(self) -> DataSpec:
        side, vocabs, ids = self.side(), self.num_factored_vocabs, self.image_vocab_size
        if ids is None or vocabs < 1:
            raise HwmError(f"image_vocab_size={ids} and num_factored_vocabs={vocabs} must be numbers of at least 1")
        size = self.factored_vocab_size or round(ids ** (1 / vocabs))
        latent = LatentSpec((side, side), ids, levels=(size,) * vocabs)
        return DataSpec(latent, self.actions(), MAGVIT2.tokenizer if latent == MAGVIT2.latent else "", FPS)

    def weights(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Published names and shapes -> ours: one table for all digits, and no axes of length one."""
        ours = common_to_ours(theirs, DISCRETE)
        if MASK in ours:
            ours["embed.mask_vector"] = ours.pop(MASK).squeeze(0)
        tables = [TABLE.format(i) for i in range(self.num_factored_vocabs)]
        if all(name in ours and ours[name].ndim == 2 for name in tables):
            ours["embed.table.weight"] = torch.cat([ours.pop(name) for name in tables])
        return ours

    @classmethod
    def made_of(cls, model: HMADiscrete) -> tuple[PublishedDiscrete, dict[str, Tensor]]:
        """The inverse of all of these: the fields and the weights of a model of ours."""
        c, fields, latent = model.config, cls.of(model), model.spec.latent
        if len(set(model.levels)) != 1:
            raise HwmError(
                f"the published layout of HMA is for digits of one size, not for {model.levels}: this model can only "
                "be kept in ours"
            )
        theirs = common_to_theirs(model, DISCRETE)
        theirs[MASK] = theirs.pop("embed.mask_vector")[None]
        for i, table in enumerate(theirs.pop("embed.table.weight").split(model.levels)):
            theirs[TABLE.format(i)] = table
        published = cls(
            **fields, S=latent.cells, image_vocab_size=model.vocab, num_factored_vocabs=len(model.levels),
            factored_vocab_size=model.levels[0], max_corrupt_rate=c.max_corrupt, dataloader_mask_ratio_min=c.least_kept,
        )  # fmt: skip
        return published, theirs


def renamed(name: str, beginnings: Names, back: bool = False) -> str:
    """Their name as ours, or ours as theirs."""
    turn = -1 if back else 1
    for old, new in (pair[::turn] for pair in PARTS):
        name = name.replace(old, new)
    found = (new + name[len(old) :] for old, new in (pair[::turn] for pair in beginnings) if name.startswith(old))
    return next(found, name)


@dataclass(frozen=True, kw_only=True)
class PublishedContinuous(Published):
    """Of a model of continuous latents.

    Attributes:
        S: latent cells of a step (a square), `patch_size`^2 of them a token.
        num_sampling_steps: of the diffusion head; the number is written as text.
        maskgit_steps: decoding steps at a step.
        Diffusion, dim, vae_stride, mask_ratio_min, attn_dropout, proj_dropout, buffer_size, diffusion_batch_mul,
            grad_checkpointing, predict_unmask: without effect on what a published model computes.
    """

    image_vocab_size: int | None = None
    dataloader_apply_corruption: bool = False
    dataloader_mask_ratio_min: float = 0.1
    action_loss_weight: float = 1.0
    Diffusion: bool = True
    dim: int = 512
    vae_stride: int = 1
    patch_size: int = 1
    vae_embed_dim: int = 4
    mask_ratio_min: float = 0.7
    label_drop_prob: float = 0.5
    attn_dropout: float = 0.1
    proj_dropout: float = 0.1
    buffer_size: int = 64
    diffloss_d: int = 4
    diffloss_w: int = 1024
    num_sampling_steps: str = "100"
    diffusion_batch_mul: int = 1
    grad_checkpointing: bool = False
    predict_unmask: bool = False
    maskgit_steps: int = 16

    def config(self) -> HMAContinuous.Config:
        if not self.num_sampling_steps.isdigit():
            raise HwmError(f"num_sampling_steps={self.num_sampling_steps!r} must be a number")
        return HMAContinuous.Config(
            **self.common(), patch=self.patch_size, head_depth=self.diffloss_d, head_width=self.diffloss_w,
            published_positions=True,
            sampler=MARSampler(steps=self.maskgit_steps, diffusion_steps=int(self.num_sampling_steps)),
        )  # fmt: skip

    def spec(self) -> DataSpec:
        side = self.side()
        return DataSpec(LatentSpec((side, side), channels=self.vae_embed_dim), self.actions(), "", FPS)

    def weights(self, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Published names and shapes -> ours: no axes of length one, and steps apart from patches."""
        ours = common_to_ours(theirs, CONTINUOUS)
        if MASK_CELL in ours:
            ours["mask_cell"] = ours.pop(MASK_CELL).flatten()
        if POSITION_OUT in ours and ours[POSITION_OUT].shape[1] % self.T == 0:
            ours["position_out"] = ours.pop(POSITION_OUT).squeeze(0).unflatten(0, (self.T, -1))
        return ours

    @classmethod
    def made_of(cls, model: HMAContinuous) -> tuple[PublishedContinuous, dict[str, Tensor]]:
        """The inverse of all of these: the fields and the weights of a model of ours."""
        c, fields, latent = model.config, cls.of(model), model.spec.latent
        if not c.published_positions or model.spec.latent_std:
            raise HwmError(
                "the published layout of HMA has no positions of patches alone (published_positions=False) and no "
                "statistics of latents: this model can only be kept in ours"
            )
        theirs = common_to_theirs(model, CONTINUOUS)
        theirs[MASK_CELL] = theirs.pop("mask_cell")[None, None]
        theirs[POSITION_OUT] = theirs.pop("position_out").flatten(0, 1)[None]
        published = cls(
            **fields, S=latent.cells, patch_size=c.patch, vae_embed_dim=latent.channels or 0,
            diffloss_d=c.head_depth, diffloss_w=c.head_width, num_sampling_steps=str(c.sampler.diffusion_steps),
            maskgit_steps=c.sampler.steps,
        )  # fmt: skip
        return published, theirs


def common_to_ours(theirs: Mapping[str, Tensor], beginnings: Names) -> dict[str, Tensor]:
    """What both kinds of model have, by our names. Statistics of actions are in the spec.

    What is missing stays missing, and unknown names stay as they are, for `with_weights` to find.
    """
    ours = {renamed(k, beginnings): v for k, v in theirs.items() if not k.startswith(STATISTICS)}
    if POSITION in ours:
        ours["trunk.position"] = ours.pop(POSITION).squeeze(0)
    if ACTION_MASK in ours:
        ours["action_mask"] = ours.pop(ACTION_MASK).squeeze(2).squeeze(0)
    return ours


def common_to_theirs(model: Any, beginnings: Names) -> dict[str, Tensor]:
    """The inverse of `common_to_ours`, with the statistics."""
    theirs = {renamed(name, beginnings, back=True): tensor for name, tensor in model.state_dict().items()}
    theirs[POSITION] = theirs.pop("trunk.position")[None]
    theirs[ACTION_MASK] = theirs.pop("action_mask")[None, :, None]
    for name, action in model.spec.actions.items():
        for part, values in (("mean", action.mean), ("std", action.std)):
            theirs[f"{STATISTICS}{module_key(name)}.{part}"] = torch.tensor(values)
    return theirs


def assembled(published: Any, theirs: Mapping[str, Tensor], source: Path | str) -> Any:
    """Our model of a published config and published weights; the statistics among the weights have the last word."""
    statistics = []
    for name in published.actions():
        mean, std = (theirs.get(f"{STATISTICS}{name}.{part}") for part in ("mean", "std"))
        if mean is None or std is None:
            raise CheckpointError(f"{source} holds no statistics of the actions of {name!r} ({STATISTICS}{name})")
        statistics.append((tuple(mean.tolist()), tuple(std.tolist())))
    published = replace(published, action_stats=tuple(statistics))
    return with_weights(published.config(), published.spec(), published.weights(theirs), source)


def build(kind: type[Any], fields: Mapping[str, Any], theirs: Mapping[str, Tensor]) -> Any:
    """Our model of a published config's fields and of published weights.

    Raises:
        HwmError: a field or a tensor is unknown, missing, or of another type or shape.
    """
    return assembled(from_json(kind, fields), theirs, "the state dict")


def read(kind: type[Any], source: Path) -> Any:
    """The model of a published folder.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights are not of the config.
    """
    return read_folder(source, kind, assembled, "HMA")


def write(kind: type[Any], model: Any, folder: Path) -> None:
    """Save a model as published ones are: config.json and model.safetensors.

    Raises:
        HwmError: the layout has no place for something of the model's.
    """
    write_folder(folder, *kind.made_of(model))


def registered(name: str, kind: type[Any], outputs: Callable[[Any, Case], Outputs]) -> None:
    register(
        name,
        Family(
            build=partial(build, kind), outputs=outputs, read=partial(read, kind), write=partial(write, kind),
            models=(name.replace("-", "_"),),
        ),
    )  # fmt: skip


registered("hma-discrete", PublishedDiscrete, discrete_outputs)
registered("hma-continuous", PublishedContinuous, continuous_outputs)
