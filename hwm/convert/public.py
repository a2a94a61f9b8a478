"""Which part of the public path computed an output: seen while it is computed, and not taken on the replay's word."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

from torch import Tensor

PUBLIC = ("loss", "predict", "rollout", "teacher_forced", "encode", "decode")
"""What users call of models and tokenizers."""


@dataclass(frozen=True)
class Inner:
    """A recorded output, or a part of one, that the public path does not give.

    Attributes:
        what: of the model gives it instead, in words.
        make: computes it.
    """

    what: str
    make: Callable[[], Tensor]

    def __call__(self) -> Tensor:
        return self.make()


@contextmanager
def watched(kind: type) -> Iterator[list[str]]:
    """Names of the public methods of a class that are called meanwhile, each once, but by no other of them."""
    called: list[str] = []
    depth = 0

    def noting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            if not depth and name not in called:
                called.append(name)
            depth += 1
            try:
                return method(*args, **kwargs)
            finally:
                depth -= 1

        return run

    own = {name: vars(kind)[name] for name in PUBLIC if name in vars(kind)}
    found = [name for name in PUBLIC if hasattr(kind, name)]
    for name in found:
        setattr(kind, name, noting(name, getattr(kind, name)))
    try:
        yield called
    finally:
        for name in found:
            if name in own:
                setattr(kind, name, own[name])
            else:
                delattr(kind, name)


def path_of(called: list[str], output: Callable[[], Tensor]) -> str:
    """In words: the public methods that an output took, and what inside it says that it needs; "" for neither."""
    inner = [f"inner: {output.what}"] if isinstance(output, Inner) else []
    return "; ".join([*([", ".join(called)] if called else []), *inner])
