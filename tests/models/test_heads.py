"""Heads over whole ids and over their digits."""

import pytest
import torch
import torch.nn.functional as F

from hwm.models.heads import DigitHead, TokenHead
from hwm.objectives.cells import Cells
from hwm.types import split_digits

LEVELS = (3, 4, 5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dim", [8, 16])  # fewer states than logits, and more: of masked tokens, and of all
def test_digit_head_loss_equals_one_cross_entropy_a_digit(smoothing, dim):
    head, h, ids = DigitHead(LEVELS, dim), torch.randn(2, 7, dim), torch.randint(60, (2, 7))
    masked = torch.rand(2, 7) < 0.5
    masked[0, 0] = True
    digits, logits = split_digits(ids[masked], LEVELS), head(h[masked]).split(LEVELS, -1)
    naive = sum(F.cross_entropy(x, digits[:, i], label_smoothing=smoothing) for i, x in enumerate(logits))
    loss, accuracy = head.loss(h, ids, Cells(masked), smoothing)
    torch.testing.assert_close(loss, naive)
    right = torch.stack([x.argmax(-1) for x in logits], -1) == digits
    torch.testing.assert_close(accuracy, right.all(-1).float().mean())


def test_digit_draws_join_to_the_ids_they_came_from():
    head, ids = DigitHead(LEVELS, 8), torch.arange(60)
    one_hot = torch.cat(
        [F.one_hot(d, n) for d, n in zip(split_digits(ids, LEVELS).unbind(-1), LEVELS, strict=True)], -1
    )
    assert torch.equal(head.join(tuple(part.argmax(-1) for part in head.draws(one_hot.float()))), ids)


def test_a_head_that_knows_is_accurate():
    head = TokenHead(6, 6)
    torch.nn.init.eye_(head.weight)
    ids = torch.randint(6, (4, 100))
    _, accuracy = head.loss(F.one_hot(ids, 6).float(), ids, Cells(torch.rand(4, 100) < 0.7))
    assert accuracy == 1
