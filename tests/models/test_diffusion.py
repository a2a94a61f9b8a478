"""Diffusion: what it is told, what it may not see, its loss on data that is known, its samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hwm.errors import HwmError
from hwm.models.diffusion import Diffusion
from hwm.objectives.edm import EDMSampler, preconditioning
from hwm.types import Batch, DataSpec, LatentSpec
from tests.models.test_registry import opened
from tests.models.toys import toy_batch, toy_spec

SPEC = replace(toy_spec(channels=4), latent_mean=(1.0, -2.0, 0.0, 5.0), latent_std=(2.0, 0.5, 1.0, 0.0))
PLAIN: dict[str, Any] = dict(context_noise=(0.0, 0.0), short_past=0.0)


def model(spec: DataSpec = SPEC, **changes: Any) -> Diffusion:
    made: Diffusion = opened(replace(Diffusion.tiny(), **changes).build(spec))
    return made.eval()


def seeded(found: Diffusion, batch: Batch, **how: Any) -> Tensor:
    made = found.predict(batch, generator=torch.Generator().manual_seed(1), **how)
    return made.latents


def window(spec: DataSpec = SPEC, past: int = 2, missing: int = 1) -> Batch:
    return toy_batch(spec, past + missing).window(0, past, past + missing)


def test_every_action_of_the_window_has_its_own_part_in_the_prediction() -> None:
    found, batch = model(), window()
    base = seeded(found, batch)
    for step in range(3):
        for k in range(2):
            other = batch.actions.clone()
            other[0, step, k, 0] += 1
            made = seeded(found, replace(batch, actions=other))
            assert not torch.equal(made[0], base[0])
            assert torch.equal(made[1], base[1]), "a row of its own"
    swapped = replace(batch, actions=batch.actions.flip(2))
    assert not torch.allclose(seeded(found, swapped), base), "which of a step's actions comes first matters"


def test_the_loss_has_a_gradient_in_the_actions_of_the_step_to_come() -> None:
    found, batch = model(), toy_batch(SPEC, 3)
    batch.actions.requires_grad_()
    found.loss(batch)[0].backward()
    assert batch.actions.grad is not None
    assert (batch.actions.grad[..., :2].abs().amin((0, 1, 2)) > 0).all()
    assert batch.actions.grad[:, -1].abs().sum() > 0


def test_a_network_that_says_nothing_loses_what_gaussian_data_says() -> None:
    """With a network of zeros the error is the target's variance: 1 for data of variance 1 and independent noise."""
    found = model(**PLAIN)
    torch.nn.init.zeros_(found.leave.weight)
    torch.nn.init.zeros_(found.leave.bias)
    x = torch.randn(64, 3, 4, 4, 4) * torch.tensor([2.0, 0.5, 1.0, 1.0]).view(4, 1, 1) + torch.tensor(
        [1.0, -2.0, 0.0, 5.0]
    ).view(4, 1, 1)
    loss, metrics = found.loss(Batch(x, torch.randn(64, 3, 2, 3), "arm"))
    assert loss.item() == pytest.approx(1, abs=0.05)
    assert metrics["explained"].item() == pytest.approx(0, abs=1e-6)


def test_the_loss_is_the_weighted_error_of_what_the_denoiser_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    found, batch, seen = model(**PLAIN), toy_batch(SPEC, 3), {}
    made = Diffusion.made

    def noting(self: Any, context: Any, scaled: Tensor, sigma_B: Tensor) -> Tensor:
        seen.update(context=context, scaled=scaled, sigma=sigma_B)
        return made(self, context, scaled, sigma_B)

    monkeypatch.setattr(Diffusion, "made", noting)
    loss, _ = found.loss(batch)
    sigma_B = seen["sigma"]
    noisy = seen["scaled"] / preconditioning(sigma_B, seen["scaled"]).scale
    error = found.denoised(seen["context"], noisy, sigma_B) - found.normalised(batch.latents)[:, 2]
    weight = (sigma_B.square() + 1) / sigma_B.square()
    torch.testing.assert_close((weight * error.square().mean((1, 2, 3))).mean(), loss, rtol=1e-3, atol=1e-5)


