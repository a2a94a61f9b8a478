"""The public implementations that are known: how ours are made from theirs, and how what was recorded of them is
computed by ours. Each converter registers its families; nothing else knows one from another.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from hwm.convert.recorded import Case
from hwm.errors import unknown

# the files of this folder that register families
CONVERTERS = ("cosmos_ar", "cosmos_tokenizer", "genie", "hma", "magvit2")

Outputs = Mapping[str, Callable[[], Tensor]]


@dataclass(frozen=True, kw_only=True)
class Family:
    """One public implementation.

    Attributes:
        build: its config, as a mapping of its own field names, and its state dict -> our model, in evaluation mode.
            `HwmError` for fields or weights that do not fit.
        outputs: our model and a recorded case -> for each output that can be recorded, by name, the function that
            computes it from the case's inputs, in the recorded shape: by calling what users call (`public.PUBLIC`) or,
            where that does not give it, as `public.Inner`, which says what does.
        read: a published file or folder -> our model; None where there is no layout but that of the state dict.
        asks: keywords of `read` for what files may leave open, each an option of `hwm convert`.
        write: our model -> a published file or folder.
        models: public names of our classes that `write` takes, where that is not the family's own name.
    """

    build: Callable[[Mapping[str, Any], Mapping[str, Tensor]], Any]
    outputs: Callable[[Any, Case], Outputs]
    read: Callable[..., Any] | None = None
    asks: tuple[str, ...] = ()
    write: Callable[[Any, Path], None] | None = None
    models: tuple[str, ...] = ()


_FAMILIES: dict[str, Family] = {}


def register(name: str, family: Family) -> None:
    """Make a family known under a name: that of its recorded cases, and of `hwm convert NAME`."""
    _FAMILIES[name] = family


def families() -> Mapping[str, Family]:
    """Every family that is known, by name."""
    for module in CONVERTERS:
        importlib.import_module(f"hwm.convert.{module}")
    return _FAMILIES


def find_family(name: str) -> Family:
    """The family of a name.

    Raises:
        HwmError: there is none; the message shows the nearest names.
    """
    known = families()
    if name not in known:
        raise unknown("family of models to convert", name, known)
    return known[name]


def from_reference(family: str, config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Any:
    """Our model, in evaluation mode, of a public implementation's config and weights.

    No second copy of the weights is made: tensors that keep their shape and type become the parameters themselves, so
    whoever goes on to train either of the two models should pass clones.

    Args:
        family: a name of `families()`, such as "genie".
        config: the fields of the original's config and their values. Fields that it gives defaults may be left out.
        state_dict: the original's state dict, with its names.

    Raises:
        HwmError: the family is unknown, a field is unknown or of another type, or a tensor is missing, left over or of
            another shape.
    """
    return find_family(family).build(config, state_dict)
