"""Several cameras through the tokenizer of one: views do not mix."""

from __future__ import annotations

import pytest
import torch

from hwm.data.onex.stand_in import StandIn
from hwm.errors import HwmError
from hwm.loading import load_tokenizer
from hwm.tokenizers.pixels import Pixels
from hwm.tokenizers.views import Views, for_views
from hwm.types import LatentSpec, Tokenizer

VIEWS = ("top", "wrist", "chest")


@pytest.fixture(scope="module", params=["tiny", "stand-in-2.0", "pixels"])
def one(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "pixels":
        return Pixels((6, 8))
    tiny = load_tokenizer("tiny")
    return tiny if request.param == "tiny" else StandIn("2.0", tiny)


def video(tokenizer: Tokenizer, seed: int = 0) -> torch.Tensor:
    frames = tokenizer.latent.frames(2)
    return torch.rand(2, frames, 3, *tokenizer.size, generator=torch.Generator().manual_seed(seed))


def test_each_view_is_encoded_by_itself(one: Tokenizer) -> None:
    both = for_views(one, VIEWS)
    high, rows = one.size[0], one.latent.grid[0]
    assert both.size == (3 * high, one.size[1])
    assert (both.latent.grid, both.latent.views) == ((3 * rows, one.latent.grid[1]), VIEWS)
    assert (both.id, both.latent.vocab, both.latent.stride) == (one.id, one.latent.vocab, one.latent.stride)
    assert both.answers_to(one.id)
    each = [video(one, seed) for seed in range(3)]
    latents = both.encode(torch.cat(each, -2))
    for i, part in enumerate(each):
        assert torch.equal(latents[..., i * rows : (i + 1) * rows, :], one.encode(part))
    shown = both.decode(latents)
    assert torch.equal(shown[..., high : 2 * high, :], one.decode(latents[..., rows : 2 * rows, :]))
    assert torch.equal(both.shift(latents, 1)[..., :rows, :], one.shift(latents[..., :rows, :], 1))


def test_another_picture_changes_the_cells_of_its_view_alone(one: Tokenizer) -> None:
    both = for_views(one, VIEWS)
    high, rows = one.size[0], one.latent.grid[0]
    before = video(both)
    after = before.clone()
    after[..., high : 2 * high, :] = 1 - after[..., high : 2 * high, :]
    a, b = both.encode(before), both.encode(after)
    same = (a == b).flatten(0, -3).all(0).all(-1)
    assert same[:rows].all()
    assert not same[rows : 2 * rows].any()
    assert same[2 * rows :].all()


def test_pieces_are_those_of_each_view(one: Tokenizer) -> None:
    both, high, rows = for_views(one, VIEWS), one.size[0], one.latent.grid[0]
    whole = video(both)
    pieces = [whole[:, :1], *whole[:, 1:].split(one.latent.stride, 1)]
    latents = list(both.encode_pieces(iter(pieces)))
    alone = list(one.encode_pieces(piece[..., high : 2 * high, :] for piece in pieces))
    assert all(torch.equal(x[..., rows : 2 * rows, :], y) for x, y in zip(latents, alone, strict=True))
    shown, alone = list(both.decode_pieces(iter(latents))), list(one.decode_pieces(iter(alone)))
    assert all(torch.equal(x[..., high : 2 * high, :], y) for x, y in zip(shown, alone, strict=True))


def test_a_wrapped_module_is_a_module() -> None:
    both = load_tokenizer("tiny", views=VIEWS)
    assert isinstance(both, Views)
    assert sum(1 for _ in both.parameters()) > 0
    assert for_views(both, VIEWS) is both
    assert load_tokenizer("tiny", views=()).latent.views == ()
    with pytest.raises(HwmError, match="is for the views top, wrist, chest, not for top, wrist"):
        for_views(both, VIEWS[:2])


@pytest.mark.parametrize("views", [("top",), ("top", "top"), ("a/b", "c"), ("", "c"), (".a", "c")])
def test_names_of_views_are_names_of_folders(views: tuple[str, ...]) -> None:
    with pytest.raises(HwmError, match="view"):
        LatentSpec((8, 4), 16, views=views)


def test_rows_are_shared_out_evenly() -> None:
    with pytest.raises(HwmError, match="7 rows of cells cannot be shared out among the views top, wrist"):
        LatentSpec((7, 4), 16, views=("top", "wrist"))
