"""A training step of every family, against a straightforward eager one of the same model: the same objective.

A step is forward, backward, clipping and the optimizer, at a recipe's size. Ours is the model's own loss, in float32
and in bfloat16. The baseline is always float32 and AdamW, and has none of the savings: attention writes out the scores
of all pairs, logits are of every position, nothing is computed twice or in parts, and a diffusion head runs on every
patch. `STEPS` says what that comes to for each family, and how many blocks of a large recipe are run on a CPU; on a GPU
all are.

Both start from the same weights and draw the same masks and noise, so the first loss and the norm of its gradient are
the same; the run fails where they are not. Time is the median of the steps after the first, with one thread on a CPU of
processor time; memory is the peak of a process of its own, in which each part is measured.
"""

from __future__ import annotations

import json
import math
import operator
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints
from unittest.mock import patch

import cosmos_tokenizer as plain_tokenizer
import torch
import torch.nn.functional as F
from common import clock, in_fresh_process, parser, report
from torch import Tensor

from hwm.config import Trainable
from hwm.data.clips import fake_batch
from hwm.devices import FORMATS, Runtime, find_device, peak_memory
from hwm.models.cosmos_ar import CosmosAR
from hwm.models.hma_continuous import HMAContinuous
from hwm.models.masked import MaskedModel
from hwm.nn import attention, causal
from hwm.nn.causal import CausalCache, CausalWindow
from hwm.objectives import diffusion
from hwm.objectives.maskgit import clip_rates, cosine_mask
from hwm.objectives.reconstruction import reconstruction_loss
from hwm.recipes import find_recipe
from hwm.tokenizers.cosmos import CosmosVideo
from hwm.train.allocator import keep_freed_memory
from hwm.train.blocks import arithmetic, recompute
from hwm.train.config import TrainConfig
from hwm.train.onednn import use_onednn
from hwm.train.optim import gradient_norm, optimizers
from hwm.types import Batch, split_digits

Loss = Callable[[Any, Batch], Tensor]
OPTIONS = {name: get_args(get_type_hints(TrainConfig)[name]) for name in ("optimizer", "activation_checkpoint")}
PLAIN = "straightforward"


