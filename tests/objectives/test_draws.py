"""Random draws come from the generator that is given and nowhere else, and are made on the device asked for."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hwm.objectives import flow, maskgit, next_token, shortcut
from hwm.objectives.draws import gumbel, normal, uniform_like
from hwm.objectives.maskgit import MaskGITSampler
from hwm.types import Generator

CPU, META = torch.device("cpu"), torch.device("meta")
# each of (device, generator)
DRAWS: dict[str, Callable[[torch.device, Generator], Tensor]] = {
    "normal": lambda d, g: normal((2, 5), d, g),
    "uniform_like": lambda d, g: uniform_like(torch.zeros(2, 5, device=d), g),
    "gumbel": lambda d, g: gumbel(torch.zeros(2, 5, device=d), g),
    "next token": lambda d, g: next_token.draw(torch.zeros(2, 4, 99, device=d), next_token.NextTokenSampler(), g),
    "pick": lambda d, g: maskgit.pick(torch.zeros(2, 4, 99, device=d), MaskGITSampler(temperature=1.0), g)[0],
    "random order": lambda d, g: MaskGITSampler(order="random").keep_score(torch.zeros(2, 5, device=d), g),
    "noisy order": lambda d, g: MaskGITSampler(choice_temperature=1.0).keep_score(
        torch.zeros(2, 5, device=d), g, to_come=0.5
    ),
}
# those of training, which know no generators of rows
TRAINING: dict[str, Callable[[torch.device, torch.Generator | None], Tensor]] = {
    "corrupt": lambda d, g: maskgit.corrupt(ids(d), torch.full((), 0.5, device=d), 99, g),
    "corruption_rate": lambda d, g: maskgit.corruption_rate(3, 0.5, d, g),
    "cosine_mask": lambda d, g: maskgit.cosine_mask(torch.full((2, 3), 0.5, device=d), 20, g),
    "visible": lambda d, g: maskgit.mask_future(ids(d), 99, non_mlm=1.0, generator=g)[0],
    "corrupt_digits": lambda d, g: maskgit.corrupt_digits(ids(d), torch.full((2, 3), 0.5, device=d), (10, 10), g),
}
# those of training that decide how many cells are masked
ON_THE_HOST: dict[str, Callable[[torch.device, torch.Generator | None], Tensor]] = {
    "masked": lambda d, g: maskgit.mask_future(ids(d), 99, generator=g)[1],
    "rate": lambda d, g: maskgit.clip_rates(2, 5, generator=g)[0],
    "ratio": lambda d, g: maskgit.clip_rates(2, 5, generator=g)[1],
}
ALL = {**DRAWS, **TRAINING, **ON_THE_HOST}


def ids(device: torch.device) -> Tensor:
    return torch.zeros(2, 3, 20, dtype=torch.long, device=device)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ALL)
def test_a_generator_decides_alone(name: str) -> None:
    draw, state = ALL[name], torch.get_rng_state()
    one = draw(CPU, seeded(1))
    assert torch.equal(torch.get_rng_state(), state), "nothing else is drawn from"
    assert torch.equal(draw(CPU, seeded(1)), one)
    assert not torch.equal(draw(CPU, seeded(2)), one)


@pytest.mark.parametrize("name", ALL)
def test_without_one_the_common_generator_decides(name: str) -> None:
    draw = ALL[name]
    torch.manual_seed(1)
    one, two = draw(CPU, None), draw(CPU, None)
    torch.manual_seed(1)
    assert torch.equal(draw(CPU, None), one)
    assert not torch.equal(one, two)


@pytest.mark.parametrize("name", DRAWS)
def test_a_row_is_the_same_in_any_company(name: str) -> None:
    draw = DRAWS[name]
    both = draw(CPU, [seeded(1), seeded(2)])
    assert torch.equal(draw(CPU, [seeded(1), seeded(3)])[0], both[0])
    assert torch.equal(draw(CPU, [seeded(3), seeded(2)])[1], both[1])
    assert not torch.equal(draw(CPU, [seeded(3), seeded(2)])[0], both[0])


@pytest.mark.parametrize("name", [*DRAWS, *TRAINING])
def test_draws_are_made_on_their_device(name: str) -> None:
    assert {**DRAWS, **TRAINING}[name](META, None).device == META


@pytest.mark.parametrize("name", ON_THE_HOST)
def test_what_decides_how_much_is_masked_is_drawn_on_the_host(name: str) -> None:
    """Of ids that are elsewhere, too: the host need not ask a device how many there are."""
    assert ON_THE_HOST[name](META, None).device == CPU


@pytest.mark.parametrize("name", ["normal", "uniform_like", "gumbel"])
def test_draws_of_rows_are_made_on_their_device(name: str) -> None:
    assert DRAWS[name](META, [None, None]).device == META  # type: ignore[list-item]


def test_what_flows_are_trained_on_is_made_on_its_device() -> None:
    assert flow.draw_times(3, META).device == META
    assert {x.device for x in shortcut.draw_halves(3, META)} == {META}
    data = torch.zeros(2, 3, device=META)
    shown = shortcut.training_targets(None, 0, lambda part: lambda x, t, d: x, data, data)
    assert {x.device for x in shown} == {META}


def test_gumbel_noise_has_its_mean_and_deviation_and_is_finite() -> None:
    noise = gumbel(torch.zeros(400, 500), seeded(0))
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)  # Euler's constant
    assert noise.std().item() == pytest.approx(math.pi / 6**0.5, abs=0.01)


@pytest.mark.parametrize("u", [0.0, 1.0])
def test_gumbel_noise_of_the_ends_of_the_interval_is_finite(u: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.full(shape, u))
    assert gumbel(torch.zeros(2, 3)).isfinite().all()