def test_known_frames_are_noised_to_the_level_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found, given = model(context_noise=(0.3, 0.6), short_past=0.0), {}
    observe = Diffusion.observe

    def noting(self: Any, past: Tensor, actions: Tensor, embodiment: str, level_B: Tensor, **more: Any) -> Any:
        given.update(past=past, level=level_B)
        return observe(self, past, actions, embodiment, level_B, **more)

    monkeypatch.setattr(Diffusion, "observe", noting)
    batch = toy_batch(SPEC, 3, batch=400)
    found.loss(batch)
    noise = given["past"] - found.normalised(batch.latents)[:, :2]
    assert 0.3 <= given["level"].min() < 0.33 < 0.57 < given["level"].max() <= 0.6
    torch.testing.assert_close(noise.flatten(1).std(1), given["level"], rtol=0.35, atol=0)
    torch.testing.assert_close(noise.flatten(1).std(1).mean(), given["level"].mean(), rtol=0.02, atol=0)
    assert given["level"].log().mean().item() == pytest.approx(torch.tensor([0.3, 0.6]).log().mean().item(), abs=0.05)
    found.validation_loss(batch)
    assert not given["level"].any(), "a validation loss is of clean frames"
    assert torch.equal(given["past"], found.normalised(batch.latents)[:, :2])


def test_the_level_told_and_the_noise_both_matter_in_sampling() -> None:
    found, batch = model(), window()
    clean, noised = (seeded(found, batch, sampler=EDMSampler(steps=1, context_noise=n)) for n in (0.0, 0.5))
    assert not torch.allclose(clean, noised, atol=1e-3)
    x, actions = found.normalised(batch.latents), batch.actions
    one, other = (found.observe(x, actions, "arm", torch.full((2,), n)).condition for n in (0.0, 0.5))
    assert not torch.allclose(one, other, atol=1e-3)


def test_a_short_window_is_a_long_one_whose_first_frames_are_hidden() -> None:
    found, batch = model(past=3), window(past=3)
    x, level_B = found.normalised(batch.latents), torch.full((2,), 0.1)
    hidden = found.observe(x, batch.actions, "arm", level_B, shown_BP=torch.tensor([[0.0, 1, 1]] * 2))
    short = found.observe(x[:, 1:], batch.actions[:, 1:], "arm", level_B)
    for one, other in zip(hidden, short, strict=True):
        torch.testing.assert_close(one, other)
    assert seeded(found, batch.window(2, 3, 4)).shape == (2, 1, 4, 4, 4)
    shown_BP = replace_short(found, 0.5).draw_shown(4000, 3, torch.device("cpu"))
    assert set(map(tuple, shown_BP.tolist())) == {(1, 1, 1), (0, 1, 1), (0, 0, 1)}
    counts = shown_BP.sum(1)
    assert [(counts == n).float().mean().item() for n in (1, 2, 3)] == pytest.approx([0.25, 0.25, 0.5], abs=0.03)


def replace_short(found: Diffusion, share: float) -> Diffusion:
    found.config = replace(found.config, short_past=share)
    return found


def test_guidance_moves_the_answer_away_from_the_one_without_actions() -> None:
    found, batch = model(dropped_actions=0.5), window()

    def at(guidance: float) -> Tensor:
        return seeded(found, batch, sampler=EDMSampler(steps=1, guidance=guidance))

    without, plain, twice = at(0.0), at(1.0), at(2.0)
    torch.testing.assert_close(twice - plain, plain - without, rtol=1e-3, atol=1e-4)
    other = replace(batch, actions=batch.actions + 1)
    base = seeded(found, other, sampler=EDMSampler(steps=1, guidance=0.0))
    torch.testing.assert_close(base, without), "no action is seen without them"
    assert not torch.allclose(plain, without, atol=1e-4)


