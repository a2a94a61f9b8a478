"""Which places of a tensor are meant, of which the host knows how many there are.

A boolean index makes the host wait: only the device knows how many places it names, and what follows has to be as
long. Masks of training are drawn on the host, as small as they are, and sent along with the places that they name.

Shape suffixes: ... axes of the mask, N places.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from hwm.types import sent


class Cells:
    """Some places of tensors of the shape (...), or that begin with it.

    Attributes:
        device: where those tensors are.
    """

    def __init__(self, chosen: Tensor, device: torch.device | None = None) -> None:
        """
        Args:
            chosen: (...) bool, on the host: from elsewhere it is fetched, which waits.
            device: that of `chosen` unless it is told.
        """
        self.device = device or chosen.device
        self._chosen = chosen.cpu()

    @cached_property
    def mask(self) -> Tensor:
        """(...) bool on the device."""
        return sent(self._chosen, self.device)

    @cached_property
    def _places(self) -> Tensor:
        return sent(self._chosen.flatten().nonzero()[:, 0], self.device)

    def of(self, x: Tensor) -> Tensor:
        """What `x` (..., *rest) has in these places, (N, *rest), in row-major order: `x[mask]`."""
        return x.flatten(0, self._chosen.ndim - 1).index_select(0, self._places)
