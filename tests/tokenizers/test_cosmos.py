"""Cosmos tokenizers: published sizes, causality, pieces, and mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hwm.convert import from_reference
from hwm.data.onex.specs import onex_v2
from hwm.errors import HwmError
from hwm.tokenizers import cosmos, cosmos_image, cosmos_video
from hwm.tokenizers.cosmos import Cosmos, CosmosImage, CosmosVideo
from hwm.tokenizers.fsq import FSQ
from hwm.types import DataSpec, LatentSpec
from tests.parity import recorded

V, I = CosmosVideo.Config, CosmosImage.Config  # noqa: E741
SIZE = (16, 32)
CONTINUOUS = replace(CosmosVideo.tiny(), levels=(), channels=5)
VARIANTS = {
    "dv8x8x8": CosmosVideo.tiny(),
    "dv8x8x8-legacy": replace(CosmosVideo.tiny(), legacy=True),
    "dv8x16x16": replace(CosmosVideo.tiny(), space=16),
    "dv4x8x8": replace(CosmosVideo.tiny(), time=4),
    "dv4x8x8-patch2": replace(CosmosVideo.tiny(), time=4, patch=2),
    "cv8x8x8": CONTINUOUS,
    "cv4x8x8": replace(CONTINUOUS, time=4, decoder_multipliers=(2, 4)),
}


def pictures(height: int, width: int) -> DataSpec:
    return DataSpec(LatentSpec((height, width), channels=3), {})


def build(config: Cosmos.Config, size: tuple[int, int] = SIZE) -> Cosmos:
    torch.manual_seed(0)
    model: Cosmos = config.build(pictures(*size)).eval()
    for name, p in model.named_parameters():  # so that biases count, and latents spread over the levels
        if p.ndim == 1:
            torch.nn.init.normal_(p, float("norm" in name and name.endswith("weight")), 0.1)
        else:
            torch.nn.init.normal_(p, std=(2.0 if name.startswith("quant_conv") else 1.0) / p[0].numel() ** 0.5)
    return model


@pytest.fixture(scope="module")
def small() -> CosmosVideo:
    model = build(CosmosVideo.tiny())
    assert isinstance(model, CosmosVideo)
    return model


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (V(), 105_653_366),
        (V(space=16), 110_898_294),
        (V(time=4), 104_669_558),
        (V(time=4, patch=2, z=256), 112_619_766),
        (V(levels=()), 105_653_696),
        (V(levels=(), time=4, patch=2), 110_208_816),
        (I(levels=(), z=16), 81_384_636),
        (I(levels=(), z=16, space=16), 84_334_524),
        (I(), 83_599_506),
        (I(space=16), 86_549_394),
    ],
    ids=lambda x: x.variant if isinstance(x, Cosmos.Config) else "",
)
def test_parameters_are_those_of_the_published_networks(config: Cosmos.Config, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in config.build(pictures(256, 256)).parameters()) == count


def test_weights_have_the_published_names_and_shapes() -> None:
    published = json.loads(Path(__file__).with_name("cosmos_dv8x8x8.json").read_text(encoding="utf-8"))
    assert len(published) == 310
    with torch.device("meta"):
        ours = V().build(pictures(256, 256)).state_dict()
    assert {k: list(v.shape) for k, v in ours.items()} == published


@pytest.mark.parametrize("name", ["dv8x8x8", "dv8x16x16", "dv4x8x8-patch2", "cv8x8x8"])
def test_recorded_videos_are_encoded_and_decoded(name: str) -> None:
    """By the public calls; what is inside them: `hwm convert check`."""
    case = recorded(f"cosmos-tokenizer-{name}")
    video = case.given["video17"].transpose(1, 2)
    made = from_reference("cosmos-tokenizer", {**case.config, "resolution": 1024}, case.weights)
    model = made.config.build(pictures(*video.shape[3:])).eval()
    model.load_state_dict(made.state_dict())
    found = model.encode((video + 1) / 2)
    if model.latent.vocab:
        assert torch.equal(found, case.out["indices17"])
    else:
        torch.testing.assert_close(found, case.out["latent17"].transpose(1, 2), rtol=0, atol=case.tolerance["latent17"])
    shown = (case.out["recon17"].transpose(1, 2).clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(model.decode(found), shown, rtol=0, atol=case.tolerance["recon17"])


@pytest.mark.parametrize(
    ("name", "picture"), [("ci8x8", "32x48"), ("di16x16-patch2", "32x48"), ("di16x16-patch2", "64x64")]
)
def test_recorded_pictures_are_encoded_and_decoded(name: str, picture: str) -> None:
    case = recorded(f"cosmos-image-{name}")
    video = case.given[f"image{picture}"][:, None]
    made = from_reference("cosmos-tokenizer", case.config, case.weights)
    model = made.config.build(pictures(*video.shape[3:])).eval()
    model.load_state_dict(made.state_dict())
    found = model.encode((video + 1) / 2)
    if model.latent.vocab:
        assert torch.equal(found[:, 0], case.out[f"indices{picture}"])
    else:
        allowed = case.tolerance[f"latent{picture}"]
        torch.testing.assert_close(found[:, 0], case.out[f"latent{picture}"], rtol=0, atol=allowed)
    shown = (case.out[f"recon{picture}"].clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(model.decode(found)[:, 0], shown, rtol=0, atol=case.tolerance[f"recon{picture}"])


ROWS, COLUMNS = torch.tensor([1.0, -1.0]).repeat(4)[:, None], torch.tensor([1.0, -1.0]).repeat(4)[None]
COARSE_ROWS, COARSE_COLUMNS = (torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(2).view(s) for s in ((8, 1), (1, 8)))


@pytest.mark.parametrize(
    ("patch", "picture", "band"),
    [
        (2, torch.ones(1), 0),
        (2, ROWS, 1),
        (2, COLUMNS, 2),
        (2, ROWS * COLUMNS, 3),
        (4, torch.ones(1), 0),
        (4, ROWS, 1),
        (4, COLUMNS, 2),
        (4, COARSE_ROWS, 4),
        (4, COARSE_COLUMNS, 8),
        (4, COARSE_ROWS * COARSE_COLUMNS, 12),
        (4, COARSE_COLUMNS * ROWS, 9),
    ],
)
def test_bands_of_pictures_are_in_the_published_order(patch: int, picture: Tensor, band: int) -> None:
    """The mean, what changes from row to row, from column to column, and both; the last level of it is outermost."""
    x_NCHW = torch.tensor([1.0, 0.5, -0.25])[:, None, None] * picture.expand(1, 1, 8, 8)
    expected = torch.zeros(1, 3 * patch**2, 8 // patch, 8 // patch)
    expected[:, 3 * band : 3 * band + 3] = torch.tensor([1.0, 0.5, -0.25])[:, None, None]
    assert torch.equal(cosmos_image.patches(x_NCHW, patch), expected)
    assert torch.equal(cosmos_image.unpatched(expected, patch), x_NCHW)


@pytest.mark.parametrize("name", VARIANTS)
def test_latents_and_frames_have_the_stated_sizes(name: str) -> None:
    model = build(VARIANTS[name])
    assert name.startswith(model.config.variant.lower())
    assert model.published == f"cosmos-{model.config.variant.lower()}"
    stride = model.config.time
    for steps in (1, 2, 4):
        video = torch.rand(2, 1 + stride * (steps - 1), 3, *SIZE)
        latents = model.encode(video)
        assert latents.shape[:2] == (2, steps)
        assert tuple(latents.shape[-2:]) == model.latent.grid == (16 // model.config.space, 32 // model.config.space)
        assert model.latent.steps(video.shape[1]) == steps
        shown = model.decode(latents)
        assert shown.shape == video.shape
        assert 0 <= shown.min() < shown.max() <= 1
    assert (latents.is_floating_point(), model.latent.vocab) == ((True, None) if "cv" in name else (False, 64_000))
    if model.latent.vocab:
        assert len(latents.unique()) > latents.numel() // 3, "ids that are all alike would prove nothing"


@pytest.mark.parametrize("name", VARIANTS)
def test_a_prefix_is_encoded_and_decoded_as_within_the_whole(name: str) -> None:
    model = build(VARIANTS[name])
    video = torch.rand(1, model.latent.frames(4), 3, *SIZE)
    whole = model.encode(video)
    shown = model.decode(whole)
    for steps in (1, 2, 3):
        frames = model.latent.frames(steps)
        torch.testing.assert_close(model.encode(video[:, :frames]), whole[:, :steps])
        torch.testing.assert_close(model.decode(whole[:, :steps]), shown[:, :frames])


@pytest.mark.parametrize("name", ["dv8x8x8", "cv8x8x8"])
def test_no_frame_has_a_part_in_an_earlier_step(name: str) -> None:
    model = build(VARIANTS[name])
    video = torch.rand(1, 25, 3, *SIZE)
    other = video.clone()
    other[:, 9:17] = torch.rand(1, 8, 3, *SIZE)  # what step 2 holds
    a, b = model.encode(video), model.encode(other)
    assert torch.equal(a[:, :2], b[:, :2])
    assert not torch.equal(a[:, 2], b[:, 2])
    mixed = torch.cat([a[:, :2], b[:, 2:]], 1)
    shown, changed = model.decode(a), model.decode(mixed)
    torch.testing.assert_close(shown[:, :9], changed[:, :9])
    assert ((shown - changed).abs().amax((0, 2, 3, 4))[9:] > 1e-4).all()


@settings(deadline=None, max_examples=12)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.sampled_from(sorted(VARIANTS)))
def test_pieces_give_what_the_whole_gives(lengths: list[int], name: str) -> None:
    model = build(VARIANTS[name])
    stride, steps = model.latent.stride, sum(lengths)
    video = torch.rand(1, model.latent.frames(steps), 3, *SIZE)
    sizes = [stride * n for n in lengths]
    sizes[0] -= stride - 1
    pieces = list(model.encode_pieces(video.split(sizes, 1)))
    assert [p.shape[1] for p in pieces] == lengths
    whole = model.encode(video)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-4)
    shown = list(model.decode_pieces(whole.split(lengths, 1)))
    assert [s.shape[1] for s in shown] == sizes
    torch.testing.assert_close(torch.cat(shown, 1), model.decode(whole), rtol=1e-4, atol=1e-4)


def test_a_video_goes_through_in_pieces_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(CONTINUOUS)
    video = torch.rand(1, 33, 3, *SIZE)
    latents, seen = model.encode(video), []
    shown, inner = model.decode(latents), model.encoder.forward

    def watched(x: Tensor, past: cosmos_video.Past) -> Tensor:
        seen.append(x.shape[1])
        return inner(x, past)

    monkeypatch.setattr(cosmos, "PIXELS_AT_ONCE", 1)
    monkeypatch.setattr(model.encoder, "forward", watched)
    torch.testing.assert_close(model.encode(video), latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.decode(latents), shown, rtol=1e-4, atol=1e-4)
    assert seen == [1, 8, 8, 8, 8]


def test_what_is_remembered_grows_no_further_than_attention_reaches() -> None:
    model = build(replace(CosmosVideo.tiny(), reach=4))
    past: cosmos_video.Past = {}
    sizes = []
    for frames in (1, 8, 8, 8, 8, 16):
        model.encoder(torch.rand(1, frames, 3, *SIZE), past)
        sizes.append({layer: x.untyped_storage().nbytes() for layer, x in past.items()})
    grown = [layer for layer in past if sizes[1][layer] != sizes[2][layer]]
    assert [type(layer) for layer in grown] == [cosmos_video.AttendTime]
    keys_and_values = 2 * 16 * 2 * 4 * 4  # of 16 channels in 2 x 4 cells of four bytes
    assert [size[grown[0]] // keys_and_values for size in sizes] == [1, 2, 3, 3, 3, 3]
    assert sizes[2] == sizes[3] == sizes[4] == sizes[5]


def test_attention_over_time_sees_so_far_and_no_further() -> None:
    layer = cosmos_video.AttendTime(8, reach=3)
    x_BTHWC = torch.randn(1, 6, 2, 2, 8)
    whole = layer(x_BTHWC, None)
    for t in range(6):
        alone = layer(x_BTHWC[:, max(0, t - 2) : t + 1], None)[:, -1]
        torch.testing.assert_close(whole[:, t], alone)
    changed = x_BTHWC.clone()
    changed[:, 0] = torch.randn(2, 2, 8)
    assert ((layer(changed, None) - whole).abs().amax((0, 2, 3, 4)) > 1e-6).tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize("name", ["dv8x8x8", "cv8x8x8"])
def test_a_video_longer_than_attention_reaches_goes_through_in_any_pieces(name: str) -> None:
    model = build(replace(VARIANTS[name], reach=2))
    video = torch.rand(1, 41, 3, *SIZE)
    whole = model.encode(video)
    pieces = torch.cat(list(model.encode_pieces(video.split([9, 8, 16, 8], 1))), 1)
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.encode(video[:, :25]), whole[:, :4], rtol=1e-4, atol=1e-4)
    shown = model.decode(whole)
    parts = torch.cat(list(model.decode_pieces(whole.split([1, 2, 3], 1))), 1)
    torch.testing.assert_close(parts, shown, rtol=1e-4, atol=1e-4)
    far = build(VARIANTS[name])
    torch.testing.assert_close(far.encode(video[:, :9]), whole[:, :2], rtol=1e-4, atol=1e-4)
    if name == "cv8x8x8":
        assert not torch.allclose(far.encode(video)[:, 2:], whole[:, 2:], atol=1e-4)


def test_shifting_makes_the_last_frames_a_clip_of_their_own(small: CosmosVideo) -> None:
    latents = small.encode(torch.rand(1, 25, 3, *SIZE))
    moved = small.shift(latents, 2)
    assert torch.equal(moved, small.encode(small.decode(latents)[:, -9:]))
    assert moved.shape[1] == 2
    assert torch.equal(small.shift(latents, 4), latents)
    assert torch.equal(small.shift(latents, 9), latents)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 2), st.integers(1, 3))
def test_wavelets_are_signed_means_and_come_back(patch: int, steps: int, height: int, width: int) -> None:
    x = torch.randn(1, steps * patch, 3, height * patch, width * patch)
    y = cosmos_video.patches(x, patch)
    assert y.shape == (1, steps, height, width, 3 * patch**3)
    means = x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch)).unflatten(1, (-1, patch)).mean((2, 5, 7))
    torch.testing.assert_close(y[..., :3], means.permute(0, 1, 3, 4, 2))  # the first band has no minus
    torch.testing.assert_close(cosmos_video.unpatched(y, patch), x)
    flat = cosmos_image.patches(x[0], patch)
    assert flat.shape == (steps * patch, 3 * patch**2, height, width)
    torch.testing.assert_close(cosmos_image.unpatched(flat, patch), x[0])


def test_bands_are_ordered_by_time_then_height_then_width() -> None:
    x = torch.zeros(1, 2, 1, 2, 2)
    x[0, 1, 0, 0, 0] = 8.0  # the later frame counts as minus in the last four bands
    assert cosmos_video.patches(x, 2).flatten().tolist() == [1, 1, 1, 1, -1, -1, -1, -1]
    x = torch.zeros(1, 2, 1, 2, 2)
    x[0, 0, 0, 0, 1] = 8.0
    assert cosmos_video.patches(x, 2).flatten().tolist() == [1, -1] * 4


def test_pictures_are_encoded_each_by_itself() -> None:
    for config in (CosmosImage.tiny(), replace(CosmosImage.tiny(), levels=(), channels=4)):
        model = build(config)
        video = torch.rand(2, 3, 3, *SIZE)
        latents = model.encode(video)
        assert latents.shape == ((2, 3, 2, 4) if config.levels else (2, 3, 4, 2, 4))
        assert model.latent.stride == 1
        shown = model.decode(latents)
        assert shown.shape == video.shape
        torch.testing.assert_close(model.encode(video[1:, 2:]), latents[1:, 2:])
        torch.testing.assert_close(model.decode(latents[1:, 2:]), shown[1:, 2:], rtol=1e-4, atol=1e-4)
        assert torch.equal(model.shift(latents, 2), latents[:, 1:])
        assert model.lookback == 0


def test_the_quantiser_computes_in_float32_whatever_the_module_is_cast_to(small: CosmosVideo) -> None:
    z = torch.randn(4, 6, 2, 3, 3)
    half = build(CosmosVideo.tiny()).to(torch.bfloat16)
    assert half.quantizer(z).dtype == torch.float32
    assert torch.equal(half.quantizer(z), small.quantizer(z))
    video = torch.rand(1, 9, 3, *SIZE)
    digits = [
        (x[..., None] // torch.tensor([1, 8, 64, 512, 2560, 12800])) for x in (small.encode(video), half.encode(video))
    ]
    near = [d % torch.tensor([8, 8, 8, 5, 5, 5]) for d in digits]
    assert ((near[0] - near[1]).abs() <= 1).float().mean() > 0.9
    assert (half.decode(small.encode(video)) - small.decode(small.encode(video))).abs().mean() < 0.02


def test_every_id_is_known_and_no_other() -> None:
    fsq = FSQ((8, 8, 8, 5, 5, 5))
    ids = torch.arange(fsq.vocab)
    assert fsq.vocab == 64_000
    assert torch.equal(fsq.ids(fsq.codes(ids)), ids)
    assert fsq.codes(ids[:1]).tolist() == [[-1.0] * 6]
    assert fsq.codes(ids[-1:]).tolist() == [[0.75, 0.75, 0.75, 1, 1, 1]]


def test_it_fits_the_published_data() -> None:
    with torch.device("meta"):
        model = V().build(pictures(256, 256))
    spec = onex_v2()
    assert model.latent == spec.latent
    assert model.answers_to(spec.tokenizer)
    assert not model.answers_to("cosmos-dv8x16x16")
    with torch.device("meta"):
        assert not V(space=16).build(pictures(256, 256)).answers_to(spec.tokenizer)


def test_video_of_another_kind_is_refused(small: CosmosVideo) -> None:
    for shape in ((2, 3, *SIZE), (1, 9, 3, 32, 16), (1, 9, 1, *SIZE)):
        with pytest.raises(HwmError, match=r"takes video of shape \(B, F, 3, 16, 32\)"):
            small.encode(torch.rand(shape))
    for frames in (0, 2, 8, 16):
        with pytest.raises(HwmError, match=rf"{frames} frames do not fill whole latent steps: they hold 1 \+ 8 \* n"):
            small.encode(torch.rand(1, frames, 3, *SIZE))
    with pytest.raises(HwmError, match=r"9 frames do not fill .* 0 \+ 8 \* n"):
        list(small.encode_pieces(torch.rand(1, 18, 3, *SIZE).split(9, 1)))


def test_latents_of_another_kind_are_refused(small: CosmosVideo) -> None:
    ids = torch.zeros(1, 2, 2, 4, dtype=torch.long)
    for wrong in (ids[0], ids[:, :, :1], ids.float()):
        with pytest.raises(HwmError, match=r"takes integer ids of shape \(B, T, 2, 4\)"):
            small.decode(wrong)
    for value in (-1, 64_000):
        with pytest.raises(HwmError, match=rf"must be in 0..63999, these reach from {value} to {value}"):
            small.decode(ids + value)
    with pytest.raises(HwmError, match="no latents"):
        small.decode(ids[:, :0])
    with pytest.raises(HwmError, match=r"takes floating-point latents of shape \(B, T, 5, 2, 4\)"):
        build(CONTINUOUS).decode(ids)


@pytest.mark.parametrize(
    "config",
    [
        V(patch=3), V(space=4), V(time=2), V(space=8, time=16), V(multipliers=()), V(multipliers=(2,), space=16),
        V(base=0), V(levels=(8, 1)), V(levels=(), channels=0), V(space=24), I(base=48), I(space=64),
        V(patch=2, time=16), V(reach=0),
    ],
)  # fmt: skip
def test_configs_that_cannot_be_are_refused(config: Cosmos.Config) -> None:
    with torch.device("meta"), pytest.raises(HwmError):
        config.build(pictures(256, 256))


def test_pictures_that_do_not_divide_into_cells_are_refused() -> None:
    for spec in (pictures(256, 250), DataSpec(LatentSpec((256, 256), channels=1), {})):
        with torch.device("meta"), pytest.raises(HwmError, match="sides are multiples of 8"):
            V().build(spec)


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
def test_cells_that_are_repeated_are_convolved_without_repeating_them(frames: int, height: int, width: int) -> None:
    x_BTHWC, conv = torch.randn(2, frames, height, width, 4), cosmos_video.Conv(4, 4, (1, 3, 3))
    repeated = x_BTHWC.repeat_interleave(2, 2).repeat_interleave(2, 3)
    found = cosmos_video.doubled(x_BTHWC, conv.conv3d.weight[:, :, 0], conv.conv3d.bias)
    torch.testing.assert_close(found, repeated + conv(repeated, None), rtol=1e-5, atol=1e-5)
