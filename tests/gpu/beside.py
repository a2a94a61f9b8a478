"""A model on a device beside the same one on the CPU: the same weights, and the same random draws."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hwm.devices import Runtime, find_device

CARD = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else []
DEVICES: list[Any] = ["cpu", *CARD]
"""Where the checks of this folder run: on the CPU as well, so that they work on the day when there is a card."""

CPU = Runtime(torch.device("cpu"), "float32")
DRAWS = {torch.rand: torch.rand, torch.randn: torch.randn, torch.randint: torch.randint}
LIKE = {torch.rand_like: torch.rand, torch.randn_like: torch.randn}


def cases(few: tuple[str, ...], all_of_them: list[str]) -> list[Any]:
    """Pairs of a device and a name: all names on a card, a few on the CPU."""
    card = [pytest.param("cuda", name, marks=pytest.mark.gpu) for name in all_of_them] if CARD else []
    return [*(("cpu", name) for name in few), *card]


def runtime(device: str, form: str) -> Runtime:
    return Runtime(find_device(device), form)


class SameDraws(TorchFunctionMode):
    """Draws on the CPU, from a seed, whatever is to be drawn on a device: each kind of device draws other numbers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in LIKE:
            return LIKE[func](args[0].shape, generator=self.generator).to(args[0].device, args[0].dtype)
        if func in DRAWS:
            device = kwargs.pop("device", None) or "cpu"
            return func(*args, **{**kwargs, "generator": self.generator}).to(device)
        return func(*args, **kwargs)


def twin(model: Any, device: torch.device) -> Any:
    """A copy of a model on a device."""
    return copy.deepcopy(model).to(device)


def flat(tensors: dict[str, Tensor]) -> Tensor:
    """The floating-point numbers of tensors, one after the other, on the CPU."""
    return torch.cat([x.detach().float().cpu().flatten() for x in tensors.values() if x.is_floating_point()])


def error(got: Tensor, wanted: Tensor) -> float:
    """The norm of a difference, as a share of that of what is wanted."""
    got, wanted = got.detach().float().cpu(), wanted.detach().float().cpu()
    return float((got - wanted).norm() / wanted.norm().clamp_min(1e-12))


def disagreement(got: Tensor, wanted: Tensor) -> float:
    """How far latents are from those wanted: the share of ids that are others, or the error of numbers."""
    return error(got, wanted) if wanted.is_floating_point() else float((got.cpu() != wanted.cpu()).float().mean())
