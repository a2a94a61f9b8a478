"""Optimizers and the learning-rate schedule, counted in optimizer updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from hwm.config import Trainable
from hwm.errors import HwmError, unknown
from hwm.train.distributed import is_divided, own_part, whole
from hwm.train.muon import Muon

TYPICAL = 0.02
"""Root mean square of a matrix's weights, about: as they begin (`hwm.nn.layers.init_weights`)."""


def optimizers(
    module: Trainable,
    kind: str,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    format: torch.dtype = torch.float32,
) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the hidden matrices or Adafactor for all matrices and AdamW for the rest.

    Muon (Jordan et al., 2024) suits the matrices between hidden features, and the kernels of convolutions in the
    module's units; embeddings, heads, biases and norms (`module.adamw_only`, and whatever else there is) stay with
    AdamW. Weight decay applies to matrices only,
    and to no biases, norms, embedding tables or learned positions.

    Adafactor (arXiv 1804.04235) keeps a row and a column of second moments for each matrix, and no first moments: next
    to nothing. Its learning rate is relative to the size of the weights, so it gets that of AdamW over `TYPICAL`.

    Where `module.mup_width` is not 1 (muP, arXiv 2203.03466), AdamW divides the learning rate of the hidden matrices by
    it (`lr_share` of their group) and multiplies their weight decay, which leaves the product alone. So it does with
    those of `module.adamw_only` that read features of the model's width, too (`module.mup_hidden`).

    Low-rank updates (`hwm.train.lora`) are always AdamW's: B begins at zero, and Adafactor's steps are relative to the
    size of the weights. muP's division is for A, which reads features, and not for B, which reads `rank` numbers.

    Args:
        format: of the run's products, in which Muon's are computed too; those of a float16 run are float32, as the
            products of small numbers would vanish.
    """
    others = _not_adamw(module, kind)
    taken, slow = {id(p) for p in others}, _slowed(module)
    rest = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
    decayed, width = _decayed(module), module.mup_width
    groups = _groups([p for p in rest if id(p) not in slow], decayed, weight_decay)
    groups += _groups([p for p in rest if id(p) in slow], decayed, weight_decay * width, lr_share=1 / width)
    made: list[torch.optim.Optimizer] = []
    if groups:
        fused = not next(module.parameters()).is_meta  # on a CPU too: a seventh of the time, and no copies
        made.append(torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8, fused=fused))
    if kind == "muon" and others:
        wide = torch.float32 if format == torch.float16 else format
        made.append(Muon(others, lr=lr, weight_decay=weight_decay, format=wide))
    if kind == "adafactor" and others:
        if is_divided(module):
            raise HwmError("Adafactor's state cannot be divided: train.shard other than 1 needs adamw or muon")
        relative = _groups(others, decayed, weight_decay * TYPICAL, lr_share=1 / TYPICAL)
        made.append(torch.optim.Adafactor(relative, lr=lr / TYPICAL))
    return made


def heeds(optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
    """Whether an optimizer leaves weights and its own state alone where its `found_inf`, a tensor, is 1."""
    if isinstance(optimizer, Muon):
        return True
    # of fused kernels, those of Apple's GPU take it and do not look at it
    return device.type in ("cuda", "cpu") and all(group.get("fused") for group in optimizer.param_groups)


def _not_adamw(module: Trainable, kind: str) -> list[Tensor]:
    """What another optimizer than AdamW trains."""
    if kind == "adafactor":
        return [p for n, p in module.named_parameters() if p.requires_grad and p.ndim >= 2 and ".lora_" not in n]
    return [p for p in _hidden(module) if p.requires_grad] if kind == "muon" else []


def _kernels(module: Trainable) -> dict[str, Tensor]:
    """The kernels of convolutions inside the module's units, by the names of these."""
    inside = {m for unit in module.units() for m in unit.modules() if isinstance(m, nn.Conv2d)}
    return {n: m.weight for n, m in module.named_modules() if m in inside}


def _linear(module: nn.Module) -> dict[str, Tensor]:
    """The matrices of Linear layers, by the names of these."""
    return {n: m.weight for n, m in module.named_modules() if isinstance(m, nn.Linear)}


def _hidden(module: Trainable) -> list[Tensor]:
    """The matrices and kernels between hidden features."""
    return [
        p
        for n, p in (_linear(module) | _kernels(module)).items()
        if not n.startswith(module.adamw_only) and ".lora_" not in n
    ]


def _slowed(module: Trainable) -> set[int]:
    """Ids of the parameters whose learning rate muP divides."""
    if module.mup_width == 1:
        return set()
    others = [p for n, p in _linear(module).items() if ".lora_A." in n or n.startswith(module.mup_hidden)]
    return {id(p) for p in [*_hidden(module), *others]}


def _decayed(module: nn.Module) -> set[int]:
    """Ids of the parameters that weight decay pulls at: matrices and kernels.

    Of the others some have two dimensions, too: tables with a row for each id or place, most of which have no gradient
    in a batch and would only shrink.
    """
    owned = [(m, n, p) for m in module.modules() for n, p in m.named_parameters(recurse=False)]
    return {id(p) for m, n, p in owned if p.ndim >= 2 and n.endswith("weight") and not isinstance(m, nn.Embedding)}


def _groups(params: Sequence[Tensor], decayed: set[int], weight_decay: float, **options: Any) -> list[dict[str, Any]]:
    """An optimizer's groups of parameters, those that are not empty: with weight decay, and without."""
    pulled, left = [p for p in params if id(p) in decayed], [p for p in params if id(p) not in decayed]
    both = ((pulled, weight_decay), (left, 0.0))
    return [{"params": part, "weight_decay": decay, **options} for part, decay in both if part]


def learning_rate(step: int, *, peak: float, warmup: int, total: int, floor: float) -> float:
    """Linear warm-up to `peak` over `warmup` updates, then a cosine to `floor * peak` at `total`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))


def train_only(module: Trainable, patterns: Sequence[str]) -> None:
    """Leave all parameters as they are but those whose names a pattern fits; no pattern trains all.

    Args:
        patterns: of the shell, such as `trunk.stems.*`; `fresh` fits what `module.fresh` begins.

    Raises:
        HwmError: a pattern fits no parameter.
    """
    if not patterns:
        return
    names = [name for name, _ in module.named_parameters()]
    chosen: set[str] = set()
    for pattern in patterns:
        own = module.fresh if pattern == "fresh" else ()
        found = [n for n in names if fnmatchcase(n, pattern) or (own and n.startswith(own))]
        if not found:
            groups = sorted({n.rpartition(".")[0] or n for n in names})
            raise unknown("group of parameters to train", pattern, (f"{g}.*" for g in groups))
        chosen.update(found)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in chosen)


class MovingAverage:
    """Exponential moving average of the weights, with the usual warm-up min(decay, (1 + n) / (10 + n))."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        now, mine = ({k: own_part(v) for k, v in weights.items()} for weights in (module.state_dict(), self.weights))
        floating = [k for k, v in now.items() if v.is_floating_point()]
        torch._foreach_lerp_([mine[k] for k in floating], [now[k] for k in floating], 1 - decay)
        for k, v in now.items():
            if not v.is_floating_point():
                mine[k].copy_(v)


def gradient_norm(module: nn.Module, clip: float) -> Tensor:
    """Global norm of the gradients, which are scaled down to `clip` where it is above."""
    return whole(nn.utils.clip_grad_norm_(module.parameters(), clip if clip > 0 else math.inf))