def test_latents_are_measured_in_standard_deviations_and_given_back_in_their_own() -> None:
    """The same world in other units is the same to the model."""
    batch = window()
    plain = replace(SPEC, latent_mean=(), latent_std=())
    found, other = model(), model(plain)
    other.load_state_dict(found.state_dict())
    mean, std = (torch.tensor(v).view(4, 1, 1) for v in (SPEC.latent_mean, (2.0, 0.5, 1.0, 1.0)))
    made = seeded(other, replace(batch, latents=(batch.latents - mean) / std)) * std + mean
    torch.testing.assert_close(seeded(found, batch), made, rtol=1e-4, atol=1e-5)


def test_rows_with_generators_of_their_own_do_not_depend_on_each_other() -> None:
    found, batch = model(), window()

    def draws(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(s) for s in seeds]

    both = found.predict(batch, generator=draws(5, 6)).latents
    alone = Batch(batch.latents[1:], batch.actions[1:], "arm")
    torch.testing.assert_close(found.predict(alone, generator=draws(6)).latents, both[1:], rtol=1e-4, atol=1e-5)
    assert torch.equal(found.predict(batch, generator=draws(5, 6)).latents, both)
    assert not torch.allclose(found.predict(batch, generator=draws(5, 7)).latents[1], both[1])


def test_several_steps_are_made_together_and_fewer_may_be_asked_for() -> None:
    found = model(horizon=2)
    batch = toy_batch(SPEC, 4)
    assert seeded(found, batch.window(0, 2, 4)).shape == (2, 2, 4, 4, 4)
    one = seeded(found, batch.window(0, 2, 3))
    held = torch.cat([batch.actions[:, :3], batch.actions[:, 2:3]], 1)
    assert torch.equal(one, seeded(found, Batch(batch.latents[:, :2], held, "arm"))[:, :1])
    assert found.loss(batch)[0].isfinite()


