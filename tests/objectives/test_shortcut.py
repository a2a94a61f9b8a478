"""Mean velocities: targets against a flow that is known in closed form, draws, and what few steps then give."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hwm.objectives.flow import FlowSampler, column, integrate
from hwm.objectives.shortcut import HALVINGS, OBJECTIVES, Means, draw_halves, training_targets

CPU = torch.device("cpu")


def width(t: Tensor, spread: float) -> Tensor:
    """Standard deviation at time t of the path from N(0, 1) to N(0, spread^2)."""
    return ((1 - t) ** 2 + (spread * t) ** 2).sqrt()


def exact(x: Tensor, t_B: Tensor, d_B: Tensor, spread: float) -> Tensor:
    """The flow scales x by the ratio of the widths: its velocity, and its mean velocity over d."""
    at, end = width(t_B, spread), width(t_B + d_B, spread)
    rate = ((spread**2 + 1) * t_B - 1) / at**2
    mean = torch.where(d_B == 0, rate, (end / at - 1) / torch.where(d_B == 0, 1, d_B))
    return x * column(mean, x)


@pytest.mark.parametrize("name", OBJECTIVES)
@given(spread=st.floats(0.2, 3), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_the_true_mean_velocity_is_its_own_target(name: str, spread: float, seed: int) -> None:
    torch.manual_seed(seed)
    objective = OBJECTIVES[name]
    t_B, d_B = (x.double() for x in objective.draw(8, CPU))
    d_B[d_B < 2 ** -(HALVINGS - 1)] = 1 / 4  # it takes the velocity for the mean over its smallest step size
    t_B = torch.minimum(t_B, 1 - d_B)
    x, means = torch.randn(8, 3, 2, dtype=torch.float64), partial(exact, spread=spread)
    torch.testing.assert_close(objective.target(means, x, t_B, d_B), means(x, t_B, d_B), atol=1e-9, rtol=1e-9)


@given(a=st.floats(-2, 2), b=st.floats(-2, 2), c=st.floats(-2, 2), seed=st.integers(0, 1000))
@settings(max_examples=25)
def test_targets_by_hand(a: float, b: float, c: float, seed: int) -> None:
    """Of u(x, t, d) = a x + b t + c d."""
    torch.manual_seed(seed)
    x = torch.randn(5, 3, dtype=torch.float64)
    t_B, d_B = torch.rand(5).double(), torch.tensor([1, 0.5, 0.25, 0.125, 0.0625]).double()
    t, d = t_B[:, None], d_B[:, None]

    def means(x: Tensor, t_B: Tensor, d_B: Tensor) -> Tensor:
        return a * x + b * t_B[:, None] + c * d_B[:, None]

    first = a * x + b * t + c * d / 2
    second = a * (x + d / 2 * first) + b * (t + d / 2) + c * d / 2
    target = OBJECTIVES["shortcut"].target(means, x, t_B, d_B)
    torch.testing.assert_close(target, (first + second) / 2)


def test_spans_end_within_the_path() -> None:
    torch.manual_seed(0)
    t, d = draw_halves(4000, CPU)
    pieces = (1 / d).log2()
    assert set(pieces.tolist()) == set(map(float, range(HALVINGS + 1)))
    assert torch.equal(t / d, (t / d).round())
    assert (t + d).max() == 1
    assert t.min() == 0
    assert set(t[d == 0.25].tolist()) == {0, 0.25, 0.5, 0.75}
    assert abs(t[d == 1 / 32].mean() - 31 / 64) < 0.05
    assert abs((d == 1).float().mean() - 1 / 6) < 0.03


def test_a_lesson_of_no_spans_is_flow_matching_and_spans_are_the_last_examples() -> None:
    data, noise = torch.randn(2, 6, 3)
    asked: list[slice] = []

    def means_of(part: slice) -> Means:
        asked.append(part)
        return lambda x, t, d: torch.full_like(x, 7.0)

    plain = training_targets(None, 0, means_of, data, noise)
    assert torch.equal(plain.target, data - noise)
    assert not plain.step_size.any()
    torch.testing.assert_close(plain.noisy, noise + plain.t[:, None] * (data - noise))
    shown = training_targets(OBJECTIVES["shortcut"], 2, means_of, data, noise)
    assert asked == [slice(4, 6)]
    assert torch.equal(shown.target[:4], (data - noise)[:4])
    assert torch.equal(shown.target[4:], torch.full((2, 3), 7.0))
    assert torch.equal(shown.step_size > 0, torch.tensor([False] * 4 + [True] * 2))
    torch.testing.assert_close(shown.noisy, noise + shown.t[:, None] * (data - noise))


class Small(nn.Module):
    """Mean velocities of numbers (B, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor, t_B: Tensor, d_B: Tensor) -> Tensor:
        out: Tensor = self.net(torch.cat([x, t_B[:, None], d_B[:, None]], 1))
        return out


@pytest.mark.parametrize("name", [None, *OBJECTIVES])
def test_few_steps_come_nearer_to_the_data_where_spans_were_learned(name: str | None) -> None:
    """Data are -1 or 1."""
    torch.manual_seed(0)
    model, size = Small(), 512
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(800):
        data, noise = torch.randint(2, (size, 1)) * 2.0 - 1, torch.randn(size, 1)
        shown = training_targets(
            OBJECTIVES[name] if name else None, size // 2 if name else 0, lambda _: model, data, noise
        )
        loss = (model(shown.noisy, shown.t, shown.step_size) - shown.target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def field(x: Tensor, t: float, step_size: float) -> Tensor:
        size = (len(x),)
        return model(x, torch.full(size, t), torch.full(size, step_size if name else 0.0))

    with torch.no_grad():
        found = {n: integrate(field, torch.randn(2000, 1), FlowSampler(n)).abs() for n in (1, 4)}
    off = {n: (x - 1).square().mean().item() for n, x in found.items()}
    if name:
        assert off[1] < 0.25
        assert off[4] < 0.12
    else:  # at the velocity of the first moment one step leads to about the mean, 0
        assert off[1] > 0.28
        assert off[4] > 0.18


def test_half_of_the_shortest_span_counts_as_none() -> None:
    asked: list[float] = []

    def means(x: Tensor, t_B: Tensor, d_B: Tensor) -> Tensor:
        asked.extend(d_B.tolist())
        return x

    spans = torch.tensor([2.0**-HALVINGS, 2.0 ** (1 - HALVINGS), 1.0])
    OBJECTIVES["shortcut"].target(means, torch.ones(3, 2), torch.zeros(3), spans)
    assert asked == [0.0, 2.0**-HALVINGS, 0.5] * 2


def test_times_of_a_lesson_lie_about_their_middle() -> None:
    torch.manual_seed(0)
    data = torch.zeros(5000, 1)
    for words, mean in (((), 0.0), ((-1.5,), -1.5)):
        shown = training_targets(None, 0, lambda part: lambda x, t, d: x, data, data, *words)
        assert shown.t.logit().mean().item() == pytest.approx(mean, abs=0.06)
