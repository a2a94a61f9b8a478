"""Cosmos-Predict1's autoregressive models as published, in and out. And what was recorded of the public code, computed
by ours.

A published folder holds `model.pt`, a PyTorch file; safetensors of the same names are read as well, one file or several
with an index. It says nothing of the config, which is known from the sizes of the weights; a `config.json` beside them
with fields of the public code (those that differ are enough) has the last word.

Names and layout: github.com/nvidia-cosmos/cosmos-predict1 (Apache-2.0).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hwm.config import from_json
from hwm.convert.family import Family, Outputs, register
from hwm.convert.public import Inner
from hwm.convert.recorded import Case
from hwm.data.onex.specs import COSMOS_LEVELS
from hwm.errors import CheckpointError, HwmError
from hwm.files import listed, write_atomically
from hwm.models.cosmos_ar import CosmosAR
from hwm.models.cosmos_decoder import Decoder
from hwm.models.cosmos_texts import Text
from hwm.nn.rope import sincos_3d
from hwm.objectives.next_token import NextTokenSampler
from hwm.types import Batch, DataSpec, LatentSpec
from hwm.weights import read_weights, save_tensors, with_weights

FRAMES = 8  # of a latent step, but the first
STEPS_PER_SECOND = 3.0  # 24 frames a second
TOKENIZER = "cosmos-dv8x16x16"
INDEX = ".safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class Published:
    """The fields of the public config that matter, with the values of the 4B model, and those that must be as they are.

    Attributes:
        head_dim: None means dim / n_heads.
        video_latent_shape: steps, rows and columns.
        original_latent_shape: of YaRN: the grid that the frequencies were made for.
        insert_cross_attn_every_k_layers: layers 0, k, 2k, ... have cross-attention.
        training_type: "text_to_video" models begin with an id of their own.
        precision, max_batch_size, max_seq_len, pad_to_multiple_of, original_seq_len, expand_vocab_to: of no effect
            here; the type of the weights is that of the file, and caches are as long as the grid needs.
    """

    dim: int = 4096
    n_layers: int = 16
    n_heads: int = 32
    n_kv_heads: int = 8
    head_dim: int | None = None
    ffn_hidden_size: int = 14336
    vocab_size: int = 64_000
    norm_eps: float = 1e-5
    rope_theta: float = 500_000.0
    video_latent_shape: tuple[int, int, int] = (5, 40, 64)
    apply_yarn: bool = False
    yarn_scale: float | None = 2.0
    yarn_beta_fast: float | None = 4.0
    yarn_beta_slow: float | None = 1.0
    original_latent_shape: tuple[int, int, int] | None = (3, 40, 64)
    apply_abs_pos_emb: bool = False
    insert_cross_attn: bool = False
    context_dim: int | None = 1024
    insert_cross_attn_every_k_layers: int = 1
    training_type: str = "video_to_video"
    norm_type: str = "rmsnorm"
    use_qk_normalization: bool = True
    rope_dim: str = "3D"
    pytorch_rope_version: str = "v2"
    causal_mask: bool = True
    fuse_qkv: bool = False
    precision: str = "bfloat16"
    max_batch_size: int = 1
    max_seq_len: int = 12_800
    pad_to_multiple_of: int = 64
    original_seq_len: int = 8192
    expand_vocab_to: int | None = None

    def config(self, dtype: torch.dtype) -> CosmosAR.Config:
        """The model's config; what the fields do not say keeps its default.

        Raises:
            HwmError: a field asks for what no published model has.
        """
        for name in ("norm_type", "use_qk_normalization", "rope_dim",
                     "pytorch_rope_version", "causal_mask", "fuse_qkv"):  # fmt: skip
            if getattr(self, name) != getattr(Published, name):
                raise HwmError(
                    f"{name}={getattr(self, name)!r} is not what published Cosmos models have "
                    f"({getattr(Published, name)!r}), and is not known here"
                )
        steps = self.video_latent_shape[0]
        config = CosmosAR.Config(
            past=steps - 1, window_stride=max(1, (steps - 1) // 2), dim=self.dim, depth=self.n_layers,
            mlp_dim=self.ffn_hidden_size, heads=self.n_heads, kv_heads=self.n_kv_heads,
            head_dim=self.head_dim or self.dim // self.n_heads, rope_theta=self.rope_theta, norm_eps=self.norm_eps,
            absolute="bfloat16" if self.apply_abs_pos_emb else "",
            context_dim=(self.context_dim or 0) if self.insert_cross_attn else 0,
            context_every=self.insert_cross_attn_every_k_layers,
            begin=self.training_type == "text_to_video",
            dtype="bfloat16" if dtype == torch.bfloat16 else "float32",
        )  # fmt: skip
        if not self.apply_yarn:
            return config
        scale, fast, slow, shape = self.yarn_scale, self.yarn_beta_fast, self.yarn_beta_slow, self.original_latent_shape
        if scale is None or fast is None or slow is None or shape is None:
            raise HwmError("apply_yarn needs yarn_scale, yarn_beta_fast, yarn_beta_slow and original_latent_shape")
        return replace(config, yarn_scale=scale, yarn_fast=fast, yarn_slow=slow, yarn_grid=shape[:2])

    def spec(self) -> DataSpec:
        """What the model reads. It knows no robot: it takes no actions."""
        _, *sides = self.video_latent_shape
        levels = COSMOS_LEVELS if self.vocab_size == 64_000 else ()
        latent = LatentSpec((sides[0], sides[1]), self.vocab_size, stride=FRAMES, levels=levels)
        usual = self.vocab_size == 64_000 and self.video_latent_shape[1:] == Published.video_latent_shape[1:]
        return DataSpec(latent, {}, TOKENIZER if usual else "", STEPS_PER_SECOND)

    @classmethod
    def of(cls, model: CosmosAR) -> Published:
        """The fields of a model of ours.

        Raises:
            HwmError: the layout has no place for something of the model's.
        """
        c = model.config
        if c.actions or c.factorized or c.absolute == "float32":
            raise HwmError(
                "the published layout of Cosmos has no actions, no digits and no absolute positions in float32: this "
                "model can only be kept in ours"
            )
        return cls(
            dim=c.dim, n_layers=c.depth, n_heads=c.heads, n_kv_heads=c.kv_heads, head_dim=c.head_dim,
            ffn_hidden_size=c.mlp_dim, vocab_size=model.vocab, norm_eps=c.norm_eps, rope_theta=c.rope_theta,
            video_latent_shape=model.grid(c.past + 1), apply_yarn=c.yarn is not None, yarn_scale=c.yarn_scale,
            yarn_beta_fast=c.yarn_fast, yarn_beta_slow=c.yarn_slow,
            original_latent_shape=(*c.yarn_grid, c.yarn_grid[1]),
            apply_abs_pos_emb=bool(c.absolute), insert_cross_attn=c.context_dim > 0, context_dim=c.context_dim or None,
            insert_cross_attn_every_k_layers=c.context_every,
            training_type="text_to_video" if c.begin else "video_to_video", precision=c.dtype,
        )  # fmt: skip


_WIDE = Published(dim=5120, n_layers=40, head_dim=128, apply_yarn=True)
_TEXT: dict[str, Any] = {"insert_cross_attn": True, "apply_abs_pos_emb": True, "training_type": "text_to_video"}
#: the published models, by the end of their names
SIZES = {
    "4B": Published(),
    "12B": _WIDE,
    "5B-Video2World": replace(Published(), **_TEXT),
    "13B-Video2World": replace(_WIDE, **_TEXT),
}


def read(source: Path) -> CosmosAR:
    """The model of a published folder, or of one of its files.

    Raises:
        CheckpointError: nothing there, a file is damaged, or the weights are not of the config.
    """
    path = find(source)
    theirs = read_shards(path) if path.name.endswith(INDEX) else read_weights(path)
    beside = path.parent / "config.json"
    try:
        fields = json.loads(beside.read_bytes()) if beside.is_file() else {}
        if not isinstance(fields, dict):
            raise CheckpointError(f"{beside} is not an object of fields")
        return build({**known_fields(strip(theirs), path, bool(fields)), **fields}, theirs, str(path))
    except CheckpointError:
        raise
    except (HwmError, ValueError) as error:
        raise CheckpointError(f"{beside}: {error}") from error


def find(source: Path) -> Path:
    """The file of weights of a folder, or an index of several."""
    if not source.is_dir():
        return source
    for pattern in (f"*{INDEX}", "*.safetensors", "*.pt"):
        found = listed(source, pattern)
        if len(found) == 1:
            return found[0]
        if found:
            raise CheckpointError(f"{source} holds {len(found)} files {pattern} and no index of them; name one of them")
    raise CheckpointError(f"{source} holds no weights: neither model.pt, nor .safetensors, nor an index of them")


def read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of several safetensors files, of which an index says what is where.

    Raises:
        CheckpointError: the index or a file is missing or damaged, or a file lacks what the index says it has.
    """
    try:
        where = dict(json.loads(index.read_bytes())["weight_map"])
        names = {str(name): str(file) for name, file in where.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read {index}, which says what is in which file: {error!r}") from error
    if outside := [file for file in names.values() if Path(file).name != file]:
        raise CheckpointError(f"{index} names {outside[0]!r}, which is not a file beside it")
    files = {file: read_weights(index.parent / file) for file in sorted(set(names.values()))}
    for name, file in names.items():
        if name not in files[file]:
            raise CheckpointError(f"{index.parent / file} lacks {name}, which {index.name} says it has")
    return {name: files[file][name] for name, file in names.items()}


def strip(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by their plain names: without the prefix that training adds, and without its notes of other libraries."""
    return {name.removeprefix("model."): x for name, x in theirs.items() if "_extra_state" not in name}


def known_fields(weights: Mapping[str, Tensor], path: Path, told: bool) -> dict[str, Any]:
    """The fields of the published model whose sizes these are; none where there is no such model but a config.

    Raises:
        CheckpointError: the sizes are of no published model, and there is no config.
    """
    table = weights.get("tok_embeddings.weight")
    layers = {name.split(".")[1] for name in weights if name.startswith("layers.")}
    text = any(".cross_attention." in name for name in weights)
    for size in SIZES.values():
        if table is not None and (table.shape[-1], len(layers), text) == (
            size.dim, size.n_layers, size.insert_cross_attn,
        ):  # fmt: skip
            return asdict(size)
    if told:
        return {}
    shape = "no tok_embeddings.weight" if table is None else f"a width of {table.shape[-1]}"
    raise CheckpointError(
        f"{path} has {shape} and {len(layers)} layers{', which read a text' if text else ''}: none of the published "
        f"models ({', '.join(SIZES)}). Of any other, put its fields into a config.json beside it"
    )


def build(fields: Mapping[str, Any], theirs: Mapping[str, Tensor], source: str = "the state dict") -> CosmosAR:
    """The model of the public config's fields and of published weights.

    Raises:
        HwmError: a field or a tensor is unknown, missing, or of another type or shape.
    """
    published, weights = from_json(Published, fields), strip(theirs)
    dtype = next((x.dtype for x in weights.values()), torch.float32)
    model: CosmosAR = with_weights(published.config(dtype), published.spec(), weights, source)
    return model


def write(model: CosmosAR, folder: Path) -> None:
    """Save a model under the published names: model.safetensors, and a config.json with the public code's fields.

    Raises:
        HwmError: the layout has no place for something of the model's.
    """
    text = json.dumps(asdict(Published.of(model)), indent=2, sort_keys=True)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "model.safetensors", model.state_dict())
    write_atomically(folder / "config.json", text.encode())


class Recorded:
    """What was recorded of the public code, computed by a model of ours from the same inputs.

    Shape suffixes: B batch, L token, V logits.
    """

    def __init__(self, model: CosmosAR, case: Case) -> None:
        self.model, self.case, self.given = model, case, case.given
        self.shape = from_json(Published, case.config).video_latent_shape
        self.begin = int(model.config.begin)
        self.text = None
        if "context" in self.given:
            self.text = Text(self.given["context"], self.given["context_mask"].bool())

    def batch(self, steps: int) -> Batch:
        """The first steps of the tokens, without the one for the beginning; at its actions nobody looks."""
        ids_BTHW = self.given["tokens"][:, self.begin :].unflatten(1, (-1, *self.shape[1:]))
        nothing = torch.zeros(*ids_BTHW.shape[:2], 1, 1, device=ids_BTHW.device)
        return Batch(ids_BTHW[:, :steps], nothing, "nobody")

    def logits(self, text: Text | None) -> Tensor:
        """Of all tokens in one pass (B, L, V); those that predict tokens of later steps are of `teacher_forced`."""
        logits_BLV = self.model.logits(self.given["tokens"], self.shape, text)
        self.model.text = text
        later = self.model.teacher_forced(self.batch(self.shape[0]), 1).logits
        assert later is not None  # it has logits
        first = self.begin + math.prod(self.shape[1:]) - 1  # the last token of the first step predicts that of the next
        return torch.cat([logits_BLV[:, :first], later.flatten(1, 3), logits_BLV[:, -1:]], 1)

    def unrounded(self) -> Tensor:
        """The same, with absolute positions as they are computed."""
        exact = replace(self.model.config, absolute="float32")
        other: CosmosAR = with_weights(exact, self.model.spec, self.model.state_dict(), "the case")
        return other.logits(self.given["tokens"], self.shape, self.text)

    def step_by_step(self) -> Tensor:
        """The same, the prompt in one pass and each later token in one of its own."""
        ids_BL, prompt = self.given["tokens"], int(self.given["prompt_len"])
        decoder = Decoder(self.model, self.shape, len(ids_BL), text=self.text)
        passes = [decoder.feed(part) for part in (ids_BL[:, :prompt], *ids_BL[:, prompt:].split(1, 1))]
        out: Tensor = self.model.output(torch.cat(passes, 1))
        return out

    def greedy(self) -> Tensor:
        """The likeliest continuation of the prompt (B, L - P): a rollout from its steps."""
        steps, odd = divmod(int(self.given["prompt_len"]) - self.begin, math.prod(self.shape[1:]))
        if odd:
            raise HwmError(f"the prompt of {self.given['prompt_len']} tokens does not fill whole steps")
        self.model.text = self.text
        return self.model.rollout(self.batch(steps), sampler=NextTokenSampler(temperature=0.0)).latents.flatten(1)

    def positions(self) -> Tensor:
        """The table of absolute positions, filled up with zeros (1, longest sequence, D)."""
        c = self.model.config
        table = sincos_3d(
            self.shape[0], self.shape[1:], c.dim, torch.device("cpu"), torch.bfloat16, int(c.begin)
        ).float()
        room = from_json(Published, self.case.config).max_seq_len - len(table)
        return torch.cat([table, table.new_zeros(room, c.dim)])[None]


def outputs(model: CosmosAR, case: Case) -> Outputs:
    """Every output that may be recorded, by its name."""
    run, rest = Recorded(model, case), "the first step and the last token"
    everything = partial(run.logits, None if run.text is None else Text(run.text.context))
    return {
        "logits": Inner(rest, partial(run.logits, run.text)),
        "logits_full_context": Inner(rest, everything),
        "logits_kv": Inner("the decoder, fed the true tokens", run.step_by_step),
        "logits_unrounded_pos": Inner("a model whose positions are not rounded", run.unrounded),
        "abs_pos_emb": Inner("the table of positions", run.positions),
        "greedy": run.greedy,
    }


register("cosmos-ar", Family(build=build, outputs=outputs, read=read, write=write, models=(CosmosAR.name,)))
