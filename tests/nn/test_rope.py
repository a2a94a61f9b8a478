import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hwm.errors import HwmError
from hwm.nn.rope import Table, Yarn, coordinates, rope_1d, rope_2d, rope_3d, rotate, shares, sincos_3d

CPU = torch.device("cpu")


def of_pairs(table: Table) -> Table:
    """Cosines and sines (..., d/2) of the pairs of channels, of which tables hold two each."""
    (cos, cos_too), (minus, sin) = (x.chunk(2, -1) for x in table)
    assert torch.equal(cos, cos_too)
    assert torch.equal(minus, -sin)
    return cos, sin


@pytest.mark.parametrize("table", [rope_1d(tuple(range(12)), 16, CPU), rope_2d((3, 4), 16, CPU)])
def test_rotation_keeps_norms(table):
    x = torch.randn(5, 12, 16)
    torch.testing.assert_close(rotate(x, table).norm(dim=-1), x.norm(dim=-1))


def test_scores_depend_on_distance_alone():
    q, k = torch.randn(16), torch.randn(16)

    def score(i: int, j: int) -> torch.Tensor:
        (a,), (b,) = rotate(q[None], rope_1d((i,), 16, CPU)), rotate(k[None], rope_1d((j,), 16, CPU))
        return a @ b

    torch.testing.assert_close(score(3, 1), score(40, 38))


def test_frequencies_of_both_axes_are_the_intended_ones():
    cos, sin = of_pairs(rope_2d((4, 4), 16, CPU))
    angle = torch.atan2(sin, cos)
    expected = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(angle[4], torch.cat([expected, torch.zeros(4)]))  # row 1, column 0
    torch.testing.assert_close(angle[1], torch.cat([torch.zeros(4), expected]))  # row 0, column 1


def test_pairs_of_three_dimensions_turn_with_time_then_row_then_column():
    cos, sin = of_pairs(rope_3d((0.0, 2.5), (2, 3), 20, CPU))
    angle, side, time = torch.atan2(sin, cos), 10_000.0 ** -(torch.arange(3) / 3), 10_000.0 ** -(torch.arange(4) / 4)
    torch.testing.assert_close(angle[6], torch.cat([2.5 * time, 0 * side, 0 * side]))
    torch.testing.assert_close(angle[3], torch.cat([0 * time, side, 0 * side]))
    torch.testing.assert_close(angle[1], torch.cat([0 * time, 0 * side, side]))


def test_a_centred_grid_of_one_cell_turns_with_time_alone():
    times = (0.5, 2.0)
    one, odd = (of_pairs(rope_3d(times, grid, 16, CPU, centred=True)) for grid in ((1, 1), (3, 5)))
    for cell, grid in zip(one, odd, strict=True):
        torch.testing.assert_close(cell, grid.view(2, 15, 8)[:, 7])
    assert not one[1][:, -4:].any()


def test_positions_in_three_dimensions_need_room_for_three():
    for dim in (4, 9):
        with pytest.raises(HwmError, match="at least 6"):
            rope_3d((0.0,), (1, 1), dim, CPU)


def test_published_frequencies_leave_all_but_one_pair_standing():
    cos, _ = of_pairs(rope_2d((2, 2), 64, CPU, published=True))
    torch.testing.assert_close(cos[2, 0], torch.tensor(32.0).cos())
    torch.testing.assert_close(cos[2, 1:16], torch.ones(15))


def test_tables_are_no_part_of_a_module_and_survive_a_cast():
    class Uses(nn.Module):
        def forward(self, x):
            return rotate(x, rope_1d((100,), 8, x.device))

    before = rope_1d((100,), 8, CPU)[0].clone()
    module = Uses().to(torch.bfloat16)
    module(torch.randn(1, 8, dtype=torch.bfloat16))
    assert not module.state_dict()
    table = rope_1d((100,), 8, CPU)[0]
    assert table.dtype == torch.float32
    assert torch.equal(table, before)


def test_tables_made_in_inference_mode_can_be_trained_with():
    with torch.inference_mode():
        rope_1d((7.5,), 8, CPU)
    x = torch.randn(1, 8, requires_grad=True)
    rotate(x, rope_1d((7.5,), 8, CPU)).sum().backward()
    assert x.grad is not None


def test_a_width_that_does_not_split_is_refused():
    with pytest.raises(HwmError, match="divisible by 4"):
        rope_2d((2, 2), 6, CPU)


def test_rotary_positions_in_closed_form() -> None:
    cos, sin = of_pairs(rope_3d((0, 1, 2), (4, 5), 128, CPU, theta=500_000.0))
    assert cos.shape == (60, 64)
    t, h, w = 2, 3, 1
    row = (t * 4 + h) * 5 + w
    angles = [t * 500_000 ** (-2 * j / 44) for j in range(22)]
    angles += [place * 500_000 ** (-2 * j / 42) for place in (h, w) for j in range(21)]
    torch.testing.assert_close(cos[row], torch.tensor(angles).cos())
    torch.testing.assert_close(sin[row], torch.tensor(angles).sin())
    led = of_pairs(rope_3d((0, 1, 2), (4, 5), 128, CPU, theta=500_000.0, lead=1))[0]
    assert torch.equal(led, torch.cat([torch.ones(1, 64), cos]))