# ---------------------------------------------------------------------- the savings, taken out
def scores_written_out(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, scale: float | None = None, is_causal: bool = False,
    enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """Attention as its formula says it, in the place of `F.scaled_dot_product_attention`."""
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    if is_causal:
        attn_mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return scores.softmax(-1) @ v


@contextmanager
def savings_taken_out(fused: bool = False) -> Iterator[None]:
    """Attention written out, whatever its size, or fused; nothing recomputed, in parts, or in place."""
    with ExitStack() as stack:
        for place, name, plain in (
            (attention, "FLOAT32", attention.Plain(keys=0, first=0)),  # all goes to the function that follows
            (F, "scaled_dot_product_attention", F.scaled_dot_product_attention if fused else scores_written_out),
            (causal, "recomputed", lambda function, *given: function(*given)),
            (causal, "in_parts", lambda function, axis, *given: function(*given)),
            (causal, "added", operator.add),
        ):
            stack.enter_context(patch.object(place, name, plain))
        yield


def own_loss(model: Trainable, batch: Batch) -> Tensor:
    """The model's own: without a vocabulary there is nothing to write out but attention."""
    loss: Tensor = model(batch)[0]
    return loss


def full_logits(model: MaskedModel, batch: Batch) -> Tensor:
    """The objective of masked tokens, with float32 logits of every position of every step, as released code has it."""
    ids_BTS = model.tokens(batch.latents)
    past_BPS, shown_BHS, cells = model.corrupt_and_mask(ids_BTS)
    masked_BHS = cells.mask
    hidden_BHSD = model.states_of_clip(past_BPS, batch.actions, batch.embodiment, shown_BHS, masked_BHS)
    # nobody reads those of the steps that are only looked back on
    unread_BPSD = torch.zeros_like(hidden_BHSD[:, :1]).expand(-1, ids_BTS.shape[1] - hidden_BHSD.shape[1], -1, -1)
    logits_BHSV = model.head(torch.cat([unread_BPSD, hidden_BHSD], 1)).float()[:, unread_BPSD.shape[1] :]
    nll_N = of_every_token(model.head, logits_BHSV, model.split(ids_BTS)[1], model.config.label_smoothing)
    return (nll_N * masked_BHS.flatten()).sum() / masked_BHS.sum()


def of_every_token(head: Any, logits_V: Tensor, ids: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of each token (N,), the sum over the digits of its id where it has digits."""
    digits = split_digits(ids, head.levels).unbind(-1) if head.levels else (ids,)
    parts = [part for alike in head.draws(logits_V) for part in alike.unbind(-2)]
    return torch.stack([
        F.cross_entropy(part.flatten(0, -2), digit.flatten(), reduction="none", label_smoothing=smoothing)
        for part, digit in zip(parts, digits, strict=True)
    ]).sum(0)  # fmt: skip


def every_token(model: CosmosAR, batch: Batch) -> Tensor:
    """The objective of the next token, with float32 logits of every token, those of the first step included."""
    ids_BL, cells = model.sequence(batch.latents), model.spec.latent.cells
    grid = model.grid(batch.latents.shape[1])
    states_BLD = model.hidden(ids_BL[:, :-1], grid, actions_BTD=model.embed_actions(batch))
    logits_BLV = model.output(states_BLD).float()
    return of_every_token(model.output, logits_BLV[:, cells - 1 :], batch.latents[:, 1:].flatten(1)).mean()


def every_patch(model: HMAContinuous, batch: Batch) -> Tensor:
    """The objective of masked patches, with a diffusion head that runs on all of them, as released code has it."""
    c, x_BTSE = model.config, model.tokens(batch.latents)
    B, T, S, _ = x_BTSE.shape
    _, ratio_BT = clip_rates(B, T, max_corrupt=0.0, non_mlm=c.non_mlm, prompt=c.prompt)
    masked_BTS = (cosine_mask(ratio_BT, S) & (ratio_BT > 0)[..., None]).to(x_BTSE.device)
    window = CausalWindow(CausalCache(), model.condition(batch.actions, batch.embodiment, T), batch.embodiment)
    condition_BTSD = model.run(window, model.hidden(x_BTSE, masked_BTS[..., None]))[0]
    # the draws of ours in their places; what is drawn for the others does not matter
    x_NE, step_BTS, noise_BTSE = x_BTSE[masked_BTS], torch.zeros_like(masked_BTS, dtype=torch.long), x_BTSE.clone()
    step_BTS[masked_BTS] = torch.randint(diffusion.STEPS, x_NE.shape[:1], device=x_NE.device)
    noise_BTSE[masked_BTS] = torch.randn_like(x_NE)
    head = partial(model.head, condition_C=condition_BTSD)
    error_BTS, bound_BTS = diffusion.denoising_loss(x_BTSE, step_BTS, noise_BTSE, head)
    return ((error_BTS + bound_BTS) * masked_BTS).sum() / masked_BTS.sum()


def volumes(model: CosmosVideo, batch: Batch) -> Tensor:
    """The objective of a tokenizer, by convolutions in three dimensions over padded copies, channels before time."""
    x_BFCHW = batch.latents * 2 - 1
    codes_BCTHW = model.quantizer(plain_tokenizer.analyse(model, x_BFCHW.transpose(1, 2)))
    made_BFCHW = plain_tokenizer.synthesise(model, codes_BCTHW).transpose(1, 2)
    return reconstruction_loss(model.config.loss_weights, model.adversary, made_BFCHW, x_BFCHW)[0]


# ---------------------------------------------------------------------- families
@dataclass(frozen=True)
class Step:
    """What is measured of a recipe.

    Attributes:
        baseline: the straightforward loss.
        quick: a model too small to say anything.
        changes: of the model, whatever it runs on.
        on_cpu: of the model, where the baseline of the recipe's takes more than 24 GB, or minutes, on a CPU.
        clips: of a step.
    """

    baseline: Loss
    quick: dict[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)
    on_cpu: dict[str, Any] = field(default_factory=dict)
    clips: int = 1


SMALL = dict(dim=32, depth=2, heads=2)
SMALL_AR = dict(dim=32, depth=2, heads=4, kv_heads=2, head_dim=8, mlp_dim=64)
STEPS = {
    "masked_hwm_base": Step(full_logits, SMALL),
    "masked_hwm_shared": Step(full_logits, SMALL, on_cpu=dict(depth=12)),
    "genie_35m": Step(full_logits, SMALL),
    "hma_discrete_base": Step(full_logits, SMALL | dict(action_tokens=4)),
    # without dropout, of which parts of a whole draw another
    "hma_continuous_base": Step(
        every_patch, SMALL | dict(action_tokens=4, head_depth=1, head_width=32), changes=dict(mlp_drop=0.0)
    ),
    "flow_hwm_base": Step(own_loss, SMALL, on_cpu=dict(depth=4), clips=4),
    "flow_hwm_uvit": Step(own_loss, SMALL | dict(depth=3), on_cpu=dict(depth=5)),
    "diffusion_lab": Step(
        own_loss,
        dict(widths=(16, 32), blocks=(1, 1), attention=(False, True), condition=32),
        clips=2,
        on_cpu=dict(widths=(160, 320, 480, 640)),
    ),
    "cosmos_ar_100m": Step(every_token, SMALL_AR, changes=dict(factorized=False), on_cpu=dict(depth=8)),
    "cosmos_dv8x8x8_finetune": Step(volumes, dict(base=4, blocks=1, z=8)),
}


def build(name: str, quick: bool, plain: bool, device: torch.device, clips: int = 0) -> tuple[Trainable, Batch]:
    """A model with random weights that let everything pass, as trained ones do, and a batch of random clips."""
    step, recipe = STEPS[name], find_recipe(name)()
    spec = recipe.data.expects
    assert spec is not None
    if quick:
        side = 32 if step.baseline is volumes else 8
        spec = replace(spec, latent=replace(spec.latent, grid=(side, side)))
    fitting = step.quick if quick else step.on_cpu if device.type == "cpu" else {}
    torch.manual_seed(0)
    model = recipe.but(model=step.changes | fitting).model.build(spec).to(device)
    with torch.no_grad():
        for p in model.parameters():  # away from gates of zero, behind which a difference would not be seen
            p.add_(0.02 * torch.randn_like(p))
    if plain:
        model.to(memory_format=torch.contiguous_format)
    return model, fake_batch(spec, clips or step.clips, recipe.data.steps).to(device)


# ---------------------------------------------------------------------- measuring
def parts(batch: Batch, passes: int) -> Iterator[Batch]:
    """As many clips for each forward pass of an update."""
    for latents, actions in zip(batch.latents.chunk(passes), batch.actions.chunk(passes), strict=True):
        yield Batch(latents, actions, batch.embodiment)


def measure(name: str, part: Any, a: Any) -> dict[str, float]:
    """Median seconds of a step, peak bytes, loss and norm of the gradient of the first, and parameters."""
    if a.threads:
        torch.set_num_threads(a.threads)
    device = find_device()
    plain = part == PLAIN
    how = TrainConfig() if plain else TrainConfig(activation_checkpoint=a.checkpoint)
    model, batch = build(name, a.quick, plain, device, a.clips)
    passes = 1 if plain else a.accumulate
    recompute(model, how.activation_checkpoint)
    kind, loss_of = ("adamw", STEPS[name].baseline) if plain else (a.optimizer, own_loss)
    runtime = Runtime(device, part if part in FORMATS else "float32")
    if not plain:
        use_onednn(model, runtime)
        if device.type == "cpu":
            keep_freed_memory()  # as the trainer does
    made = (
        [torch.optim.AdamW(model.parameters(), lr=1e-5)]
        if plain
        else optimizers(model, kind, 1e-5, 0.01, (0.9, 0.95), runtime.dtype)
    )
    seconds, firsts = [], (math.nan, math.nan)
    with savings_taken_out(a.fused) if plain else nullcontext():
        for i in range(a.repeats + 1):
            torch.manual_seed(i)
            start = clock(device)
            total = torch.zeros((), device=device)
            for part_of_batch in parts(batch, passes):
                with arithmetic(runtime, how.activation_checkpoint):
                    loss = loss_of(model, part_of_batch) / passes
                loss.backward()
                total += loss.detach()
            norm = gradient_norm(model, 1.0)
            for each in made:
                each.step()
                each.zero_grad(set_to_none=True)
            seconds.append(clock(device) - start)
            firsts = (total.item(), norm.item()) if i == 0 else firsts
    return {
        "seconds": statistics.median(seconds[1:]), "bytes": peak_memory(device), "loss": firsts[0],
        "gradient_norm": firsts[1], "parameters": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip


def compared(name: str, a: Any) -> dict[str, dict[str, float]]:
    """Each part measured in a process of its own."""
    given = [f"--{k}={getattr(a, k)}" for k in ("repeats", "threads", "clips", "accumulate", "optimizer", "checkpoint")]
    given += ["--quick"] * a.quick + ["--fused"] * a.fused
    found = {part: in_fresh_process(str(Path(__file__)), name, "--part", part, *given) for part in (PLAIN, *a.dtype)}
    if a.accumulate > 1:  # each pass draws masks and noise of its own
        return found
    for key in ("loss", "gradient_norm"):
        ours, theirs = (found.get(part, found[PLAIN])[key] for part in ("float32", PLAIN))
        if abs(ours - theirs) > 1e-3 * abs(theirs):
            raise SystemExit(f"{name}: {key} is {ours} in ours and {theirs} in the baseline")
    return found


def row(name: str, found: dict[str, dict[str, float]], dtypes: list[str]) -> str:
    """Of a Markdown table."""
    plain = found[PLAIN]
    times = [f"{plain['seconds'] / found[d]['seconds']:.2f}" for d in dtypes]
    memory = ", ".join(f"{found[d]['bytes'] / 2**30:.1f}" for d in dtypes) + f" / {plain['bytes'] / 2**30:.1f}"
    parameters = f"{plain['parameters'] / 1e6:,.0f}"
    return cells(f"`{name}`", parameters, f"{plain['seconds']:.1f}", *times, memory)


def cells(*text: str) -> str:
    return f"| {' | '.join(text)} |"


def main() -> None:
    p = parser(__doc__ or "")
    p.add_argument("name", nargs="?", choices=STEPS, default="masked_hwm_base", help="a recipe")
    p.add_argument("--all", action="store_true", help="every recipe, one after the other, as a table")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--dtype", nargs="+", choices=FORMATS, default=["float32", "bfloat16"], help="of ours")
    p.add_argument("--clips", type=int, default=0, help="of a step; 0 for what `STEPS` says")
    p.add_argument("--accumulate", type=int, default=1, help="forward passes of ours, each of a part of the clips")
    p.add_argument("--optimizer", choices=OPTIONS["optimizer"], default="adamw", help="of ours")
    p.add_argument("--checkpoint", choices=OPTIONS["activation_checkpoint"], default="none", help="of ours")
    p.add_argument("--fused", action="store_true", help="the baseline has the fused attention too")
    p.add_argument("--part", choices=(PLAIN, *FORMATS), help="measure one part and print its JSON")
    a = p.parse_args()
    if a.part:
        print(json.dumps(measure(a.name, a.part, a)))
        return
    if a.all:
        print(cells("recipe", "million parameters", "baseline, s", *a.dtype, "GiB, ours / baseline"))
        print("|" + "---|" * (4 + len(a.dtype)))
        for name in STEPS:
            print(row(name, compared(name, a), a.dtype), flush=True)
        return
    found = compared(a.name, a)
    plain, ours = found[PLAIN], found[a.dtype[0]]
    report(
        a.json,
        ours=ours["seconds"],
        baseline=plain["seconds"],
        unit="seconds a training step",
        recipe=a.name,
        row=row(a.name, found, a.dtype),
        accumulate=a.accumulate,
        optimizer=a.optimizer,
        checkpoint=a.checkpoint,
        fused=a.fused,
        memory_ratio=plain["bytes"] / ours["bytes"],
        **(found if a.json else {k: f"{v['seconds']:.2f} s, {v['bytes'] / 2**30:.2f} GiB" for k, v in found.items()}),
    )


if __name__ == "__main__":
    main()
