"""Image VAEs in diffusers' layout: its module's own latents, and folders that are not whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hwm import cli
from hwm.convert.download import download
from hwm.encode.files import for_size, load_latents
from hwm.errors import HwmError
from hwm.loading import load_tokenizer
from hwm.tokenizers.sd_vae import DiffusersVAE, is_diffusers, load_vae
from tests.commands.test_tokens import Shelf, film
from tests.models.toys import is_aligned

SMALL = {"block_out_channels": (32, 32, 32, 32), "down_block_types": ("DownEncoderBlock2D",) * 4, "layers_per_block": 1}
UP = {"up_block_types": ("UpDecoderBlock2D",) * 4}


def written(folder: Path, kind: str = "AutoencoderKL", **fields: Any) -> Any:
    """A small random VAE, and the folder that diffusers writes of it."""
    diffusers = pytest.importorskip("diffusers", reason="the extra `vae` is not installed")
    torch.manual_seed(0)
    vae = getattr(diffusers, kind)(**SMALL, **(UP if kind == "AutoencoderKL" else {}), **fields)
    vae.save_pretrained(folder)
    return vae.eval()


def video() -> Tensor:
    torch.manual_seed(0)
    return torch.rand(2, 3, 3, 32, 48)


@pytest.mark.parametrize("fields", [{}, {"scaling_factor": 0.5, "shift_factor": 0.25, "use_quant_conv": False}])
def test_latents_are_the_scaled_means_of_the_encoder(tmp_path: Path, fields: dict[str, Any]) -> None:
    vae = written(tmp_path / "vae", **fields)
    tokenizer = for_size(load_tokenizer(tmp_path / "vae"), (32, 48))
    assert (tokenizer.latent.grid, tokenizer.latent.channels, tokenizer.latent.stride) == ((4, 6), 4, 1)
    assert all(is_aligned(w) for w in tokenizer.state_dict().values())
    latents = tokenizer.encode(video())
    assert latents.shape == (2, 3, 4, 4, 6)
    with torch.no_grad():
        mean = vae.encode(video().flatten(0, 1) * 2 - 1).latent_dist.mean
        shown = vae.decode(mean).sample
    scale, move = fields.get("scaling_factor", 0.18215), fields.get("shift_factor", 0.0)
    torch.testing.assert_close(latents.flatten(0, 1), (mean - move) * scale)
    torch.testing.assert_close(tokenizer.decode(latents).flatten(0, 1), ((shown + 1) / 2).clamp(0, 1))
    assert latents.std() > 0
    assert tokenizer.published == ("" if fields else "sd-vae")
    assert torch.equal(tokenizer.shift(latents, 2), latents[:, 1:])


def test_the_temporal_decoder_shows_each_frame_by_itself(tmp_path: Path) -> None:
    vae = written(tmp_path / "vae", "AutoencoderKLTemporalDecoder")
    tokenizer = load_vae(tmp_path / "vae", (32, 48))
    assert tokenizer.published == "svd-vae"
    latents = tokenizer.encode(video())
    with torch.no_grad():
        alone = vae.decode(latents[1, 2:] / 0.18215, num_frames=1).sample
    shown = tokenizer.decode(latents)
    torch.testing.assert_close(shown[1, 2:], ((alone + 1) / 2).clamp(0, 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokenizer.decode(latents[:, :1]), shown[:, :1], rtol=1e-4, atol=1e-5)


def test_many_pictures_go_through_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "vae")
    tokenizer = load_vae(tmp_path / "vae", (32, 48))
    latents, seen = tokenizer.encode(video()), []
    whole, encode = tokenizer.decode(latents), tokenizer.vae.encode
    monkeypatch.setattr("hwm.tokenizers.sd_vae.PIXELS_AT_ONCE", 4 * 32 * 48)
    monkeypatch.setattr(tokenizer.vae, "encode", lambda x: (seen.append(len(x)), encode(x))[1])
    torch.testing.assert_close(tokenizer.encode(video()), latents, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tokenizer.decode(latents), whole, rtol=1e-4, atol=1e-5)
    assert seen == [4, 2]


def test_a_video_file_is_encoded_and_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "vae")
    source, tokens, shown = film(tmp_path / "a.mp4", 3), tmp_path / "a.safetensors", tmp_path / "b.mp4"
    words = ["tokenizer", "encode", str(source), "--tokenizer", str(tmp_path / "vae"), "--out", str(tokens)]
    assert cli.main(words) == 2
    assert "the tokenizer takes 256 x 256" in capsys.readouterr().err
    assert cli.main([*words, "--size", "32", "48"]) == 0
    latents, about = load_latents(tokens)
    tokenizer = load_tokenizer(tmp_path / "vae")
    assert (tuple(latents.shape), about.tokenizer) == ((3, 4, 4, 6), tokenizer.id)
    assert tokenizer.id.startswith(f"{tmp_path / 'vae'}@")
    assert load_tokenizer(tokenizer.id).id == tokenizer.id
    assert cli.main(["decode", str(tokens), "--out", str(shown)]) == 0


def test_files_of_old_diffusers_are_read(tmp_path: Path) -> None:
    """Attention by its names before 0.15, as 1x1 convolutions."""
    written(tmp_path / "vae")
    new = load_vae(tmp_path / "vae", (32, 48)).encode(video())
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, w in load_file(path).items():
        for now, then in old.items():
            if f".{now}." in name:
                name, w = name.replace(now, then), w[..., None, None] if w.ndim == 2 else w
        weights[name] = w
    assert sum("query" in name for name in weights) == 4
    save_file(weights, path)
    torch.testing.assert_close(load_vae(tmp_path / "vae", (32, 48)).encode(video()), new)


def test_folders_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    written(folder)
    path, config = folder / "diffusion_pytorch_model.safetensors", folder / "config.json"
    weights, fields = load_file(path), json.loads(config.read_text(encoding="utf-8"))
    save_file({k: w for k, w in weights.items() if k != "quant_conv.bias"}, path)
    with pytest.raises(HwmError, match=r"do not fit its config.json: quant_conv.bias missing"):
        load_tokenizer(folder)
    save_file({**weights, "quant_conv.bias": torch.zeros(3)}, path)
    with pytest.raises(HwmError, match=r"quant_conv.bias"):
        load_tokenizer(folder)
    path.write_bytes(b"cut short")
    with pytest.raises(HwmError, match="cannot read the weights"):
        load_tokenizer(folder)
    path.unlink()
    with pytest.raises(HwmError, match=r"has no diffusion_pytorch_model\.safetensors"):
        load_tokenizer(folder)
    config.write_text(json.dumps({**fields, "down_block_types": ["Nothing"] * 4}), encoding="utf-8")
    path.write_bytes(b"")
    save_file(weights, path)
    with pytest.raises(HwmError, match="describes no VAE"):
        load_tokenizer(folder)
    config.write_text(json.dumps({**fields, "_class_name": "VQModel"}), encoding="utf-8")
    with pytest.raises(HwmError, match="holds a 'VQModel' of diffusers; tokenizers are AutoencoderKL and"):
        load_tokenizer(folder)


def test_wrong_sizes_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "vae")
    tokenizer = load_vae(tmp_path / "vae", (32, 48))
    with pytest.raises(HwmError, match="multiples of 8"):
        tokenizer.of_size((30, 48))
    with pytest.raises(HwmError, match=r"takes video of shape \(B, F, 3, 32, 48\)"):
        tokenizer.encode(torch.rand(1, 1, 3, 48, 32))
    with pytest.raises(HwmError, match=r"takes floating-point latents of shape \(B, T, 4, 4, 6\)"):
        tokenizer.decode(torch.zeros(1, 1, 4, 6, 4))


def test_without_the_extra_it_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}), encoding="utf-8")
    assert is_diffusers(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(HwmError, match=r"pip install 'humanoid-world-models\[vae\]'"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("no json", encoding="utf-8")
    assert not is_diffusers(tmp_path)


def test_files_are_fetched_from_where_they_lie(tmp_path: Path) -> None:
    class Hub(Shelf):
        def fetch(self, repo: str, path: str, out: Path) -> None:
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            super().fetch(repo, path, out)

    said: list[str] = []
    one = {"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"w", "diffusion_pytorch_model.bin": b"?"}
    folder = download("sd-vae-ft-mse", tmp_path, Hub(one), said.append)
    assert folder == tmp_path / "sd-vae-ft-mse"
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert "Licence: MIT" in said[0]
    folder = download("svd-vae", tmp_path, Hub({f"vae/{k}": v for k, v in one.items()}), said.append)
    assert folder == tmp_path / "stable-video-diffusion-img2vid" / "vae"
    assert (folder / "config.json").is_file()
    assert download("somebody/their-vae", tmp_path, Hub(one), said.append) == tmp_path / "their-vae"
    with pytest.raises(HwmError, match="did you mean sd-vae-ft-mse"):
        download("sd-vae-mse", tmp_path, Hub(one), said.append)


def test_it_is_a_module_whose_weights_stay(tmp_path: Path) -> None:
    written(tmp_path / "vae")
    tokenizer = load_vae(tmp_path / "vae")
    assert isinstance(tokenizer, DiffusersVAE)
    assert not any(p.requires_grad for p in tokenizer.parameters())
    assert not tokenizer.training
