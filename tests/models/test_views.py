"""Several views: every family knows which camera a cell is of, and a model of one camera has no weights for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hwm.errors import HwmError
from hwm.models.base import WorldModel
from hwm.nn.views import ViewEmbedding
from hwm.train.checkpoint import load_model, save_model
from hwm.types import DataSpec, LatentSpec
from tests.models.test_registry import FAMILIES, build, opened, tiny_config
from tests.models.toys import toy_batch

VIEWS = ("head", "wrist")


def two_views(spec: DataSpec) -> DataSpec:
    """The same cells as seen by two cameras."""
    rows, columns = spec.latent.grid
    return replace(spec, latent=replace(spec.latent, grid=(2 * rows, columns), views=VIEWS))


def vectors(model: WorldModel) -> list[torch.Tensor]:
    return [p for n, p in model.named_parameters() if n.endswith("views.vectors")]


@pytest.mark.parametrize("name", FAMILIES)
def test_cells_learn_of_which_view_they_are(name: str) -> None:
    spec = two_views(build(name).spec)
    model = opened(tiny_config(name).build(spec))
    batch = toy_batch(spec, model.config.past + model.config.horizon)
    for _ in range(3):  # what is masked, and which of several losses, is left to chance
        model.loss(batch)[0].backward()
    found = vectors(model)
    assert found
    for vector in found:
        assert vector.shape[0] == 2
        assert vector.grad is not None
        assert (vector.grad.abs().sum(-1) > 0).all(), "of both views"


@pytest.mark.parametrize("name", FAMILIES)
def test_views_are_told_apart_in_prediction(name: str) -> None:
    """Another vector of the second view changes what is predicted; the rollout fills in both views' rows."""
    spec = two_views(build(name).spec)
    torch.manual_seed(0)
    model = opened(tiny_config(name).build(spec)).eval()
    past = model.config.past
    batch = toy_batch(spec, past + model.config.horizon).window(0, past, past + model.config.horizon)

    def predicted() -> torch.Tensor:
        torch.manual_seed(1)
        made = model.rollout(batch, logits=spec.latent.vocab is not None, generator=torch.Generator().manual_seed(2))
        assert made.latents.shape[-2:] == spec.latent.grid
        return made.latents if made.logits is None else made.logits

    before = predicted()
    with torch.no_grad():
        for vector in vectors(model):
            vector[1] += torch.randn(vector.shape[1], generator=torch.Generator().manual_seed(3))
    assert not torch.equal(before, predicted())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_one_view_is_as_it_was(name: str, tmp_path: Path) -> None:
    model = build(name)
    assert not vectors(model)
    assert not [key for key in model.state_dict() if "views" in key]
    save_model(tmp_path / "one", model)
    assert b"views" not in (tmp_path / "one/hwm.json").read_bytes()
    two = tiny_config(name).build(two_views(model.spec))
    save_model(tmp_path / "two", two)
    again = load_model(tmp_path / "two")
    assert again.spec.latent.views == VIEWS
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), two.state_dict().values(), strict=True))


def test_cells_get_the_vector_of_their_view() -> None:
    latent = LatentSpec((6, 2), 10, views=("a", "b", "c"))
    embed = ViewEmbedding(latent, 3)
    assert embed.vectors is not None
    x = torch.randn(2, 12, 3)
    assert torch.equal(embed(x), x), "zero at first"
    with torch.no_grad():
        embed.vectors += torch.tensor([[1.0], [2.0], [3.0]])
    want = x + torch.tensor([1.0, 2.0, 3.0]).repeat_interleave(4)[:, None]
    assert torch.equal(embed(x), want)
    grid = x.mT.unflatten(-1, (6, 2))
    assert torch.equal(embed.in_grid(grid), want.mT.unflatten(-1, (6, 2)))
    places = torch.tensor([1, 5, 9, 12, 13])  # after one token for the beginning
    assert torch.equal(embed.at(x[:, :5] * 0, places, 12, lead=1)[0, :, 0], torch.tensor([1.0, 2.0, 3.0, 3.0, 1.0]))
    one = ViewEmbedding(LatentSpec((6, 2), 10), 3)
    assert not list(one.parameters())
    assert one(x) is x
    assert one.in_grid(grid) is grid
    assert one.at(x, places, 12) is x


def test_a_reader_of_ids_takes_data_of_several_views() -> None:
    """No weight of it depends on the grid, so that it can be given another, and then learns the views."""
    model = build("cosmos_ar")
    before = model.spec
    model.fit(two_views(before))
    assert [v.shape[0] for v in vectors(model)] == [2]
    model.loss(toy_batch(model.spec, model.config.past + 1))[0].backward()
    assert all(v.grad is not None and v.grad.any() for v in vectors(model))
    model.fit(before)
    assert not vectors(model)


def test_patches_do_not_straddle_two_views() -> None:
    for name in ("flow_hwm", "hma_continuous", "diffusion"):
        spec = build(name).spec
        odd = replace(spec, latent=replace(spec.latent, grid=(6, spec.latent.grid[1]), views=VIEWS))
        with pytest.raises(HwmError, match=r"a grid of \(3, "):
            tiny_config(name).build(odd)
