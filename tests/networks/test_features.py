"""Networks that come as TorchScript files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.networks import features as module
from hwm.networks.features import i3d, inception


class Pictures(nn.Module):
    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        assert img.dtype == torch.uint8
        x = img.to(torch.float32)
        return x.mean([2, 3]) if return_features else x


class Videos(nn.Module):
    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        assert rescale
        assert resize
        assert return_features
        return torch.cat([x.mean([2, 3, 4]), x[:, :, -1].mean([2, 3]), x.new_full((len(x), 1), x.shape[2])], 1)


def test_networks_come_as_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / "inception.pt", tmp_path / "i3d.pt"]
    for network, path in zip((Pictures(), Videos()), paths, strict=True):
        torch.jit.script(network).save(str(path))
    video = torch.rand(3, 4, 3, 8, 8)
    whole = (video * 255).round()
    found = inception(paths[0])(video)
    torch.testing.assert_close(found, whole.flatten(0, 1).mean((-2, -1)))
    of_videos = i3d(paths[1])(video)
    assert of_videos.shape == (3, 7)
    torch.testing.assert_close(of_videos[:, 3:6], whole[:, -1].mean((-2, -1)))
    assert set(of_videos[:, 6].tolist()) == {10.0}, "too short a video stands still at its end"
    monkeypatch.setattr(module, "AT_ONCE", 5)
    assert torch.equal(inception(paths[0])(video), found)
    assert torch.equal(i3d(paths[1])(video), of_videos)
    with pytest.raises(HwmError, match="does not take"):
        inception(paths[1])(video)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(HwmError, match=r"FID needs the network.*nowhere\.pt is not there: fetch inception"):
        inception(tmp_path / "nowhere.pt")
    with pytest.raises(HwmError, match=r"FVD needs the network.*fetch i3d_torchscript"):
        i3d(tmp_path / "nowhere.pt")
    (tmp_path / "other.pt").write_bytes(b"something else")
    with pytest.raises(HwmError, match="not a TorchScript file"):
        i3d(tmp_path / "other.pt")
