"""Attention, embeddings, heads, actions, and the four-stream blocks."""

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwm.nn import attention, layers
from hwm.nn.actions import CLAMP, ActionEncoder
from hwm.nn.attention import attend
from hwm.nn.st import PerStream, by_run, runs
from hwm.nn.streams import FULL, MODALITY, OWN
from hwm.nn.tokens import DigitTable, TokenEmbedding
from hwm.types import ActionSpec, DataSpec, LatentSpec, split_digits

LEVELS = (3, 4, 5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("keys", [6, attention.FLOAT32.first + 1, attention.KEPT_KEYS + 1])
def test_attention_written_out_equals_the_fused_kernel(keys, scale, masked, monkeypatch):
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", 3 * 4 * keys)  # one problem of the two at a time
    mask = torch.rand(4, keys) < 0.5
    mask[:, 0] = True

    def run(most):
        monkeypatch.setattr(attention, "FLOAT32", attention.FLOAT32._replace(keys=most))
        torch.manual_seed(0)
        given = [torch.randn(2, 3, n, 8, requires_grad=True) for n in (4, keys, keys)]
        out = attend(*given, mask if masked else None, scale)
        return out, *torch.autograd.grad(out.square().sum(), given)

    for written_out, fused in zip(run(keys), run(0), strict=True):
        torch.testing.assert_close(written_out, fused)


def test_half_precision_is_written_out_up_to_more_keys():
    q, k, v = (torch.randn(2, 3, 200, 8) for _ in range(3))
    half = attend(*(x.bfloat16() for x in (q, k, v)))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), attend(q, k, v), atol=0.02, rtol=0.02)


