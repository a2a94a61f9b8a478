"""A graphics card that is not there: real losses, backward passes, optimizers and commands run on it, on any machine.

    from tests.pretend.device import pretending

    with pretending("cuda") as card:        # or "mps"
        model.to(card.device)
        loss, _ = model(batch.to(card.device))
        loss.backward()
    print(card.waits)                        # how often the host would have waited, and at which lines

Inside, `torch.cuda.is_available()` is true (or MPS is), `--device auto` finds the card, and what is moved or made
there is a `tests.pretend.tensors.Pretend`: it says `cuda:0`, keeps its values in ordinary memory, and refuses what a
card refuses: operands elsewhere (but for single numbers), a generator of another device, `.numpy()`, float64 on MPS.
Kernels, uploads and waits are counted. Draws are those of the CPU, so the same seeds give the same values as there.

Threads that are started inside are inside, too; other processes are not. Models are to be made or moved inside, and
optimizers after that, as moving makes new parameters. What the package keeps in its caches is forgotten on the way in
and on the way out. Captured CUDA graphs are replayed. Not shown: which kernels a card takes, memory, speed, NCCL,
compilation.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from hwm import devices
from tests.pretend.graphs import graphs
from tests.pretend.tensors import Card, Kind, Pretend

RealGenerator = torch.Generator


class Up(torch.autograd.Function):
    """A copy to the card."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, card: Card) -> Tensor:
        return Pretend(x.detach().clone(), card)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient.inner if isinstance(gradient, Pretend) else gradient, None


class Down(torch.autograd.Function):
    """A copy from the card."""

    @staticmethod
    def forward(ctx: Any, x: Pretend) -> Tensor:  # type: ignore[override]
        ctx.card = x.card
        return x.inner.detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return gradient if isinstance(gradient, Pretend) else Pretend(gradient, ctx.card)


class Generator(RealGenerator):
    """A generator that says it is on the card, or that it is not; draws are the CPU's."""

    card: Card

    def __new__(cls, device: Any = "cpu") -> Generator:
        return RealGenerator.__new__(cls, "cpu")

    def __init__(self, device: Any = "cpu") -> None:
        self.kind = torch.device(device).type

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.card.device if self.kind == self.card.kind else torch.device("cpu")


