"""Tensors that say they are on a card: their values lie in ordinary memory, and they refuse what a card's would.

Every operation on them comes by `__torch_dispatch__`, below autograd and autocast, where it is checked, counted, and
then carried out on the values.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

import hwm

Kind = Literal["cuda", "mps"]
PACKAGE = f"{Path(hwm.__file__).parent}/"
aten = torch.ops.aten

WAITS = {
    aten._local_scalar_dense.default: "a value is read",  # item, tolist of one, bool, int, float
    aten.is_nonzero.default: "a value is read",
    aten.equal.default: "a value is read",
    aten.nonzero.default: "the size depends on values",
    aten.masked_select.default: "the size depends on values",
    aten._unique2.default: "the size depends on values",
    aten.unique_consecutive.default: "the size depends on values",
    aten.repeat_interleave.Tensor: "the size depends on values",
    aten.bincount.default: "the size depends on values",
}
"""Operations that make the host wait until the card has come so far, and why."""
INDEXING = {
    aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default,
    aten._unsafe_index.Tensor, aten._unsafe_index_put.default,
}  # fmt: skip
NO_KERNELS = {
    aten._unsafe_view.default, aten.detach.default, aten.alias.default, aten.lift_fresh.default,
    aten.empty_like.default, aten.new_empty.default, aten.empty.memory_format, aten.new_empty_strided.default,
    aten.empty_strided.default, aten._local_scalar_dense.default,
}  # fmt: skip
TAKES_NUMBERS = {aten.copy_.default, aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor}
"""What takes a single number from ordinary memory as it is, besides what works element by element."""


class DeviceError(RuntimeError):
    """What PyTorch would refuse on such a card."""


class DeviceTypeError(DeviceError, TypeError):
    """The same where PyTorch calls it an error of type."""


@dataclass
class Card:
    """A card, and what it was asked to do.

    Attributes:
        kind: cuda or mps.
        kernels: operations that are no views, by name.
        uploads: copies from ordinary memory, by the lines of the package that asked for them.
        waits: where the host would wait until the card has come so far: for values to be read, for sizes that depend
            on values, and for copies from ordinary memory that were not asked to go on beside (`non_blocking`).
        sites: kernels by name and line, where `follow` is set, which takes time.
        launched: kernels since the card is there.
    """

    kind: Kind = "cuda"
    follow: bool = False
    kernels: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    sites: Counter[tuple[str, str]] = field(default_factory=Counter)
    launched: int = 0
    tape: Any = None  # `tests.pretend.graphs.Tape`, while a graph is captured

    @property
    def device(self) -> torch.device:
        return torch.device(self.kind, 0)

    def forget(self) -> None:
        """Begin to count anew."""
        for counter in (self.kernels, self.uploads, self.waits, self.sites):
            counter.clear()

    def launch(self, name: str) -> None:
        self.launched += 1
        self.kernels[name] += 1
        if self.follow:
            self.sites[name, asked_by()] += 1

    def wait(self, why: str) -> None:
        if self.tape:
            raise self.refuse(f"operation not permitted when stream is capturing: {why}")
        self.waits[f"{asked_by()}: {why}"] += 1

    def upload(self, beside: bool = False) -> None:
        self.uploads[asked_by()] += 1
        if not beside:
            self.wait("a copy to the card")

    def refuse(self, what: str, error: type[DeviceError] = DeviceError) -> DeviceError:
        return error(f"{what}  [{asked_by()}]")


def asked_by() -> str:
    """The two innermost lines of the package that are being run, or the backward pass."""
    frame, lines = sys._getframe(1), list[str]()
    while frame is not None and len(lines) < 2:
        name = frame.f_code.co_filename
        if frame.f_code.co_name == "_engine_run_backward":
            lines.append("the backward pass")
            break
        if name.startswith(PACKAGE):
            lines.append(f"{name.removeprefix(PACKAGE)}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(lines) or "outside the package"


class Pretend(Tensor):
    """A tensor on a card. `inner` is what it holds."""

    inner: Tensor
    card: Card
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor, card: Card) -> Pretend:
        assert not isinstance(values, Pretend)
        if card.kind == "mps" and values.dtype in (torch.float64, torch.complex128):
            raise card.refuse("Cannot convert a MPS Tensor to float64: MPS has no such numbers", DeviceTypeError)
        made: Pretend = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            layout=values.layout, device="cpu", requires_grad=False,
        )  # fmt: skip
        made.inner, made.card = values, card
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.card.device

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return self.card.kind == "cuda"

    @property
    def is_mps(self) -> bool:  # type: ignore[override]
        return self.card.kind == "mps"

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return False

    def get_device(self) -> int:
        return 0

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        what = f"can't convert {self.device} device type tensor to numpy; copy it to the CPU first"
        raise self.card.refuse(what, DeviceTypeError)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        self.card.wait("a value is read")
        return self.inner.tolist()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Pretend({self.inner}, {self.device})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Tensor = Pretend(self.inner.detach().clone(), self.card).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        card = next(t.card for t in tree_leaves((args, kwargs)) if isinstance(t, Pretend))
        args, kwargs = checked(card, func, args, kwargs)
        count(card, func, args)
        return carry_out(card, func, args, kwargs)


def checked(card: Card, func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The operands of an operation, all of which must be on the card.

    Raises:
        DeviceError: some are not.
    """
    elsewhere = [t for t in _tensors(args, kwargs) if not isinstance(t, Pretend)]
    if not elsewhere or func is aten.copy_.default:
        return args, kwargs
    if func in INDEXING:  # takes indices from anywhere, and numbers to put there
        if any(t is i for t in elsewhere for i in args[1]):
            card.upload()
        elsewhere = [t for t in elsewhere if t is args[0] or (any(t is v for v in args[2:]) and t.dim())]
    elif torch.Tag.pointwise in func.tags or func in TAKES_NUMBERS or "foreach" in str(func):
        elsewhere = [t for t in elsewhere if t.dim()]
    if elsewhere and _autograd_made_them():
        return tree_map_only(Tensor, lambda t: t if isinstance(t, Pretend) else Pretend(t, card), (args, kwargs))
    if elsewhere:
        shapes = ", ".join(str(tuple(t.shape)) for t in elsewhere)
        raise card.refuse(
            f"Expected all tensors to be on the same device, but found at least two devices, {card.device} and cpu: "
            f"{func} with {shapes} on the cpu"
        )
    return args, kwargs