# ---------------------------------------------------------------------- what a training pass keeps
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 1), st.booleans())
def test_in_parts_or_at_once_is_the_same(places, at_once, axis, two):
    linear = torch.nn.Linear(3, 5)
    shapes = [(places, 2, 3), (places, 2, 3)] if axis == 0 else [(2, places, 3), (2, places, 3)]
    given = [torch.randn(s, requires_grad=True) for s in shapes[: 1 + two]]
    seen = []

    def function(*parts):
        seen.append(parts[0].shape[axis])
        return linear(sum(parts)).square()

    with mock.patch.object(layers, "ROWS_AT_ONCE", at_once):
        out = layers.in_parts(function, axis, *given)
    assert sum(seen) == places
    assert len(seen) == 1 or max(seen) * 2 <= max(at_once, 2)
    expected = linear(sum(given)).square()
    torch.testing.assert_close(out, expected)
    for a, b in zip(*(torch.autograd.grad(x.sum(), given) for x in (out, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_recomputed_is_run_again_in_the_backward_pass_alone():
    x, ran = torch.randn(3, 4, requires_grad=True), []

    def function(y):
        ran.append(torch.is_grad_enabled())
        return y.sin().exp().sum()

    layers.recomputed(function, x).backward()
    assert len(ran) == 2
    torch.testing.assert_close(x.grad, x.detach().cos() * x.detach().sin().exp())
    with torch.no_grad():
        layers.recomputed(function, x)
    assert ran[2:] == [False]


def test_a_sum_takes_the_type_of_what_it_is_added_to():
    x, fresh = torch.ones(3), torch.ones(3)
    assert layers.added(x, fresh).data_ptr() != fresh.data_ptr(), "a selective checkpoint may hold it"
    with torch.no_grad():
        assert layers.added(x, fresh).data_ptr() == fresh.data_ptr()
    assert x.tolist() == [1, 1, 1]
    half = layers.added(x, torch.full((3,), 2**-10, dtype=torch.bfloat16))
    assert half.dtype == torch.float32
    assert half[0] == 1 + 2**-10


def test_digit_embedding_is_the_sum_of_its_tables():
    embed, ids = DigitTable(LEVELS, 8), torch.randint(60, (2, 5))
    tables = embed.weight.split(LEVELS)
    digits = split_digits(ids, LEVELS)
    torch.testing.assert_close(embed(ids), sum(t[digits[..., i]] for i, t in enumerate(tables)))


@pytest.mark.parametrize("table", [torch.nn.Embedding(60, 8), DigitTable(LEVELS, 8)])
def test_masked_ids_are_not_looked_at(table):
    embed = TokenEmbedding(table, LatentSpec((5, 1), 60))
    ids, masked = torch.randint(60, (2, 5)), torch.tensor([True, False, True, False, False])
    other = torch.where(masked, (ids + 7) % 60, ids)
    torch.testing.assert_close(embed(ids, masked.expand(2, 5)), embed(other, masked.expand(2, 5)))


def spec(stride: int, per_step: int, std: tuple[float, ...] = (1.0, 2.0)) -> DataSpec:
    actions = ActionSpec(per_step, ("left", "right"), (0.5, -1.0), std)
    return DataSpec(LatentSpec((2, 2), vocab=8, stride=stride), {"toy": actions})


def test_the_first_latent_of_a_strided_tokenizer_has_one_real_action():
    encoder = ActionEncoder(spec(8, 8), 8, positions=3)
    assert encoder.position.shape == (17, 8)
    actions = torch.randn(1, 3, 8, 2, requires_grad=True)
    out = encoder(actions, "toy")
    assert out.shape == (3, 1, 8)
    out[0].square().sum().backward()
    read = actions.grad.abs().sum(-1)[0] > 0
    assert read[0].tolist() == [False] * 7 + [True]
    assert not read[1:].any()


@pytest.mark.parametrize("ordered", [False, True])
def test_every_action_counts_without_a_stride_and_positions_are_shared(ordered):
    encoder = ActionEncoder(spec(1, 3), 8, positions=1, ordered=ordered)
    torch.nn.init.normal_(encoder.position)
    step = torch.randn(1, 1, 3, 2, requires_grad=True)
    out = encoder(step.expand(1, 4, 3, 2), "toy")
    torch.testing.assert_close(out[0], out[3])
    out.square().sum().backward()
    assert step.grad.abs().sum(-1).all()
    assert torch.allclose(encoder(step.flip(2), "toy"), out[:1]) is not ordered


def test_changes_tell_a_moving_command_from_a_resting_one():
    encoder = ActionEncoder(spec(1, 2), 8, positions=1, changes=True)
    actions = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0]).view(1, 3, 2, 1).expand(1, 3, 2, 2)
    moving, resting = encoder(actions, "toy")[1:]
    assert not torch.allclose(moving, resting)


def test_constant_dimensions_and_outliers_are_harmless():
    encoder = ActionEncoder(spec(1, 2, std=(0.0, 1.0)), 8, positions=1)
    x, scale = encoder.normalise(torch.tensor([0.5, 1e6]), encoder.specs["toy"])
    assert x.tolist() == [0.0, CLAMP]
    assert scale.tolist() == [1.0, 1.0]


def test_neighbouring_steps_with_the_same_weights_are_one_call():
    roles = (("past_video", 2), ("future_video", 1))
    make = torch.nn.Identity
    assert runs(roles, PerStream(FULL, make), PerStream(MODALITY, make)) == [("past_video", 3)]
    assert runs(roles, PerStream(FULL, make), PerStream(OWN, make)) == list(roles)


def test_each_stream_goes_through_its_own_weights():
    scale = PerStream(OWN, lambda: torch.nn.Linear(1, 1, bias=False))
    for i, module in enumerate(scale.values()):
        torch.nn.init.constant_(module.weight, i + 1.0)
    roles = (("past_video", 2), ("future_video", 1))
    out = by_run(torch.ones(3, 1), roles, (scale,), lambda x, role: scale.of(role)(x))
    assert out.flatten().tolist() == [1.0, 1.0, 2.0]
