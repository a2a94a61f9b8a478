"""MAGVIT2: recorded outputs, the order of bits and pixels, sizes and mistakes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwm.config import from_json
from hwm.convert.magvit2 import Published, of_size
from hwm.data.onex.specs import onex_v1
from hwm.errors import HwmError
from hwm.tokenizers import magvit2
from hwm.tokenizers.magvit2 import MAGVIT2, Upsample
from hwm.types import DataSpec, LatentSpec
from tests.parity import recorded


def pictures(height: int, width: int) -> DataSpec:
    return DataSpec(LatentSpec((height, width), channels=3), {})


@pytest.fixture(scope="module")
def small() -> MAGVIT2:
    torch.manual_seed(0)
    return MAGVIT2.tiny().build(pictures(8, 12)).eval()


def test_parameters_are_those_of_the_published_checkpoint() -> None:
    with torch.device("meta"):
        model = MAGVIT2.Config().build(pictures(256, 256))
    assert sum(p.numel() for p in model.encoder.parameters()) == 24_964_498
    assert sum(p.numel() for p in model.decoder.parameters()) == 40_526_211
    assert sum(p.numel() for p in model.parameters()) == 24_964_498 + 40_526_211
    assert model.latent == LatentSpec((16, 16), 2**18, levels=(512, 512))


@pytest.mark.parametrize("name", ["two-levels", "two-blocks"])
def test_recorded_pictures_are_encoded_and_decoded(name: str) -> None:
    """By the public calls; what is inside them: tests/convert/test_cases.py."""
    case = recorded(f"magvit2-{name}")
    picture, ids = case.given["image"], case.out["indices"]
    fields = {k: v for k, v in case.config.items() if k in Published.__dataclass_fields__}
    config = from_json(Published, fields).config()
    model = of_size(config, case.weights, (picture.shape[2], picture.shape[3]), "the case")
    assert torch.equal(model.encode((picture[:, None] + 1) / 2)[:, 0], ids)
    video = (case.out["recon"].clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(model.decode(ids[:, None])[:, 0], video, rtol=0, atol=case.tolerance["recon"])


@given(st.lists(st.integers(0, 2**18 - 1), min_size=1, max_size=8))
def test_bit_k_of_an_id_is_the_sign_of_channel_k(numbers: list[int]) -> None:
    with torch.device("meta"):
        model = MAGVIT2.Config(base=32, multipliers=(1,), blocks=1).build(pictures(8, 8))
    ids = torch.tensor(numbers)[:, None, None]
    signs = ((ids[..., 0] >> torch.arange(18)) & 1) * 2.0 - 1
    model = model.to_empty(device="cpu")
    assert torch.equal(model.codes(ids)[:, :, 0, 0], signs)
    assert torch.equal(model.quantise(signs[:, :, None, None]), ids)
    assert torch.equal(model.quantise(3e-9 * signs[:, :, None, None]), ids)  # only signs count
    low = model.quantise(torch.cat([signs[:, :9], -torch.ones(len(ids), 9)], 1)[:, :, None, None])
    assert torch.equal(low, ids % 512), "the first factor is channels 0 to 8"


def test_zero_is_not_positive(small: MAGVIT2) -> None:
    assert small.quantise(torch.zeros(1, 6, 1, 1)).item() == 0


def test_upsampling_takes_the_place_in_the_square_before_the_channel() -> None:
    layer = Upsample(2)
    torch.nn.init.zeros_(layer.conv1.weight)
    layer.conv1.bias.data = torch.arange(8.0)
    out = layer(torch.zeros(1, 2, 1, 1))
    assert out[0].tolist() == [[[0, 2], [4, 6]], [[1, 3], [5, 7]]]


def test_frames_are_encoded_and_decoded_each_by_itself(small: MAGVIT2, monkeypatch: pytest.MonkeyPatch) -> None:
    video = torch.rand(2, 3, 3, 8, 12)
    ids = small.encode(video)
    assert ids.shape == (2, 3, 4, 6)
    assert ids.dtype == torch.int64
    shown = small.decode(ids)
    assert shown.shape == video.shape
    assert shown.dtype == torch.float32
    assert 0 <= shown.min() < shown.max() <= 1
    monkeypatch.setattr(magvit2, "PIXELS_AT_ONCE", 1)
    assert torch.equal(small.encode(video), ids)
    torch.testing.assert_close(small.decode(ids), shown)
    torch.testing.assert_close(small.decode(ids[1:, 2:]), shown[1:, 2:])


def test_half_precision_stays_near(small: MAGVIT2) -> None:
    half = MAGVIT2.tiny().build(pictures(8, 12)).eval()
    half.load_state_dict(small.state_dict())
    half.to(torch.bfloat16)
    video = torch.rand(2, 2, 3, 8, 12)
    ids = small.encode(video)
    bits = torch.stack([(x[..., None] >> torch.arange(6)) & 1 for x in (ids, half.encode(video))])
    assert (bits[0] == bits[1]).float().mean() > 0.95
    assert (half.decode(ids) - small.decode(ids)).abs().max() < 0.05


@pytest.mark.parametrize("shape", [(2, 3, 8, 12), (1, 2, 3, 12, 8), (1, 2, 1, 8, 12)])
def test_video_of_another_shape_is_refused(small: MAGVIT2, shape: tuple[int, ...]) -> None:
    with pytest.raises(HwmError, match=r"takes video of shape \(B, F, 3, 8, 12\)"):
        small.encode(torch.rand(shape))


def test_ids_of_another_kind_are_refused(small: MAGVIT2) -> None:
    ids = torch.zeros(1, 1, 4, 6, dtype=torch.long)
    for wrong in (ids[0], ids[:, :, :3], ids.float()):
        with pytest.raises(HwmError, match=r"takes integer ids of shape \(B, T, 4, 6\)"):
            small.decode(wrong)
    for value in (-1, 64):
        with pytest.raises(HwmError, match=r"must be in 0..63"):
            small.decode(ids + value)


def test_configs_that_cannot_be_are_refused() -> None:
    for config, spec in (
        (MAGVIT2.Config(base=48), pictures(16, 16)),
        (MAGVIT2.Config(multipliers=()), pictures(16, 16)),
        (MAGVIT2.Config(base=32, bits=0), pictures(16, 16)),
        (MAGVIT2.Config(base=32, bits=18, factors=4), pictures(16, 16)),
        (MAGVIT2.Config(base=32, bits=64), pictures(16, 16)),
        (MAGVIT2.tiny(), pictures(8, 9)),
        (MAGVIT2.tiny(), DataSpec(LatentSpec((8, 8), channels=1), {})),
    ):
        with pytest.raises(HwmError):
            config.build(spec)


def test_it_answers_to_the_name_that_published_data_knows(small: MAGVIT2) -> None:
    assert small.answers_to(onex_v1().tokenizer)
    assert small.answers_to(small.id)
    assert not small.answers_to("tiny")
    assert not small.answers_to("")


def test_it_says_that_it_is_not_trained(small: MAGVIT2) -> None:
    with pytest.raises(HwmError, match="not trained here"):
        small.loss(None)  # type: ignore[arg-type]
