"""Pictures moved by a flow, and flows of a camera and of a network."""

from __future__ import annotations

import pytest
import torch

from hwm.nn.moving import Flow, camera_flow, moved, random_camera


def flow_of(right: float, down: float, height: int, width: int) -> torch.Tensor:
    return torch.tensor([right, down]).view(1, 2, 1, 1).expand(1, 2, height, width)


def test_a_cell_is_taken_from_where_its_flow_points() -> None:
    x = torch.randn(1, 3, 5, 7)
    out = moved(x, flow_of(2, -1, 5, 7))
    torch.testing.assert_close(out[..., 1:, :-2], x[..., :-1, 2:])
    torch.testing.assert_close(out[..., 1:, -1], x[..., :-1, -1], msg="beyond an edge the edge goes on")
    torch.testing.assert_close(moved(x, flow_of(0, 0, 5, 7)), x)


def test_between_cells_it_is_interpolated() -> None:
    x = torch.randn(1, 2, 4, 6)
    torch.testing.assert_close(moved(x, flow_of(0.25, 0, 4, 6))[..., :-1], 0.75 * x[..., :-1] + 0.25 * x[..., 1:])


def test_each_cell_has_a_flow_of_its_own() -> None:
    x, flow = torch.randn(1, 1, 4, 4), torch.zeros(1, 2, 4, 4)
    flow[0, :, 1, 2] = torch.tensor([1.0, 2.0])
    out = moved(x, flow)
    assert out[0, 0, 1, 2].item() == pytest.approx(x[0, 0, 3, 3].item())
    out[0, 0, 1, 2] = x[0, 0, 1, 2]
    torch.testing.assert_close(out, x)


def test_views_do_not_move_into_each_other() -> None:
    top, wrist = torch.zeros(1, 1, 3, 4), torch.ones(1, 1, 3, 4)
    out = moved(torch.cat([top, wrist], 2), flow_of(0, 2, 6, 4), views=2)
    torch.testing.assert_close(out, torch.cat([top, wrist], 2))


@pytest.mark.parametrize("grid", [(8, 8), (16, 32)])
def test_a_camera_shifts_and_zooms_alike_at_every_resolution(grid: tuple[int, int]) -> None:
    shift, zoom = torch.tensor([[0.125, -0.25]]), torch.tensor([1.5])
    # a picture of its own coordinates, in shares of its sides from the middle
    down, right = torch.meshgrid(*((torch.arange(n) + 0.5) / n - 0.5 for n in grid), indexing="ij")
    picture = torch.stack([right, down])[None]
    out = moved(picture, camera_flow(shift, zoom, grid))
    want = 1.5 * picture + shift[..., None, None]
    inside = (want.abs() < 0.5 - 0.5 / min(grid)).all(1, keepdim=True).expand_as(want)
    assert inside.float().mean() > 0.2
    torch.testing.assert_close(out[inside], want[inside])


def test_random_cameras_stay_within_their_bounds_and_fill_them() -> None:
    shift, zoom = random_camera(2000, 0.1, 1.25, torch.device("cpu"))
    assert shift.abs().max() <= 0.1
    assert shift.min() < -0.09
    assert shift.max() > 0.09
    assert zoom.max() <= 1.25
    assert zoom.min() >= 0.8
    assert zoom.min() < 0.82
    assert zoom.max() > 1.22


def test_a_flow_is_still_at_first_and_learns_how_a_camera_turns_and_drives() -> None:
    torch.manual_seed(0)
    flow = Flow(16, 8, patch=2, views=2)
    optimizer = torch.optim.Adam(flow.parameters(), 2e-2)
    features, how = torch.randn(8, 16, 8, 4), torch.randn(8, 8)
    assert flow(features, how).shape == (8, 2, 16, 8)
    assert not flow(features, how).any()
    want = torch.cat([camera_flow(0.1 * how[:, :2], (0.1 * how[:, 2]).exp(), (8, 8))] * 2, 2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (flow(features, how) - want).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * want.square().mean()
