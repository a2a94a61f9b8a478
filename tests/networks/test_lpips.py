from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.torch import save_file
from torch import Tensor

from hwm.errors import HwmError
from hwm.networks import lpips
from hwm.networks.lpips import LPIPS, load_lpips

SHAPES = ((0, 64, 3, 11), (3, 192, 64, 5), (6, 384, 192, 3), (8, 256, 384, 3), (10, 256, 256, 3))
"""Place in torchvision's AlexNet, channels out, channels in, and size of the window, of each convolution."""


def formula(shape: tuple[int, ...], size: float, shift: float) -> Tensor:
    """Numbers by formula, so that they are the same wherever the reference ran."""
    return torch.from_numpy(size * np.sin(np.arange(np.prod(shape)) * 1.2345 + shift)).float().view(shape)


def formula_weights() -> dict[str, Tensor]:
    """Weights under their published names: of torchvision's AlexNet, and of the channels in the package lpips."""
    out = {}
    for i, (place, wide, deep, window) in enumerate(SHAPES):
        size = 2 / (deep * window**2) ** 0.5
        out[f"features.{place}.weight"] = formula((wide, deep, window, window), size, i)
        out[f"features.{place}.bias"] = formula((wide,), 0.1, i + 0.5)
        out[f"lin{i}.model.1.weight"] = formula((1, wide, 1, 1), 1.0, i + 0.25).abs()
    return out


