"""The small tokenizer: ids and codes are two names of one thing, and wrong sizes are said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hwm.commands.training import train_recipe
from hwm.config import Config, config_from_json, to_json
from hwm.data.clips import fake_batch
from hwm.data.mixture import DataConfig
from hwm.data.store import Header
from hwm.data.writer import Writer
from hwm.errors import HwmError
from hwm.loading import copy_weights, load_tokenizer, weights_fingerprint
from hwm.networks.efficientnet import EfficientNetLite0, fold
from hwm.objectives import reconstruction
from hwm.recipes import Recipe
from hwm.tokenizers.pixels import Pixels
from hwm.tokenizers.tiny import FSQ, TinyContinuous, TinyTokenizer
from hwm.train.checkpoint import save_model
from hwm.train.config import TrainConfig
from hwm.types import ActionSpec, Batch, DataSpec, LatentSpec
from tests.networks.test_efficientnet import random_weights

NEWER = ("decoder_width", "perceptual", "scales", "perceptual_share", "encoder_of")
"""Fields of a config that tokenizers saved earlier lack."""
LEVELS = (8, 8, 8, 5, 5, 5)
SPEC = DataSpec(LatentSpec((32, 48), channels=3), {"toy": ActionSpec(1, ("a",), (0.0,), (1.0,))}, "pixels-32x48")


@pytest.fixture
def tokenizer() -> TinyTokenizer:
    torch.manual_seed(0)
    return TinyTokenizer.tiny().build(SPEC).eval()


@pytest.mark.parametrize("levels", [LEVELS, (2, 3), (5, 5), (4,), (16, 2, 7)])
def test_every_id_survives_its_codes(levels: tuple[int, ...]) -> None:
    fsq = FSQ(levels)
    size = int(torch.tensor(levels).prod())
    ids = torch.arange(size).view(1, 1, size)
    codes = fsq.codes(ids)
    assert codes.shape == (1, len(levels), 1, size)
    assert codes.abs().max() <= 1
    assert torch.equal(fsq.ids(codes), ids)
    assert len(codes[0, :, 0].T.unique(dim=0)) == size  # no two ids share their codes


def test_codes_of_ids_are_what_the_encoder_side_gives() -> None:
    fsq = FSQ(LEVELS)
    z = torch.randn(4, 6, 16, 16) * 3
    codes = fsq(z)
    assert torch.allclose(fsq.codes(fsq.ids(codes)), codes, atol=1e-6)


@pytest.mark.parametrize("extreme", [0.0, 50.0, -50.0, 1e30, -1e30, float("inf"), float("-inf")])
def test_extreme_inputs_stay_in_the_vocabulary(extreme: float) -> None:
    ids = FSQ(LEVELS).ids(FSQ(LEVELS)(torch.full((1, 6, 2, 2), extreme)))
    assert ids.min() >= 0
    assert ids.max() < 64_000
    if extreme > 1:
        assert (ids == 63_999).all()
    if extreme < -1:
        assert (ids == 0).all()


def test_every_level_is_reached() -> None:
    fsq = FSQ(LEVELS)
    z = torch.linspace(-4, 4, 2001).view(1, 1, 1, -1).expand(1, 6, 1, -1)
    middle = fsq.scales(z).middle
    digits = (fsq(z) * middle + middle).round()
    for channel, level in enumerate(LEVELS):
        assert digits[0, channel].unique().tolist() == list(range(level))


def test_gradients_pass_straight_through_the_rounding() -> None:
    fsq = FSQ(LEVELS)
    z = torch.randn(2, 6, 3, 3, requires_grad=True)
    fsq(z).sum().backward()
    smooth = z.detach().clone().requires_grad_()
    s = fsq.scales(z)
    ((torch.tanh(smooth + s.shift) * s.bound - s.offset) / s.middle).sum().backward()
    assert torch.allclose(z.grad, smooth.grad)
    assert (z.grad > 0).all()


def test_the_loss_falls_and_every_weight_has_a_gradient(tokenizer: TinyTokenizer) -> None:
    batch = fake_batch(SPEC, 4, 1)
    smooth = torch.nn.functional.interpolate(torch.rand(4, 3, 4, 6), (32, 48), mode="bilinear")
    batch = Batch(smooth[:, None], batch.actions, "toy")
    optimizer = torch.optim.Adam(tokenizer.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss, metrics = tokenizer(batch)
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tokenizer.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert not metrics["psnr"].requires_grad


def test_psnr_is_that_of_pictures_between_0_and_1(tokenizer: TinyTokenizer) -> None:
    video = torch.rand(2, 3, 3, 32, 48)
    _, metrics = tokenizer.loss(Batch(video, torch.zeros(2, 3, 1, 1), "toy"))
    raw = tokenizer.decoder(tokenizer.fsq(tokenizer.encoder(video.flatten(0, 1) * 2 - 1)))
    squared = ((raw + 1) / 2 - video.flatten(0, 1)).square().mean((1, 2, 3))
    assert float(metrics["psnr"]) == pytest.approx((-10 * squared.log10()).mean().item(), abs=1e-4)


def test_encode_and_decode_have_the_shapes_of_the_spec(tokenizer: TinyTokenizer) -> None:
    assert tokenizer.latent == LatentSpec((4, 6), 25, levels=(5, 5))
    video = torch.rand(2, 3, 3, 32, 48)
    ids = tokenizer.encode(video)
    assert ids.shape == (2, 3, 4, 6)
    assert ids.dtype == torch.int64
    decoded = tokenizer.decode(ids)
    assert decoded.shape == video.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1
    assert torch.equal(tokenizer.encode(video[1:, 2:])[0, 0], ids[1, 2])  # each frame by itself


def test_half_precision_gives_mostly_the_same_ids(tokenizer: TinyTokenizer) -> None:
    smooth = torch.nn.functional.interpolate(torch.rand(8, 3, 4, 6), (32, 48), mode="bilinear")[None]
    exact = tokenizer.encode(smooth)
    with torch.autocast("cpu", torch.bfloat16):
        quick = tokenizer.encode(smooth)
    assert quick.max() < 25
    assert (quick == exact).float().mean() > 0.8
    assert (tokenizer.to(torch.bfloat16).encode(smooth) == exact).float().mean() > 0.7


def test_wrong_sizes_are_refused(tokenizer: TinyTokenizer) -> None:
    for shape in [(2, 3, 3, 32, 32), (2, 3, 1, 32, 48), (3, 3, 32, 48), (2, 3, 3, 48, 32)]:
        with pytest.raises(HwmError, match=r"takes video of shape \(B, F, 3, 32, 48\), got"):
            tokenizer.encode(torch.rand(shape))
    for ids in [torch.zeros(2, 4, 6).long(), torch.zeros(1, 2, 6, 4).long(), torch.zeros(1, 2, 4, 6)]:
        with pytest.raises(HwmError, match=r"takes integer ids of shape \(B, T, 4, 6\), got"):
            tokenizer.decode(ids)
    for bad in (-1, 25):
        with pytest.raises(HwmError, match=r"token ids must be in 0\.\.24"):
            tokenizer.decode(torch.full((1, 1, 4, 6), bad))


@pytest.mark.parametrize(
    "config",
    [{"down": 12}, {"down": 2}, {"width": 12}, {"levels": ()}, {"levels": (8, 1)}],
)
def test_configs_without_sense_are_refused(config: dict) -> None:
    with pytest.raises(HwmError, match=r"power of two|at least 2"):
        TinyTokenizer.Config(**config).build(SPEC)


def test_it_is_trained_on_pictures_that_divide() -> None:
    for latent in (LatentSpec((36, 48), channels=3), LatentSpec((32, 48), channels=4), LatentSpec((4, 4), 25)):
        with pytest.raises(HwmError, match="multiples of 8"):
            TinyTokenizer.tiny().build(DataSpec(latent, {}))


def test_shift_is_a_slice() -> None:
    latents = torch.arange(5).view(1, 5, 1, 1)
    pixels = Pixels((1, 1))
    assert pixels.shift(latents, 2).ravel().tolist() == [3, 4]
    assert pixels.shift(latents, 0).ravel().tolist() == []
    assert pixels.shift(latents, 9).ravel().tolist() == [0, 1, 2, 3, 4]


def test_pixels_are_the_identity() -> None:
    tokenizer = load_tokenizer("pixels-4x6")
    video = torch.rand(1, 2, 3, 4, 6)
    assert (tokenizer.id, tokenizer.size) == ("pixels-4x6", (4, 6))
    assert torch.equal(tokenizer.decode(tokenizer.encode(video)), video)
    with pytest.raises(HwmError, match="pixels-128x128"):
        load_tokenizer("pixels-big")


def test_a_saved_tokenizer_is_known_by_its_weights(tmp_path: Path, tokenizer: TinyTokenizer) -> None:
    save_model(tmp_path / "t", tokenizer)
    loaded = load_tokenizer(tmp_path / "t")
    assert loaded.id == f"{tmp_path / 't'}@{weights_fingerprint(tokenizer)}"
    video = torch.rand(1, 2, 3, 32, 48)
    assert torch.equal(loaded.encode(video), tokenizer.encode(video))
    assert load_tokenizer(loaded.id).id == loaded.id
    half = {k: v.half() for k, v in tokenizer.state_dict().items()}
    save_model(tmp_path / "half", tokenizer, half)  # stored in half precision, as shipped ones are
    assert load_tokenizer(tmp_path / "half").id.endswith(weights_fingerprint(tokenizer))
    with torch.no_grad():
        next(tokenizer.parameters()).add_(0.1)
    save_model(tmp_path / "t", tokenizer)
    with pytest.raises(HwmError, match="latents of one mean nothing to the other"):
        load_tokenizer(loaded.id)


def test_a_tokenizer_is_known_by_its_weights_wherever_they_lie(tmp_path: Path) -> None:
    tiny = load_tokenizer("tiny")
    save_model(tmp_path / "moved", tiny)
    moved = load_tokenizer(tmp_path / "moved")
    assert moved.id != tiny.id
    assert moved.answers_to(tiny.id)
    with torch.no_grad():
        next(tiny.parameters()).add_(0.1)
    save_model(tmp_path / "other", tiny)
    other = load_tokenizer(tmp_path / "other")
    assert not other.answers_to(moved.id)
    assert not other.answers_to("other")
    assert not other.answers_to("@")


def test_an_unknown_tokenizer_shows_the_nearest() -> None:
    with pytest.raises(HwmError, match="no tokenizer called 'tinny'; did you mean tiny"):
        load_tokenizer("tinny")


# ---------------------------------------------------------------- continuous
def continuous(**config: object) -> TinyContinuous:
    torch.manual_seed(0)
    built: TinyContinuous = replace(TinyContinuous.tiny(), **config).build(SPEC).eval()
    return built


def test_continuous_codes_have_the_shapes_of_the_spec() -> None:
    tokenizer, video = continuous(channels=3), torch.rand(2, 3, 3, 32, 48)
    assert tokenizer.latent == LatentSpec((4, 6), channels=3)
    latents = tokenizer.encode(video)
    assert latents.shape == (2, 3, 3, 4, 6)
    assert latents.dtype == torch.float32
    assert tokenizer.decode(latents).shape == video.shape
    assert torch.allclose(tokenizer.encode(video[1:, 2:])[0, 0], latents[1, 2], atol=1e-5)  # each frame by itself
    for bad in (latents[0], latents[:, :, :2], latents.long()):
        with pytest.raises(HwmError, match=r"takes values of shape \(B, T, 3, 4, 6\), got"):
            tokenizer.decode(bad)


def test_noise_is_added_in_training_alone_and_large_codes_cost() -> None:
    batch = Batch(torch.rand(2, 3, 3, 32, 48), torch.zeros(2, 3, 1, 1), "toy")
    tokenizer = continuous(noise=0.5, shrink=0.0)
    assert torch.equal(tokenizer.loss(batch)[0], tokenizer.loss(batch)[0])
    tokenizer.train()
    assert not torch.equal(tokenizer.loss(batch)[0], tokenizer.loss(batch)[0])
    z = tokenizer.encode(batch.latents)
    assert (tokenizer.codes(z)[0] - z).std() == pytest.approx(0.5, abs=0.05)
    dear = continuous(shrink=2.0)
    difference = dear.loss(batch)[0] - continuous(shrink=0.0).loss(batch)[0]
    assert difference.item() == pytest.approx(2 * z.square().mean().item(), rel=1e-4)


def test_a_share_of_the_pictures_and_their_numbers_are_moved_alike() -> None:
    torch.manual_seed(0)
    tokenizer = continuous(moving=0.5)
    # pictures that their cells' means show exactly, between cells too: each a slope
    height, width = tokenizer.size
    down, right = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    x = torch.stack([right / width, down / height, (right + down) / 100]).expand(4, -1, -1, -1)
    z = F.avg_pool2d(x, 8)
    seen, shown = tokenizer.seen_moved(z, x)
    assert torch.equal(seen[2:], z[2:])
    assert torch.equal(shown[2:], x[2:])
    for i in range(2):
        assert not torch.allclose(shown[i], x[i], atol=0.01)
        inside = (slice(None), slice(1, -1), slice(1, -1))  # away from the edges, which go on
        torch.testing.assert_close(F.avg_pool2d(shown, 8)[i][inside], seen[i][inside])
    assert continuous().seen_moved(z, x) == (z, x)
    assert tokenizer.config.in_validation["moving"] == 0
    with pytest.raises(HwmError, match=r"moving=1\.5 is a share"):
        continuous(moving=1.5)


def test_a_cell_may_be_of_four_pixels() -> None:
    tokenizer = continuous(down=4)
    assert tokenizer.encode(torch.rand(1, 2, 3, *tokenizer.size)).shape == (1, 2, 2, 8, 12)
    assert tokenizer.decode(torch.randn(1, 2, 2, 8, 12)).shape == (1, 2, 3, *tokenizer.size)


def test_it_begins_from_weights_of_another_number_of_codes(tmp_path: Path, tokenizer: TinyTokenizer) -> None:
    save_model(tmp_path, tokenizer)
    mine = continuous(channels=3)
    before = {k: v.clone() for k, v in mine.state_dict().items()}
    copy_weights(tmp_path, mine)
    theirs, after = tokenizer.state_dict(), mine.state_dict()
    own = {k for k in after if k.startswith(mine.fresh)}
    assert {theirs[k].shape != after[k].shape for k in own if k.endswith("weight")} == {True}
    for key, value in after.items():
        same = theirs[key] if theirs[key].shape == value.shape else before[key]
        assert torch.equal(value, same)
    with pytest.raises(HwmError, match="do not fit"):
        copy_weights(tmp_path, continuous(width=16))


# ---------------------------------------------------------------- how they are trained
def smooth_batch(count: int = 8, seed: int = 0) -> Batch:
    coarse = torch.rand(count, 3, 4, 6, generator=torch.Generator().manual_seed(seed))
    return Batch(F.interpolate(coarse, (32, 48), mode="bilinear")[:, None], torch.zeros(count, 1, 1, 1), "toy")


def edged_batch() -> Batch:
    """Pictures of hard edges, which errors of pixels alone leave soft."""
    coarse = torch.rand(8, 3, 8, 12, generator=torch.Generator().manual_seed(1)).round()
    return Batch(F.interpolate(coarse, (32, 48), mode="nearest")[:, None], torch.zeros(8, 1, 1, 1), "toy")


@pytest.fixture(scope="module")
def random_eyes() -> EfficientNetLite0:
    model = EfficientNetLite0()
    fold(model, random_weights())
    return model.requires_grad_(False).eval()


@pytest.fixture
def eyes(random_eyes: EfficientNetLite0, monkeypatch: pytest.MonkeyPatch) -> EfficientNetLite0:
    """A perceptual network of random weights in place of the installed one."""
    monkeypatch.setattr(reconstruction, "load_efficientnet", lambda device: random_eyes)
    return random_eyes


@pytest.mark.parametrize("make", [TinyTokenizer.tiny, TinyContinuous.tiny])
def test_configs_of_before_the_perceptual_loss_are_read(make: Callable[[], Config]) -> None:
    """What was saved without the newer fields is what it was: the same parameters and the same loss."""
    old = {k: v for k, v in to_json(make()).items() if k not in NEWER}
    assert {f.name for f in dataclasses.fields(make())} - set(old) == set(NEWER)
    config = config_from_json(old)
    assert config == make()
    torch.manual_seed(0)
    module = config.build(SPEC).eval()
    assert module.id == module.name
    batch = smooth_batch()
    loss, values = module.loss(batch)
    x = batch.latents[:, 0] * 2 - 1
    codes, cost = module.codes(module.encoder(x))
    error = module.decoder(codes) - x
    torch.testing.assert_close(loss, error.abs().mean() + 4 * error.square().mean() + cost)
    assert set(values) == {"psnr"}


def test_without_a_perceptual_loss_no_weights_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(device: object) -> None:
        raise HwmError("not installed")

    monkeypatch.setattr(reconstruction, "load_efficientnet", missing)
    continuous().loss(smooth_batch())
    with pytest.raises(HwmError, match="not installed"):
        continuous(perceptual=0.1).loss(smooth_batch())
    seeing = continuous(perceptual=0.1)
    assert seeing.decode(seeing.encode(smooth_batch().latents)).shape == (8, 1, 3, 32, 48)


def test_the_perceptual_loss_is_a_share_of_the_batch(eyes: EfficientNetLite0) -> None:
    batch, share = smooth_batch(), 0.375
    plain, tokenizer = continuous(), continuous(perceptual=0.5, scales=3, perceptual_share=share)
    loss, values = tokenizer.loss(batch)
    made = (tokenizer.decoder(tokenizer.encoder(batch.latents[:, 0] * 2 - 1)) + 1) / 2
    apart = eyes.distance(made, batch.latents[:, 0], 3).detach()
    assert values["perceptual"].item() == pytest.approx(apart[:3].mean().item(), rel=1e-4)
    assert (loss - plain.loss(batch)[0]).item() == pytest.approx(0.5 * apart[:3].mean().item(), rel=1e-3)
    held_out = tokenizer.validation_loss(batch)[1]["perceptual"]
    assert held_out.item() == pytest.approx(apart.mean().item(), rel=1e-4), "of all pictures"
    assert not any("eye" in name or "stages" in name for name in tokenizer.state_dict())


@pytest.mark.parametrize("make", [TinyTokenizer, TinyContinuous])
def test_the_perceptual_loss_makes_pictures_look_more_alike(make: Any, eyes: EfficientNetLite0) -> None:
    batch, apart = edged_batch(), []
    for weight in (0.0, 4.0):
        torch.manual_seed(0)
        tokenizer = make.Config(width=8, down=8, perceptual=weight, perceptual_share=1.0).build(SPEC)
        optimizer = torch.optim.Adam(tokenizer.parameters(), 5e-3)
        for _ in range(30):
            tokenizer.loss(batch)[0].backward()
            optimizer.step()
            optimizer.zero_grad()
        shown = tokenizer.eval().decode(tokenizer.encode(batch.latents))
        apart.append(eyes(shown, batch.latents).mean().item())
    assert apart[1] < 0.9 * apart[0], apart


def test_a_decoder_may_be_wider_than_the_encoder(tmp_path: Path, tokenizer: TinyTokenizer) -> None:
    wide = replace(TinyTokenizer.tiny(), decoder_width=16).build(SPEC)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(wide.encoder) == count(tokenizer.encoder)
    assert count(wide.decoder) > 3 * count(tokenizer.decoder)
    video = torch.rand(1, 1, 3, 32, 48)
    assert wide.decode(wide.encode(video)).shape == video.shape
    save_model(tmp_path, tokenizer)
    copy_weights(tmp_path, wide)
    theirs = tokenizer.encoder.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in wide.encoder.state_dict().items() if not k.startswith("6."))


def test_numbers_out_of_place_are_refused() -> None:
    for config in (dict(perceptual=-0.1), dict(perceptual_share=0.0), dict(perceptual_share=1.5), dict(squared=-1.0)):
        with pytest.raises(HwmError, match="not negative"):
            TinyContinuous.Config(**config)
    with pytest.raises(HwmError, match="multiples of 8"):
        TinyContinuous.Config(decoder_width=12).build(SPEC)
    with pytest.raises(HwmError, match="NAME@FINGERPRINT"):
        TinyContinuous.Config(encoder_of="runs/tok")


# ---------------------------------------------------------------- a decoder by itself
@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    header = Header(
        embodiment="toy", action_names=("a",), actions_per_step=1, fps=10.0, latent=LatentSpec((32, 48), channels=3),
        dtype="uint8", tokenizer="pixels-32x48",
    )  # fmt: skip
    writer = Writer(tmp_path / "pictures", header)
    frames = (smooth_batch(12).latents[:, 0] * 255).round().to(torch.uint8).numpy()
    writer.add("one", np.zeros((12, 1, 1), np.float32), frames)
    writer.finish()
    return tmp_path / "pictures"


def decoder_run(pictures: Path, encoder_of: str, **train: Any) -> Recipe:
    return Recipe(
        model=replace(TinyTokenizer.tiny(), encoder_of=encoder_of, decoder_width=16),
        data=DataConfig(stores=(str(pictures),), steps=1),
        train=TrainConfig(**{"steps": 4, "batch_size": 4, "warmup": 0, "dtype": "float32", "ema": 0.9, **train}),
    )


def test_a_decoder_trained_by_itself_leaves_latents_as_they_were(
    tmp_path: Path, tokenizer: TinyTokenizer, pictures: Path
) -> None:
    save_model(tmp_path / "first", tokenizer)
    first = load_tokenizer(tmp_path / "first")
    recipe = decoder_run(pictures, first.id, only=("*",), weight_decay=0.5)
    trained = train_recipe(recipe, tmp_path / "second", str(tmp_path / "first"))
    second = load_tokenizer(tmp_path / "second")
    assert isinstance(second, TinyTokenizer)
    assert all(torch.equal(v, tokenizer.encoder.state_dict()[k]) for k, v in second.encoder.state_dict().items())
    began = decoder_run(pictures, first.id).model.build(SPEC)
    assert not torch.equal(second.decoder[0].weight, began.decoder[0].weight)
    video = torch.rand(1, 2, 3, 32, 48)
    ids = first.encode(video)
    assert torch.equal(second.encode(video), ids)
    assert torch.equal(second.decode(ids), trained.decode(ids))
    assert second.id == first.id
    assert second.answers_to(first.id), "stores of the first are read by the second"
    train_recipe(recipe.but(train=dict(steps=6)), tmp_path / "second")  # goes on without --init
    (tmp_path / "second").rename(tmp_path / "first2")
    third = decoder_run(pictures, first.id)
    copy_weights(tmp_path / "first2", third.model.build(SPEC))  # a decoder trained so can be begun from as well


def test_a_decoder_by_itself_begins_from_the_encoder_that_it_names(
    tmp_path: Path, tokenizer: TinyTokenizer, pictures: Path
) -> None:
    save_model(tmp_path / "first", tokenizer)
    recipe = decoder_run(pictures, "runs/other@01234567")
    with pytest.raises(HwmError, match=rf"01234567 is to be kept, but .*@{weights_fingerprint(tokenizer)}"):
        train_recipe(recipe, tmp_path / "run", str(tmp_path / "first"))
    with pytest.raises(HwmError, match=r"keeps weights of runs/other@01234567: .*--init"):
        train_recipe(recipe, tmp_path / "run")