def test_yarn_halves_all_of_time_and_most_of_space() -> None:
    yarn = Yarn(2.0, 4.0, 1.0, 3, 40)
    time = torch.tensor([500_000 ** (-2 * j / 44) for j in range(22)])
    torch.testing.assert_close(yarn.slowed(time, 3), time / 2)
    side = torch.tensor([500_000 ** (-2 * j / 42) for j in range(21)])
    factor = yarn.slowed(side, 40) / side
    assert factor[:4].tolist() == pytest.approx([1.0, 0.9013, 0.6374, 0.5], abs=1e-4)
    assert (factor[4:] == 0.5).all()
    tables = (rope_3d((0, 1), (1, 1), 128, CPU, theta=500_000.0, yarn=y) for y in (yarn, None))
    slow, plain = (of_pairs(table)[1][1, :22].asin() for table in tables)
    torch.testing.assert_close(slow[1:] * 2, plain[1:])


def test_absolute_positions_in_closed_form() -> None:
    table = sincos_3d(2, (3, 4), 4096, CPU, torch.float32, 1)
    assert table.shape == (25, 4096)
    assert not table[0].any()
    t, h, w = 1, 2, 3
    row = table[1 + (t * 3 + h) * 4 + w]
    expected: list[float] = []
    for place, share in ((t, 1368), (h, 1364), (w, 1364)):
        angles = [place * 10_000 ** (-2 * j / share) for j in range(share // 2)]
        expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    torch.testing.assert_close(row, torch.tensor(expected))


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.sampled_from([8, 12, 20, 48]))
def test_tables_of_longer_grids_begin_with_those_of_shorter(t: int, h: int, w: int, more: int, dim: int) -> None:
    for one, two in zip(*(rope_3d(tuple(range(n)), (h, w), dim, CPU, theta=100.0) for n in (t, t + more)), strict=True):
        assert torch.equal(two[: len(one)], one)
    one, two = (sincos_3d(n, (h, w), dim, CPU, torch.bfloat16) for n in (t, t + more))
    assert torch.equal(two[: len(one)], one)


@given(st.integers(3, 100).map(lambda n: 2 * n))
def test_a_width_is_shared_out_in_whole_pairs_and_time_has_the_rest(dim):
    time, side = shares(dim)
    assert time + 2 * side == dim
    assert time % 2 == side % 2 == 0
    assert side <= time < side + 6


@pytest.mark.parametrize("dim", [0, 2, 4, 7, 9])
def test_a_width_without_room_for_three_is_refused(dim):
    with pytest.raises(HwmError, match=f"even width of at least 6, got {dim}"):
        shares(dim)


def test_coordinates_are_of_times_then_rows_then_columns():
    found = torch.cat(coordinates((0.5, 4.0), (2, 3), False), 1)
    assert found.dtype == torch.float64
    assert found.tolist() == [[t, float(r), float(c)] for t in (0.5, 4.0) for r in range(2) for c in range(3)]
    centred = torch.cat(coordinates((0.5, 4.0), (2, 3), True), 1)
    assert torch.equal(centred, found - torch.tensor([0, 0.5, 1.0]))


@given(
    st.floats(1.5, 8), st.floats(3, 9), st.floats(0.5, 2), st.integers(2, 50), st.lists(st.floats(1e-6, 9), min_size=1)
)
def test_frequencies_are_slowed_by_how_often_they_turn(scale, fast, slow, length, frequencies):
    frequency = torch.tensor(frequencies, dtype=torch.float64)
    turns, found = frequency * length / (2 * math.pi), Yarn(scale, fast, slow, 1, 1).slowed(frequency, length)
    torch.testing.assert_close(found[turns > fast], frequency[turns > fast])
    torch.testing.assert_close(found[turns < slow], frequency[turns < slow] / scale)
    between = (frequency / scale + (frequency - frequency / scale) * (turns - slow) / (fast - slow))[
        (turns >= slow) & (turns <= fast)
    ]
    torch.testing.assert_close(found[(turns >= slow) & (turns <= fast)], between)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rotation_is_a_product_of_complex_numbers_and_its_gradient_one_backwards(dtype):
    """Of half precision the first product of each sum is rounded, and the sum."""
    table = rope_1d((0.0, 3.0, 7.5), 8, CPU)
    cos, sin = (t.to(dtype).float() for t in of_pairs(table))
    x, g = (torch.randn(2, 4, 3, 8).to(dtype) for _ in range(2))
    a, b = x.float().chunk(2, -1)
    first, second = ((half * cos).to(dtype).float() for half in (a, b))
    found = rotate(x.requires_grad_(), table)
    assert found.dtype == dtype
    torch.testing.assert_close(found, torch.cat([first - b * sin, second + a * sin], -1).to(dtype))
    back = torch.complex(*g.float().chunk(2, -1)) * torch.complex(cos, -sin)
    (gradient,) = torch.autograd.grad(found, x, g)
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(gradient.float(), torch.cat([back.real, back.imag], -1), atol=tolerance, rtol=tolerance)