class Inside(TorchFunctionMode):
    """Sends what is asked of PyTorch's functions to the card where they are given its name."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card
        self.own: dict[Any, Callable[..., Any]] = {
            Tensor.to: self.to,
            Tensor.cpu: lambda x, *a, **k: self.to(x, "cpu"),
            Tensor.cuda: lambda x, *a, **k: self.to(x, "cuda"),
            Tensor.pin_memory: lambda x, *a, **k: x,
            torch.nn.functional.embedding_bag: self.embedding_bag,
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {k: v for k, v in (kwargs or {}).items() if k != "pin_memory"}
        self.check_generator(args, kwargs)
        if func in self.own:
            return self.own[func](*args, **kwargs)
        if kwargs.get("device") is None:
            return func(*args, **kwargs)
        kind = torch.device(kwargs["device"]).type
        if kind == self.card.kind:
            return self.make(func, args, {**kwargs, "device": "cpu"})
        if kind == "cpu":  # torch.zeros_like(x, device="cpu") and its like
            args = tree_map_only(Pretend, lambda t: t.inner, args)
        return func(*args, **kwargs)

    def make(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What a function makes on the card."""
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            self.card.upload()
        else:
            self.card.launch(func.__name__)
        args = tree_map_only(Pretend, lambda t: t.inner, args)
        made = func(*args, **kwargs)
        if self.card.tape:
            self.card.tape.add(func, args, kwargs, made)
        return tree_map_only(Tensor, lambda t: Pretend(t.detach(), self.card).requires_grad_(t.requires_grad), made)

    def to(self, x: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        """`Tensor.to` in all its forms."""
        if args and isinstance(args[0], Tensor):
            kwargs.update(device=args[0].device, dtype=args[0].dtype)
            args = args[1:]
        device, dtype, beside, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        kind = x.device.type if device is None else device.type
        options: dict[str, Any] = {"copy": copy, **({"memory_format": memory_format} if memory_format else {})}
        if kind == "meta":
            return (x.inner if isinstance(x, Pretend) else x).to("meta", dtype or x.dtype)
        if kind == self.card.kind and not isinstance(x, Pretend):
            self.card.upload(beside)
            return Up.apply(x.to(dtype or x.dtype, **options), self.card)  # type: ignore[no-any-return]
        if kind == "cpu" and isinstance(x, Pretend):
            if not beside:
                self.card.wait("a copy from the card")
            x = Down.apply(x)  # type: ignore[assignment]
        return x.to(dtype or x.dtype, **options)

    def embedding_bag(self, ids: Tensor, weight: Tensor, offsets: Tensor | None = None, **kwargs: Any) -> Tensor:
        """It makes the offsets of bags of one size out of sight."""
        if isinstance(ids, Pretend) and ids.dim() == 2:
            offsets = Pretend(torch.arange(0, ids.numel(), ids.shape[1]), self.card)
            ids = ids.reshape(-1)
        return torch.nn.functional.embedding_bag(ids, weight, offsets, **kwargs)

    def check_generator(self, args: Any, kwargs: Any) -> None:
        generator = kwargs.get("generator")
        if not isinstance(generator, RealGenerator):
            return
        tensors = [t for t in tree_leaves(args) if isinstance(t, Tensor)]
        like = torch.device(kwargs.get("device") or "cpu") if not tensors else tensors[0].device
        kind = torch.device(kwargs["device"]).type if kwargs.get("device") else like.type
        if generator.device.type != kind:
            raise self.card.refuse(f"Expected a '{kind}' device type for generator but found '{generator.device.type}'")


class Patches:
    """Attributes that are others for a while."""

    def __init__(self) -> None:
        self.before: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, **values: Any) -> None:
        for name, value in values.items():
            self.before.append((owner, name, getattr(owner, name)))
            setattr(owner, name, value)

    def undo(self) -> None:
        for owner, name, value in reversed(self.before):
            setattr(owner, name, value)


@contextlib.contextmanager
def pretending(kind: Kind = "cuda", *, bfloat16: bool = True, memory: int = 80 << 30) -> Iterator[Card]:
    """A card of this kind is there, inside.

    Args:
        bfloat16: whether it has arithmetic for it (V100 and T4 have not).
        memory: bytes of it.
    """
    card, patches, mode = Card(kind), Patches(), Inside(Card(kind))
    mode.card = card
    _announce(patches, card, bfloat16, memory)
    _teach(patches, card, mode)
    overwritten = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    _forget_caches()
    try:
        with mode:
            yield card
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwritten)
        patches.undo()
        _forget_caches()


def _announce(patches: Patches, card: Card, bfloat16: bool, memory: int) -> None:
    """What tells of the card: `torch.cuda` or `torch.mps`."""
    cuda = card.kind == "cuda"
    patches.set(torch.cuda, is_available=lambda: cuda, device_count=lambda: int(cuda))
    # builds for CUDA would ask it, and through it the driver, which is not there
    patches.set(torch.accelerator, is_available=lambda: False)
    # cached, as PyTorch's own: from 2.14 on its compiler looks for what is inside
    patches.set(torch.backends.mps, is_available=functools.cache(lambda: not cuda), is_built=lambda: not cuda)
    if not cuda:
        patches.set(torch.mps, synchronize=lambda: card.wait("it was told to"))
        return
    capability = (9, 0) if bfloat16 else (7, 0)

    class Event:
        """To wait for one costs nothing where the card was given more to do since: it has that to go on with."""

        def __init__(self, *_: Any, **__: Any) -> None:
            self.place = -1

        def record(self, stream: Any = None) -> None:
            self.place = card.launched

        def wait(self, stream: Any = None) -> None: ...

        def query(self) -> bool:
            return True

        def synchronize(self) -> None:
            if self.place == card.launched:
                card.wait("it was told to")

    class Stream:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def wait_stream(self, stream: Any) -> None: ...

        def wait_event(self, event: Any) -> None: ...

        def synchronize(self) -> None:
            card.wait("it was told to")

    patches.set(
        torch.cuda,
        is_initialized=lambda: False,
        current_device=lambda: 0,
        set_device=lambda device: None,
        device=lambda device: contextlib.nullcontext(),
        get_device_name=lambda device=None: "pretended card",
        get_device_capability=lambda device=None: capability,
        is_bf16_supported=lambda including_emulation=True: bfloat16 or including_emulation,
        synchronize=lambda device=None: card.wait("it was told to"),
        mem_get_info=lambda device=None: (memory, memory),
        max_memory_allocated=lambda device=None: 0,
        memory_allocated=lambda device=None: 0,
        reset_peak_memory_stats=lambda device=None: None,
        empty_cache=lambda: None,
        is_current_stream_capturing=lambda: False,  # a build for CUDA asks the driver, which is not there
        get_rng_state=lambda device=None: torch.get_rng_state(),
        set_rng_state=lambda state, device=None: None,
        manual_seed_all=lambda seed: None,
        Event=Event,
        Stream=Stream,
        current_stream=lambda device=None: Stream(),
        stream=lambda stream: contextlib.nullcontext(),
        **graphs(card),
    )