def count(card: Card, func: Any, args: Any) -> None:
    """Count what an operation costs."""
    if func in WAITS:
        card.wait(WAITS[func])
    if func in INDEXING and any(_is_mask(i) for i in args[1]):
        card.wait("the size depends on values")
    if func is aten.copy_.default:
        beside = len(args) > 2 and bool(args[2])
        if not isinstance(args[1], Pretend) and args[1].dim():
            card.upload(beside)
        elif not isinstance(args[0], Pretend) and not beside:
            card.wait("a copy from the card")
    if not func.is_view and func not in NO_KERNELS:
        card.launch(str(func))


def carry_out(card: Card, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Run an operation on the values; what it gives back is on the card."""
    given = {id(t.inner if isinstance(t, Pretend) else t): t for t in _tensors(args, kwargs)}
    args, kwargs = tree_map_only(Pretend, lambda t: t.inner, (args, kwargs))

    def wrapped(made: Tensor) -> Tensor:
        return given[id(made)] if id(made) in given else Pretend(made, card)

    made = func(*args, **kwargs)
    if card.tape:
        card.tape.add(func, args, kwargs, made)
    return tree_map_only(Tensor, wrapped, made)


def _tensors(args: Any, kwargs: Any) -> list[Tensor]:
    return [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _autograd_made_them() -> bool:
    """Whether an operand comes from autograd itself: it takes zeros for the gradient of an output that nobody used, and
    makes them where it believes these tensors are."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_engine_run_backward":
            return True
        if frame.f_code.co_filename.startswith(PACKAGE):
            return False
        frame = frame.f_back  # type: ignore[assignment]
    return False
