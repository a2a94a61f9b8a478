"""Masked cells by their places: what a boolean index would give, forward and backward."""

from __future__ import annotations

import pytest
import torch

from hwm.objectives.cells import Cells

MASKS = {
    "some": torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0)) < 0.4,
    "none": torch.zeros(2, 3, 5, dtype=torch.bool),
    "all": torch.ones(2, 3, 5, dtype=torch.bool),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("rest", [(), (4,), (4, 2)])
def test_they_are_what_a_boolean_index_gives_and_so_are_gradients(mask: torch.Tensor, rest: tuple[int, ...]) -> None:
    laid_out = torch.randn(3, 2, 5, *rest)
    one, two = (laid_out.clone().requires_grad_() for _ in range(2))
    cells, wanted = Cells(mask).of(one.transpose(0, 1)), two.transpose(0, 1)[mask]  # as states are: time first
    assert torch.equal(cells, wanted)
    weight = torch.randn_like(wanted)
    (cells * weight).sum().backward()
    (wanted * weight).sum().backward()
    assert one.grad is not None
    assert two.grad is not None
    assert torch.equal(one.grad, two.grad)


def test_how_many_they_are_is_known_without_a_value_of_the_device() -> None:
    """Tensors of the meta device have none to ask for."""
    mask, elsewhere = MASKS["some"], torch.device("meta")
    cells = Cells(mask, elsewhere)
    assert cells.mask.device == elsewhere
    assert cells.of(torch.zeros(2, 3, 5, 4, device=elsewhere)).shape == (int(mask.sum()), 4)


def test_a_mask_is_sent_once_and_so_are_its_places(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr("hwm.objectives.cells.sent", lambda x, device: sent.append(x.dtype) or x)
    cells, x = Cells(MASKS["some"]), torch.randn(2, 3, 5, 4)
    for _ in range(2):
        cells.of(x)
        assert torch.equal(cells.mask, MASKS["some"])
    assert sent == [torch.int64, torch.bool]