def _teach(patches: Patches, card: Card, mode: Inside) -> None:
    """What PyTorch decides by the device in C++, where these tensors are on the CPU, or out of the mode's sight."""
    cast = torch.amp.autocast_mode.autocast
    cast_init, enter_mode = cast.__init__, torch.inference_mode
    run_thread, run_engine = threading.Thread.run, torch.autograd._engine_run_backward

    def renamed(kind: str) -> str:
        return "cpu" if kind == card.kind else kind

    def asks(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *kinds: function(*map(renamed, kinds))

    def within(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with mode:
                return function(*args, **kwargs)

        return run

    def init(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        cast_init(self, renamed(device_type), *args, **kwargs)

    def enter(self: Any) -> None:  # a tensor around another knows no inference mode: no gradients will do
        self.before = torch.is_grad_enabled()
        torch.set_grad_enabled(not self.mode)

    def leave(self: Any, *_: Any) -> None:
        torch.set_grad_enabled(self.before)

    patches.set(cast, __init__=init)
    patches.set(enter_mode, __enter__=enter, __exit__=leave)
    patches.set(threading.Thread, run=within(run_thread))
    patches.set(torch.autograd, _engine_run_backward=within(run_engine))
    patches.set(
        torch,
        Generator=type("Generator", (Generator,), {"card": card}),
        is_autocast_enabled=asks(torch.is_autocast_enabled),
        get_autocast_dtype=asks(torch.get_autocast_dtype),
    )
    optimizer, clip, foreach = (
        sys.modules[f"torch.{name}"] for name in ("optim.optimizer", "nn.utils.clip_grad", "utils._foreach_utils")
    )
    for module in (optimizer, clip):
        patches.set(module, _group_tensors_by_device_and_dtype=_grouped)
    patches.set(optimizer, _foreach_supported_types=[*optimizer._foreach_supported_types, Pretend])
    patches.set(foreach, _foreach_supported_types=[*foreach._foreach_supported_types, Pretend])
    # a product of the size that says how fast a card is would take minutes; the function stays the same object, as
    # others have imported it by name
    patches.set(devices.peak_flops, __code__=_peak_flops.__code__)


def _peak_flops(device: torch.device, dtype: str, size: int = 1024, seconds: float = 0.3) -> float:
    return 1e12


def _grouped(lists: list[list[Any]], with_indices: bool = False) -> dict[Any, Any]:
    """Lists of tensors by the device and the type of those of the first list."""
    groups: dict[Any, Any] = {}
    for i, tensor in enumerate(lists[0]):
        columns, indices = groups.setdefault((tensor.device, tensor.dtype), ([[] for _ in lists], []))
        for column, values in zip(columns, lists, strict=True):
            column += values[i : i + 1]
        indices.append(i)
    return groups


def _forget_caches() -> None:
    """Tensors that the package keeps by device; those of a card that has gone are no use to anybody."""
    for name, module in list(sys.modules.items()):
        if name.startswith("hwm."):
            for value in vars(module).values():
                if isinstance(value, functools._lru_cache_wrapper) and value.__module__ == name:
                    value.cache_clear()
