"""Flow matching: paths, solvers on fields whose solution is known, guidance, draws."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hwm.errors import HwmError
from hwm.objectives.draws import normal
from hwm.objectives.flow import FlowSampler, at_time, draw_times, guided, integrate

STEPWISE = ("euler", "midpoint", "heun")


@pytest.mark.parametrize("solver", STEPWISE)
@given(steps=st.integers(1, 30), seed=st.integers(0, 1000))
def test_a_straight_path_is_followed_exactly_in_any_number_of_steps(solver: str, steps: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    noise, data = (torch.randn(3, 4, generator=g, dtype=torch.float64) for _ in range(2))
    out = integrate(lambda x, t, step_size: data - noise, noise, FlowSampler(steps, solver))  # type: ignore[arg-type]
    torch.testing.assert_close(out, data)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_solvers_have_their_order(solver: str, order: int) -> None:
    """dx/dt = x (1 + t) has the solution x(0) exp(t + t^2 / 2)."""
    x, want = torch.ones(1, dtype=torch.float64), math.exp(1.5)
    errors = [
        abs(integrate(lambda x, t, step_size: x * (1 + t), x, FlowSampler(n, solver)).item() - want)  # type: ignore[arg-type]
        for n in (40, 80)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


@given(steps=st.integers(1, 12))
def test_euler_on_a_linear_field_is_the_product_of_its_steps(steps: int) -> None:
    out = integrate(lambda x, t, step_size: 2 * x, torch.ones(1, dtype=torch.float64), FlowSampler(steps))
    assert out.item() == pytest.approx((1 + 2 / steps) ** steps)


@pytest.mark.parametrize(("solver", "times"), [
    ("euler", [0, 0.5]), ("midpoint", [0, 0.25, 0.5, 0.75]), ("heun", [0, 0.5, 0.5, 1.0]),
])  # fmt: skip
def test_every_evaluation_is_of_the_newest_point_at_its_own_time(solver: str, times: list[float]) -> None:
    seen: list[tuple[float, float]] = []

    def field(x: Tensor, t: float, step_size: float) -> Tensor:
        seen.append((t, x.item()))
        return torch.ones_like(x)

    integrate(field, torch.zeros(1), FlowSampler(2, solver))  # type: ignore[arg-type]
    assert seen == [(t, t) for t in times], "under a velocity of one x is the time"


@given(steps=st.integers(1, 12), rate=st.floats(-2, 2))
def test_euler_on_mean_velocities_is_exact_in_any_number_of_steps(steps: int, rate: float) -> None:
    """dx/dt = rate x takes x to x exp(rate d) in a step of size d, at a mean velocity of x (exp(rate d) - 1) / d."""
    x = torch.ones(1, dtype=torch.float64)
    out = integrate(lambda x, t, d: x * math.expm1(rate * d) / d, x, FlowSampler(steps))
    assert out.item() == pytest.approx(math.exp(rate))


def test_solvers_of_higher_order_ask_for_no_spans() -> None:
    sizes: list[float] = []
    for solver in ("midpoint", "heun"):
        integrate(lambda x, t, d: sizes.append(d) or x, torch.ones(1), FlowSampler(3, solver))  # type: ignore[arg-type, func-returns-value]
    assert sizes == [0.0] * 12


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_the_adaptive_solver_keeps_to_its_tolerance_with_few_evaluations(tolerance: float) -> None:
    pytest.importorskip("torchdiffeq")
    asked = 0

    def field(x: Tensor, t: float, step_size: float) -> Tensor:
        nonlocal asked
        asked += 1
        return x * (1 + t)

    x = torch.tensor([1.0, -2.0], dtype=torch.float64)
    out = integrate(field, x, FlowSampler(solver="dopri5", tolerance=tolerance))
    torch.testing.assert_close(out, x * math.exp(1.5), rtol=10 * tolerance, atol=0)
    assert asked < 100


def test_without_its_library_the_adaptive_solver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(HwmError, match=r"pip install 'humanoid-world-models\[ode\]', or choose euler, midpoint, heun"):
        integrate(lambda x, t, d: x, torch.ones(1), FlowSampler(solver="dopri5"))


def test_the_path_goes_from_noise_to_data_at_the_target_velocity() -> None:
    noise, data = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(at_time(data, noise, torch.zeros(2)), noise)
    assert torch.equal(at_time(data, noise, torch.ones(2)), data)
    t, dt = torch.tensor([0.3, 0.8]), 0.1
    moved = at_time(data, noise, t + dt) - at_time(data, noise, t)
    torch.testing.assert_close(moved / dt, data - noise, atol=1e-5, rtol=1e-4)


def test_times_are_logit_normal() -> None:
    torch.manual_seed(0)
    for words, mean in (((), 0.0), ((-1.0,), -1.0)):
        logit = draw_times(20_000, torch.device("cpu"), *words).logit()
        assert logit.mean().item() == pytest.approx(mean, abs=0.03)
        assert logit.std().item() == pytest.approx(1, abs=0.03)


def test_guidance_goes_from_one_velocity_through_the_other() -> None:
    u, c = torch.randn(4), torch.randn(4)
    torch.testing.assert_close(guided(u, c, 0.0), u)
    torch.testing.assert_close(guided(u, c, 1.0), c)
    torch.testing.assert_close(guided(u, c, 3.0), u + 3 * (c - u))


def test_rows_of_a_batch_have_draws_of_their_own() -> None:
    def generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    device = torch.device("cpu")
    both = normal((2, 3, 4), device, [generator(5), generator(6)])
    assert torch.equal(both[0], normal((1, 3, 4), device, [generator(5)])[0])
    assert torch.equal(both[1], normal((3, 4), device, generator(6)))


@pytest.mark.parametrize("wrong", [dict(steps=0), dict(solver="rk4"), dict(guidance=math.nan), dict(tolerance=0)])
def test_samplers_say_what_is_wrong(wrong: dict) -> None:
    with pytest.raises(HwmError, match=next(iter(wrong))):
        FlowSampler(**wrong)
