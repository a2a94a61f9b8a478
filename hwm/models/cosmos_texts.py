"""Encoded texts that a model reads.

Shape suffixes: B batch, C tokens of a text, E its width.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from hwm.errors import HwmError
from hwm.weights import load_tensors


class Text(NamedTuple):
    """An encoded text: its vectors (B, C, E), and bool (B, C) which of them are read; None: all."""

    context: Tensor
    mask: Tensor | None = None

    @classmethod
    def of_file(cls, path: Path) -> Text:
        """The text of a safetensors file: `context` (C, E) and, where some of it is padding, `mask` (C,), not 0 where
        it is read. Both may have an axis of length 1 before.

        Raises:
            HwmError: the file cannot be read, or holds something else.
        """
        found = load_tensors(path)
        if not {"context"} <= found.keys() <= {"context", "mask"}:
            raise HwmError(f"{path} holds {sorted(found)}; an encoded text is `context` (C, E) and perhaps `mask` (C,)")
        context, mask = found["context"], found.get("mask")
        context = context[None] if context.ndim == 2 else context
        mask = mask if mask is None else mask.reshape(1, -1).bool()
        if context.ndim != 3 or len(context) != 1 or not context.numel() or not context.is_floating_point():
            raise HwmError(f"{path}: `context` is {found['context'].dtype} {tuple(found['context'].shape)}, not (C, E)")
        if not context.isfinite().all():
            raise HwmError(f"{path}: `context` has values that are not finite")
        if mask is not None and (mask.shape != context.shape[:2] or not mask.any()):
            raise HwmError(
                f"{path}: `mask` is {tuple(found['mask'].shape)} with {int(mask.sum())} places to be read, for a text "
                f"of {context.shape[1]}"
            )
        return cls(context if mask is None else context[mask][None])  # without a mask more kernels serve

    def to(self, batch: int, like: Tensor) -> Text:
        """The same for every row of a batch, where and of the type that a tensor is."""
        context = self.context.to(like.device, like.dtype).expand(batch, -1, -1)
        return Text(context, None if self.mask is None else self.mask.to(like.device).expand(batch, -1))
