"""The small tokenizer: ids and codes are two names of one thing, and wrong sizes are said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hwm.data.clips import fake_batch
from hwm.errors import HwmError
from hwm.loading import copy_weights, load_tokenizer, weights_fingerprint
from hwm.tokenizers.pixels import Pixels
from hwm.tokenizers.tiny import FSQ, TinyContinuous, TinyTokenizer
from hwm.train.checkpoint import save_model
from hwm.types import ActionSpec, Batch, DataSpec, LatentSpec

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
    [{"down": 12}, {"down": 4}, {"width": 12}, {"levels": ()}, {"levels": (8, 1)}],
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
