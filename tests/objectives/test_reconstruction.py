"""What reconstructions are judged by: closed forms, and where the gradients of the adversary's game end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.networks.lpips import LPIPS
from hwm.objectives.reconstruction import Adversary, Discriminator, LossWeights, balance, reconstruction_loss

PLAIN = LossWeights(width=8, halvings=2)
ADVERSARIAL = replace(PLAIN, adversarial=0.5, adaptive=False)


def pair(size: int = 16, frames: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    made, truth = (torch.rand(2, frames, 3, size, size) * 2 - 1 for _ in range(2))
    return made.requires_grad_(), truth


def test_errors_are_those_of_their_names() -> None:
    made, truth = torch.full((1, 2, 3, 4, 4), 0.5), torch.zeros(1, 2, 3, 4, 4)
    loss, values = reconstruction_loss(replace(PLAIN, squared=4.0), None, made, truth)
    assert loss.item() == pytest.approx(0.5 + 4 * 0.25)
    assert values["absolute"].item() == pytest.approx(0.5)
    # in [0, 1] the error is a quarter
    assert values["psnr"].item() == pytest.approx(-10 * torch.tensor(1 / 16).log10().item(), abs=1e-4)
    assert reconstruction_loss(PLAIN, None, truth, truth)[0] == 0


def test_lpips_counts_where_its_weights_are(tmp_path: Path) -> None:
    torch.manual_seed(1)
    network, path = LPIPS(), tmp_path / "lpips.safetensors"
    names = {f"convs.{i}": f"features.{(0, 3, 6, 8, 10)[i]}" for i in range(5)}
    weights = {f"{names[k[:7]]}.{k[8:]}": v for k, v in network.state_dict().items() if k.startswith("convs")}
    weights |= {f"lin{i}.model.1.weight": w.view(1, -1, 1, 1) for i, w in enumerate(network.channels)}
    save_file({k: v.detach().contiguous() for k, v in weights.items()}, path)
    weights = replace(PLAIN, perceptual=2.0, lpips=(str(path),))
    made, truth = pair(size=32, frames=2)
    loss, values = reconstruction_loss(weights, None, made, truth)
    distance = network((made.detach() + 1) / 2, (truth + 1) / 2).mean()
    torch.testing.assert_close(values["lpips"], distance)
    torch.testing.assert_close(loss.detach(), values["absolute"] + 2 * distance)
    plain = torch.autograd.grad(reconstruction_loss(PLAIN, None, made, truth)[0], made)[0]
    assert not torch.equal(torch.autograd.grad(loss, made)[0], plain), "it has a gradient"
    with pytest.raises(HwmError, match="at least 31 x 31"):
        reconstruction_loss(weights, None, *pair(size=16))
    with pytest.raises(HwmError, match="not_there"):
        reconstruction_loss(replace(weights, lpips=(str(tmp_path / "not_there.safetensors"),)), None, made, truth)


@pytest.mark.parametrize("reach", [1, 3])
def test_each_side_of_the_game_gets_its_own_gradient(reach: int) -> None:
    """One backward pass gives the gradients that two losses, of two players, give one by one."""
    weights = replace(ADVERSARIAL, reach=reach)
    made, truth = pair()
    adversary = Adversary(weights)
    adversary.train()
    loss, values = reconstruction_loss(weights, adversary, made, truth)
    loss.backward()
    players = list(adversary.discriminator.parameters())

    def score(x_BFCHW: Tensor) -> Tensor:
        return adversary.discriminator(x_BFCHW.transpose(1, 2))

    alone = made.detach().clone().requires_grad_()
    tokenizers = (alone - truth).abs().mean() - 0.5 * score(alone).mean()
    torch.testing.assert_close(made.grad, torch.autograd.grad(tokenizers, alone)[0])
    hinge = (F.relu(1 - score(truth)).mean() + F.relu(1 + score(made.detach())).mean()) / 2
    torch.testing.assert_close(values["discriminator"], hinge.detach())
    torch.testing.assert_close(values["real"] - values["fake"], (score(truth).mean() - score(made).mean()).detach())
    for player, wanted in zip(players, torch.autograd.grad(hinge, players), strict=True):
        assert wanted.ndim == 1 or wanted.abs().sum() > 0
        torch.testing.assert_close(player.grad, wanted)


@pytest.mark.parametrize("size", [16, 96])
def test_the_adversary_is_as_loud_as_all_else_where_its_weight_adapts(size: int) -> None:
    """Whatever the size: gradients of means become smaller with it."""
    made, truth = pair(size)
    weights = replace(ADVERSARIAL, adversarial=1.0, adaptive=True)
    adversary = Adversary(weights)
    other = (made - truth).abs().mean()
    ours = torch.autograd.grad(other, made, retain_graph=True)[0]
    added, values = adversary(made, truth, other)
    theirs = torch.autograd.grad(added, made)[0]
    assert theirs.norm() == pytest.approx(ours.norm().item(), rel=1e-4)
    assert values["adversarial_weight"] == balance(other, -adversary.discriminator(made.transpose(1, 2)).mean(), made)
    assert balance(other, made.sum() * 0, made) == 1e4


def test_it_begins_when_it_is_told_and_remembers_where_it_stood() -> None:
    made, truth = pair()
    weights = replace(ADVERSARIAL, begins=2)
    adversary = Adversary(weights)
    plain = reconstruction_loss(weights, None, made, truth)[0]
    losses = [reconstruction_loss(weights, adversary, made, truth)[0] for _ in range(3)]
    assert losses[0] == losses[1] == plain != losses[2]
    resumed = Adversary(weights)
    resumed.load_state_dict(adversary.state_dict())
    assert torch.equal(reconstruction_loss(weights, resumed, made, truth)[0], losses[2])
    adversary.eval()
    assert reconstruction_loss(weights, adversary, made, truth)[0] == plain, "held-out losses are without it"
    assert adversary.passes == 3
    adversary.train().load_state_dict(Adversary(weights).state_dict())
    assert reconstruction_loss(weights, adversary, made, truth)[0] == plain, "it stands where it was put"


def test_it_learns_to_tell_and_to_fool() -> None:
    """Pictures that begin grey become like the truth with the adversary as their only judge."""
    torch.manual_seed(0)
    weights = replace(ADVERSARIAL, adversarial=1.0)
    truth = torch.full((4, 5, 3, 16, 16), 0.8)
    made, adversary = nn.Parameter(torch.zeros(4, 5, 3, 16, 16)), Adversary(weights)
    optimizer = torch.optim.Adam([made, *adversary.parameters()], 5e-3, betas=(0.5, 0.9))
    told = []
    for _ in range(60):
        added, values = adversary(made, truth, torch.zeros(()))
        told.append((values["real"] - values["fake"]).item())
        optimizer.zero_grad()
        added.backward()
        optimizer.step()
    assert max(told) > told[0] + 0.1
    assert made.mean() > 0.1


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 9), st.sampled_from([8, 24, 32]), st.sampled_from([1, 3]), st.integers(1, 2))
def test_patches_of_any_clip_are_judged(frames: int, side: int, reach: int, halvings: int) -> None:
    found = Discriminator(replace(PLAIN, reach=reach, halvings=halvings))(torch.rand(1, 3, frames, side, side))
    time = frames if reach == 1 else -(-frames // 2**halvings)
    assert found.shape == (1, 1, time, side >> halvings, side >> halvings)


def test_frames_by_themselves_do_not_see_each_other() -> None:
    video = torch.rand(1, 3, 4, 16, 16)
    alone = Discriminator(replace(PLAIN, reach=1, halvings=1))
    torch.testing.assert_close(alone(video)[:, :, 2:3], alone(video[:, :, 2:3]))


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: -1.0} for name in ("squared", "perceptual", "adversarial", "begins")),
        *({"reach": 2}, {"reach": 0}, {"width": 12}, {"width": 0}, {"halvings": 0}),
    ],
)
def test_weights_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(HwmError):
        replace(PLAIN, **wrong)
