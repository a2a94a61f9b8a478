"""Caches of several rollouts as one, and back: trees of tensors that have a row for each rollout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hwm.errors import HwmError


def stack(caches: Sequence[Any], axis: int) -> Any:
    """Caches of single rollouts as that of one batch, their tensors joined along `axis`.

    Raises:
        HwmError: they are not alike, or hold something else than tensors, numbers, texts and trees of those.
    """
    return _map(lambda tensors: torch.cat(tensors, axis), caches)


def split(cache: Any, count: int, axis: int) -> list[Any]:
    """The cache of a batch of `count` rollouts as one of each, which share no memory.

    Raises:
        HwmError: a tensor has not `count` rows along `axis`, or something else is held than tensors, numbers, texts and
            trees of those.
    """

    def row(i: int) -> Callable[[list[Tensor]], Tensor]:
        def of(tensors: list[Tensor]) -> Tensor:
            shape = tuple(tensors[0].shape)
            if not -len(shape) <= axis < len(shape) or shape[axis] != count:
                raise HwmError(f"a tensor of shape {shape} in a cache has no axis {axis} of {count} rollouts")
            return tensors[0].narrow(axis, i, 1).clone()

        return of

    return [_map(row(i), [cache]) for i in range(count)]


def _map(function: Callable[[list[Tensor]], Tensor], trees: Sequence[Any]) -> Any:
    """A tree like the given ones, whose tensors are what `function` makes of those in one place of all trees."""
    first = trees[0]
    if any(type(tree) is not type(first) for tree in trees):
        raise HwmError(f"caches differ: {', '.join(sorted({type(tree).__name__ for tree in trees}))} in one place")
    if isinstance(first, Tensor):
        return function(list(trees))
    if isinstance(first, Mapping) and all(tree.keys() == first.keys() for tree in trees):
        return type(first)({key: _map(function, [tree[key] for tree in trees]) for key in first})  # type: ignore[call-arg]
    if isinstance(first, (tuple, list)) and all(len(tree) == len(first) for tree in trees):
        parts = [_map(function, each) for each in zip(*trees, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    if isinstance(first, (int, float, str, type(None))) and all(tree == first for tree in trees):
        return first
    if isinstance(first, (Mapping, tuple, list, int, float, str)):
        raise HwmError(f"caches differ in one place: {', '.join(str(tree)[:40] for tree in trees)}")
    raise HwmError(
        f"a cache holds a {type(first).__name__}, which cannot be told apart by rollouts: the model overrides "
        "`stack_caches` and `split_cache`, or leaves out `cache_axis`"
    )
