"""Fine-tuning by low-rank updates (LoRA, arXiv 2106.09685), through peft.

A hidden matrix W (out, in) stays as it is, and W + B A is used: A (rank, in) begins at random, B (out, rank) at zero,
and both are trained. The kernel of a convolution is such a matrix, with a row for each channel that it makes. The
product is not scaled (alpha is the rank): under Adam a scale does much what the learning rate does, says the paper, and
so a state dict says all that there is to know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from hwm.config import Trainable
from hwm.errors import HwmError
from hwm.nn.int8 import no_complaints
from hwm.train.optim import train_only

A, B, BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer."
"""What peft calls the parts of a layer in a state dict."""
KINDS = (nn.Linear, nn.Conv2d)
"""Layers that get updates."""


def choose(module: Trainable, only: Sequence[str], rank: int) -> None:
    """Settle what of a module is trained: all of it, the parameters that `only` names (`train_only`), or besides those
    low-rank updates of its hidden matrices.

    Args:
        rank: of the updates; 0 makes none.

    Raises:
        HwmError: see `train_only` and `adapt`.
    """
    train_only(module, only)
    if rank:
        adapt(module, rank, [p for p in module.parameters() if p.requires_grad] if only else [])


def adapt(module: Trainable, rank: int, whole: Sequence[nn.Parameter] = ()) -> None:
    """Put low-rank updates beside the matrices of the module's units, in place, and leave all else as it is.

    The layers keep their place, their weights take other names: `merged` has them by their own.

    Args:
        whole: parameters that are trained themselves, and get no update.

    Raises:
        HwmError: peft is not installed, or the module has no such matrices.
    """
    peft, own = _peft(), {id(p) for p in whole}
    # what a subclass computes need not be linear in its weight, and could then not be merged
    inside = {m for unit in module.units() for m in unit.modules() if type(m) in KINDS and id(m.weight) not in own}
    names = [name for name, m in module.named_modules() if m in inside]
    if not names:
        raise HwmError(
            f"{module.name} has no hidden matrices left for low-rank updates: leave out train.lora, or name less in "
            "train.only"
        )
    found = "|".join(map(re.escape, names))  # whole names: of a list, peft would also take what only ends so
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=found), module)
    for layer in module.modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):  # autocast casts, and without a float32 copy of what goes in
            layer.cast_input_dtype_enabled = False
    for parameter in whole:  # peft froze all but the updates
        parameter.requires_grad_(True)


def rank_of(weights: Mapping[str, Tensor]) -> int:
    """The rank of the low-rank updates in a state dict; 0 where there are none."""
    return next((value.shape[0] for name, value in weights.items() if name.endswith(A)), 0)


def merged(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as the module had it without low-rank updates, which are added to their matrices."""
    out: dict[str, Tensor] = {}
    for name, value in weights.items():
        layer, base, field = name.rpartition(BASE)
        if base and layer + A in weights:
            update = field == "weight"
            out[f"{layer}.{field}"] = value + _product(weights, layer) if update else value
        elif not name.endswith((A, B)):
            out[name] = value
    return out


def _product(weights: Mapping[str, Tensor], layer: str) -> Tensor:
    """B A, in the shape of the layer's matrix or kernel."""
    a, b = weights[layer + A], weights[layer + B]
    return (b.flatten(1) @ a.flatten(1)).view(b.shape[0], *a.shape[1:])


def _peft() -> Any:
    try:
        with no_complaints():
            import peft
    except ImportError as error:
        raise HwmError(
            f"low-rank updates need peft ({error}): pip install 'humanoid-world-models[lora]', or leave out "
            "--train.lora"
        ) from error
    return peft