def test_actions_of_the_first_step_that_are_not_real_are_not_read() -> None:
    spec = toy_spec(stride=2, per_step=4, channels=4)
    found, batch = model(spec), window(spec)
    base = seeded(found, batch)
    for k, same in ((0, True), (1, True), (2, False), (3, False)):
        other = batch.actions.clone()
        other[:, 0, k] += 1
        assert torch.equal(seeded(found, replace(batch, actions=other)), base) == same


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        (toy_spec(), {}, "needs continuous latents, and this data has ids of 60"),
        (DataSpec(LatentSpec((5, 4), channels=2), {}), {}, r"a grid of \(5, 4\) cannot be halved 1 time"),
        (SPEC, {"context_noise": (0.0, 0.5)}, "context_noise"),
        (SPEC, {"context_noise": (0.5, 0.1)}, "context_noise"),
        (SPEC, {"short_past": 1.0}, "short_past"),
        (SPEC, {"dropped_actions": -0.1}, "dropped_actions"),
        (SPEC, {"patch": 0}, "patch=0 must be at least 1"),
        (SPEC, {"patch": 4}, "cannot be halved 1 times in squares of 4 x 4 cells"),
        (SPEC, {"flow": -1.0}, r"flow=-1\.0 not negative"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(spec: DataSpec, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HwmError, match=message):
        replace(Diffusion.tiny(), **changes).build(spec)


def test_latents_of_another_kind_are_refused() -> None:
    found = model()
    with pytest.raises(HwmError, match=r"latents are \(B, T, 4, H, W\)"):
        found.loss(Batch(torch.zeros(2, 3, 3, 4, 4), torch.zeros(2, 3, 2, 3), "arm"))


def test_squares_of_cells_are_made_where_they_were_read() -> None:
    """A network that says nothing gives what it is given, at the last level of noise nearly unchanged."""
    found, batch = Diffusion.tiny().build(SPEC), toy_batch(SPEC, 3)
    squares = replace(Diffusion.tiny(), patch=2, widths=(16,), blocks=(1,), attention=(False,)).build(SPEC)
    normal, small = found.normalised(batch.latents), squares.normalised(batch.latents)
    assert small.shape == (*normal.shape[:2], 16, normal.shape[3] // 2, normal.shape[4] // 2)
    torch.testing.assert_close(torch.nn.functional.pixel_shuffle(small, 2), normal)
    with torch.no_grad():
        for name, weight in squares.named_parameters():
            if name.startswith("leave"):
                weight.zero_()
    made = seeded(squares.eval(), window(), sampler=EDMSampler(steps=1, sigma_max=1e-3, sigma_min=1e-4))
    noise = torch.randn((2, 1, *small.shape[2:]), generator=torch.Generator().manual_seed(1))
    want = torch.nn.functional.pixel_shuffle(noise * 1e-3, 2) * torch.tensor([2.0, 0.5, 1.0, 1.0]).view(4, 1, 1)
    want = want + torch.tensor([1.0, -2.0, 0.0, 5.0]).view(4, 1, 1)
    torch.testing.assert_close(made, want, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("patch", [1, 2])
def test_a_flow_learns_how_far_the_picture_moves_as_told(patch: int) -> None:
    """A world of noise that moves right by the last action: only a flow that heeds it can foresee it."""
    torch.manual_seed(0)
    spec = DataSpec(LatentSpec((8, 8), channels=1), {"arm": toy_spec().actions["arm"]})
    config = replace(Diffusion.tiny(), past=1, patch=patch, flow=1.0, context_noise=(0.0, 0.0))
    found: Diffusion = config.build(spec)
    optimizer = torch.optim.AdamW(found.parameters(), 3e-3)
    missed = []
    for _ in range(120):
        pace = torch.randint(-1, 2, (16,))
        frame = torch.randn(16, 1, 8, 8)
        then = torch.stack([f.roll(int(p), -1) for f, p in zip(frame, pace, strict=True)])
        actions = torch.zeros(16, 2, 2, 3)
        actions[:, 1, :, 0] = pace[:, None].float()
        optimizer.zero_grad()
        loss, values = found.loss(Batch(torch.stack([frame, then], 1), actions, "arm"))
        loss.backward()
        optimizer.step()
        missed.append(values["missed_by_flow"].item())
    assert sum(missed[-10:]) < 0.5 * sum(missed[:10])


def test_what_a_flow_moved_enters_the_network_and_its_answer() -> None:
    found = model(flow=0.5)
    base = seeded(found, window())
    with torch.no_grad():
        found.carried.bias.fill_(0.5)
    assert not torch.allclose(seeded(found, window()), base)
    with torch.no_grad():
        found.carried.bias.zero_()
        found.carried.weight.zero_()
        found.enter_moved.weight.zero_()
    still = seeded(found, window())
    with torch.no_grad():
        found.flow.whole.bias.add_(1)
    assert torch.equal(seeded(found, window()), still), "by these two ways and no other"


def test_samples_of_a_trained_model_are_what_the_actions_say() -> None:
    """A world that is as bright as the last action has it."""
    torch.manual_seed(0)
    spec = DataSpec(LatentSpec((4, 4), channels=1), {"arm": toy_spec().actions["arm"]})
    found: Diffusion = replace(Diffusion.tiny(), past=1).build(spec)

    def batch(size: int) -> Batch:
        shade, actions = torch.randint(2, (size,)) * 2.0 - 1, torch.zeros(size, 2, 2, 3)
        actions[:, 1, :, 0] = shade[:, None]
        return Batch(
            shade.view(-1, 1, 1, 1, 1).expand(-1, 2, 1, 4, 4) * torch.tensor([0.0, 1.0]).view(2, 1, 1, 1),
            actions,
            "arm",
        )

    optimizer = torch.optim.AdamW(found.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        found.loss(batch(32))[0].backward()
        optimizer.step()
    test = batch(32)
    made = found.eval().predict(Batch(test.latents[:, :1], test.actions, "arm")).latents
    assert (made[:, 0] - test.latents[:, 1]).square().mean() < 0.2, "of a variance of 1"
