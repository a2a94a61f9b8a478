import pytest
import torch
from torch import nn

from hwm.errors import HwmError
from hwm.nn.rope import rope_1d, rope_2d, rope_3d, rotate

CPU = torch.device("cpu")


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
    cos, sin = rope_2d((4, 4), 16, CPU)
    angle = torch.atan2(sin, cos)
    expected = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(angle[4], torch.cat([expected, torch.zeros(4)]))  # row 1, column 0
    torch.testing.assert_close(angle[1], torch.cat([torch.zeros(4), expected]))  # row 0, column 1


def test_pairs_of_three_dimensions_turn_with_time_then_row_then_column():
    cos, sin = rope_3d((0.0, 2.5), (2, 3), 20, CPU)
    angle, side, time = torch.atan2(sin, cos), 10_000.0 ** -(torch.arange(3) / 3), 10_000.0 ** -(torch.arange(4) / 4)
    torch.testing.assert_close(angle[6], torch.cat([2.5 * time, 0 * side, 0 * side]))
    torch.testing.assert_close(angle[3], torch.cat([0 * time, side, 0 * side]))
    torch.testing.assert_close(angle[1], torch.cat([0 * time, 0 * side, side]))


def test_a_centred_grid_of_one_cell_turns_with_time_alone():
    times = (0.5, 2.0)
    one, odd = (rope_3d(times, grid, 16, CPU, centred=True) for grid in ((1, 1), (3, 5)))
    for cell, grid in zip(one, odd, strict=True):
        torch.testing.assert_close(cell, grid.view(2, 15, 8)[:, 7])
    assert not one[1][:, -4:].any()


def test_positions_in_three_dimensions_need_room_for_three():
    for dim in (4, 9):
        with pytest.raises(HwmError, match="at least 6"):
            rope_3d((0.0,), (1, 1), dim, CPU)


def test_published_frequencies_leave_all_but_one_pair_standing():
    cos, _ = rope_2d((2, 2), 64, CPU, published=True)
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