def waves(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Two similar pictures by formula, (1, 3, H, W)."""
    y, x = np.mgrid[0:height, 0:width]
    c = np.arange(3)[:, None, None]
    a = 0.5 + 0.45 * np.sin(0.37 * x + 0.21 * y + c)
    b = 0.5 + 0.40 * np.sin(0.37 * x + 0.21 * y + c + 0.3) + 0.05 * np.cos(1.7 * x * (c + 1))
    one, other = (torch.from_numpy(p.clip(0, 1)).float()[None] for p in (a, b))
    return one, other


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LPIPS:
    path = tmp_path_factory.mktemp("lpips") / "both.safetensors"
    save_file(formula_weights(), path)
    return load_lpips([path])


def by_hand(weights: dict[str, Tensor], x: np.ndarray, y: np.ndarray) -> float:
    """The distance of two pictures (3, H, W) in [0, 1], in numpy and double precision, one place after the other."""
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    a, b = (((2 * p - 1) - shift[:, None, None]) / scale[:, None, None] for p in (x, y))
    total = 0.0
    for i, (place, _, _, window) in enumerate(SHAPES):
        kernel = weights[f"features.{place}.weight"].double().numpy()
        bias = weights[f"features.{place}.bias"].double().numpy()
        weight = weights[f"lin{i}.model.1.weight"].double().numpy().reshape(-1)
        features = []
        for h in (a, b):
            if i in (1, 2):
                h = sliding_window_view(h, (3, 3), axis=(1, 2))[:, ::2, ::2].max((-2, -1))
            pad, step = (2, 4) if i == 0 else (window // 2, 1)
            h = np.pad(h, ((0, 0), (pad, pad), (pad, pad)))
            places = sliding_window_view(h, (window, window), axis=(1, 2))[:, ::step, ::step]
            features.append(np.maximum(np.einsum("chwij,ocij->ohw", places, kernel) + bias[:, None, None], 0))
        a, b = features
        unit = [f / np.linalg.norm(f, axis=0, keepdims=True).clip(1e-300) for f in features]
        total += float((weight[:, None, None] * (unit[0] - unit[1]) ** 2).sum(0).mean())
    return total


@pytest.mark.parametrize("size", [(64, 48), (31, 40)])
def test_it_is_the_formula_of_the_paper(model: LPIPS, size: tuple[int, int]) -> None:
    a, b = waves(*size)
    want = by_hand(formula_weights(), a[0].double().numpy(), b[0].double().numpy())
    assert want > 0.01
    assert model(a, b).item() == pytest.approx(want, rel=1e-4)


# from lpips 0.1.4: LPIPS(net="alex", pnet_rand=True) with `formula_weights`, of `waves` in [-1, 1]
KNOWN = [((64, 48), 0.2720658779), ((31, 40), 0.2730716169), ((128, 128), 0.2375907302)]


@pytest.mark.parametrize(("size", "distance"), KNOWN)
def test_known_values(model: LPIPS, size: tuple[int, int], distance: float) -> None:
    assert model(*waves(*size)).item() == pytest.approx(distance, rel=1e-4)


@given(seed=st.integers(0, 1000))
@settings(max_examples=5)
def test_equal_pictures_are_no_way_apart_and_noise_adds_to_it(model: LPIPS, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, _ = waves(48, 40)
    noise = torch.randn(x.shape, generator=generator)
    assert model(x, x).item() == 0
    apart = [model(x + level * noise, x).item() for level in (0.01, 0.03, 0.1, 0.3)]
    assert apart[0] > 0
    assert apart == sorted(apart)
    assert model(x + 0.1 * noise, x).item() == pytest.approx(model(x, x + 0.1 * noise).item(), rel=1e-5)


def test_one_value_a_picture_whatever_goes_together(model: LPIPS, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x, truth = torch.rand(2, 3, 2, 3, 32, 36, generator=generator), torch.rand(2, 1, 2, 3, 32, 36, generator=generator)
    together = model(x, truth)
    assert together.shape == (2, 3, 2)
    monkeypatch.setattr(lpips, "AT_ONCE", 5)
    torch.testing.assert_close(model(x, truth), together)
    assert model(x[1, 2, 1][None], truth[1, 0, 1][None]).item() == pytest.approx(together[1, 2, 1].item(), rel=1e-5)
    with pytest.raises(HwmError, match="31 x 31"):
        model(x[..., :30], truth[..., :30])


def test_published_layouts_are_read(model: LPIPS, tmp_path: Path) -> None:
    """Two files of the originals' names, in PyTorch's formats of then and now, with weights that have no part in it."""
    weights = formula_weights()
    trunk = {k: v for k, v in weights.items() if k.startswith("features")} | {"classifier.1.weight": torch.zeros(2, 2)}
    channels = {k: v for k, v in weights.items() if k.startswith("lin")}
    torch.save(trunk, tmp_path / "alexnet.pth")
    torch.save(channels, tmp_path / "alex.pth", _use_new_zipfile_serialization=False)
    x, y = waves(40, 40)
    assert torch.equal(load_lpips([tmp_path / "alexnet.pth", tmp_path / "alex.pth"])(x, y), model(x, y))
    # the state dict of the package's module: slices of the network, and each channel weight twice
    slices = {"0": 1, "3": 2, "6": 3, "8": 4, "10": 5}
    whole = {f"net.slice{slices[k.split('.')[1]]}.{k.partition('.')[2]}": v for k, v in trunk.items() if k[0] == "f"}
    whole |= channels | {f"lins.{k[3:]}": v for k, v in channels.items()} | {"scaling_layer.shift": torch.zeros(1, 3)}
    torch.save(whole, tmp_path / "lpips.pth")
    assert torch.equal(load_lpips([tmp_path / "lpips.pth"])(x, y), model(x, y))


class Trap:
    def __reduce__(self):
        return (print, ("run by unpickling",))


def test_what_is_wrong_with_weights_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = formula_weights()
    trunk = {k: v for k, v in weights.items() if k.startswith("features")}
    torch.save(trunk, tmp_path / "trunk.pth")
    torch.save({k: v for k, v in weights.items() if k.startswith("lin")}, tmp_path / "lins.pth")
    torch.save(weights | {"lin0.model.1.weight": torch.zeros(1, 9, 1, 1)}, tmp_path / "shape.pth")
    torch.save({"a": Trap()}, tmp_path / "trap.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "trunk.pth").read_bytes()[:1000])
    for name, message in (
        ("trunk.pth", "the channels are missing"),
        ("lins.pth", "AlexNet are missing"),
        ("shape.pth", "not the weights of LPIPS"),
        ("trap.pth", "cannot be read"),
        ("cut.pth", "cannot be read"),
        ("nowhere.pth", "cannot be read"),
    ):
        with pytest.raises(HwmError, match=message):
            load_lpips([tmp_path / name])
    assert "run by unpickling" not in capsys.readouterr().out


def test_published_weights_are_fetched_once_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"alexnet.pth": "features", "alex.pth": "lin"}
    published = {}
    for name, part in files.items():
        torch.save({k: v for k, v in formula_weights().items() if k.startswith(part)}, tmp_path / name)
        digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        published[name] = ((tmp_path / name).as_uri(), digest[:8])
    monkeypatch.setattr(lpips, "PUBLISHED", published)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    there = lpips.fetch()
    assert [p.name for p in there] == list(files)
    for name in files:
        (tmp_path / name).unlink()
    load_lpips()  # from the folder, no longer from where they are published
    there[1].unlink()
    with pytest.raises(HwmError, match=r"cannot fetch file:.*--lpips-weights"):
        load_lpips()
    (tmp_path / "alex.pth").write_bytes(b"something else")
    with pytest.raises(HwmError, match="hash"):
        load_lpips()
    assert not there[1].exists()
