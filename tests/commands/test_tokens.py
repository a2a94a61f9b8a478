"""`hwm tokenizer` and `hwm decode`: what is written, and what is said of bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hwm import cli
from hwm.convert.download import REPOSITORIES, download
from hwm.data.store import Store
from hwm.encode.files import About, for_size, load_latents, save_latents
from hwm.errors import HwmError
from hwm.evaluate import tokenizer as report
from hwm.evaluate.tokenizer import codebook_usage
from hwm.hub import RemoteFile
from hwm.loading import load_tokenizer
from hwm.networks.efficientnet import EfficientNetLite0
from hwm.pictures.video import count_frames, read_video, to_uint8, to_video, write_video
from hwm.tokenizers.cosmos import CosmosVideo
from hwm.tokenizers.pixels import Pixels
from hwm.train.checkpoint import save_model
from hwm.types import DataSpec, LatentSpec

SIZE = (32, 48)


def film(path: Path, frames: int, size: tuple[int, int] = SIZE, fps: float = 30) -> Path:
    """Blobs that wander."""
    t, y, x = np.ogrid[:frames, : size[0], : size[1]]
    red = 127 + 120 * np.sin(x / 7 + t / 5) * np.cos(y / 9)
    pictures = np.stack([red, red[:, ::-1], 255 - red], -1).astype(np.uint8)
    write_video(path, pictures, fps, crf=10)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose ids differ from picture to picture."""
    torch.manual_seed(0)
    model = CosmosVideo.Config(base=4, blocks=1, z=8, multipliers=(1, 2)).build(
        DataSpec(LatentSpec(SIZE, channels=3), {})
    )
    torch.nn.init.normal_(model.home, std=3.0)
    path = tmp_path_factory.mktemp("tokenizer") / "cosmos"
    save_model(path, model)
    return path


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


def distance(video: Path, frames: np.ndarray) -> float:
    """Mean distance of a video file's pixels to frames, of 255: two encodings need not lose the same."""
    return float(
        np.mean([np.abs(one.astype(int) - other).mean() for one, other in zip(read_video(video), frames, strict=True)])
    )


@pytest.mark.parametrize("frames", [1, 9, 41])
def test_a_video_becomes_latents_and_a_video_again(folder: Path, tmp_path: Path, frames: int) -> None:
    source, tokens, shown = film(tmp_path / "a.mp4", frames), tmp_path / "a.safetensors", tmp_path / "b.mp4"
    assert run("tokenizer", "encode", source, "--tokenizer", folder, "--out", tokens) == 0
    latents, about = load_latents(tokens)
    tokenizer = load_tokenizer(folder)
    assert about == About(tokenizer=tokenizer.id, frames=frames, fps=30.0, size=SIZE, dtype="float32")
    truth = to_video(list(read_video(source)), SIZE)
    assert torch.equal(latents.long(), tokenizer.encode(truth[None])[0]), "what `encode` gives of the whole"
    assert run("decode", tokens, "--out", shown) == 0
    assert count_frames(shown) == frames
    whole = to_uint8(tokenizer.decode(latents[None].long())[0])
    write_video(tmp_path / "c.mp4", whole, 30)
    lost, lost_whole = (distance(path, whole) for path in (shown, tmp_path / "c.mp4"))
    assert lost < 1.1 * lost_whole + 1, "further from the decoded frames than what the video format loses"
    assert run("decode", tokens, "--out", shown, "--steps", 1) == 0
    assert count_frames(shown) == 1


def test_clips_are_encoded_each_by_itself(folder: Path, tmp_path: Path) -> None:
    source, tokens = film(tmp_path / "a.mp4", 51), tmp_path / "a.safetensors"
    assert run("tokenizer", "encode", source, "--tokenizer", folder, "--out", tokens, "--clip", 17) == 0
    latents, about = load_latents(tokens)
    tokenizer = load_tokenizer(folder)
    clips = to_video(list(read_video(source)), SIZE).unflatten(0, (3, 17))
    assert (about.clip, about.frames) == (17, 51)
    assert torch.equal(latents.long(), tokenizer.encode(clips).flatten(0, 1))
    assert run("decode", tokens, "--out", tmp_path / "b.mp4") == 0
    assert count_frames(tmp_path / "b.mp4") == 51
    whole = tmp_path / "whole.safetensors"
    assert run("tokenizer", "encode", source, "--tokenizer", folder, "--out", whole) == 0
    assert load_latents(whole)[0].shape[0] == 8  # 1 + 6 * 8 frames, and two more


@pytest.mark.parametrize(("frames", "clip", "steps"), [(12, 0, 3), (35, 0, 6), (20, 17, 6), (2, 0, 2)])
def test_frames_that_do_not_fill_a_step_are_repeated_or_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], frames: int, clip: int, steps: int
) -> None:
    source, tokens = film(tmp_path / "a.mp4", frames), tmp_path / "a.safetensors"
    given = ("tokenizer", "encode", source, "--tokenizer", folder, "--out", tokens, "--clip", clip)
    assert run(*given, "--strict") == 2
    assert f"a.mp4 has {frames} frames, which are not " in capsys.readouterr().err
    assert not tokens.exists()
    assert run(*given) == 0
    assert "the last frame stands" in capsys.readouterr().out
    latents, about = load_latents(tokens)
    assert (about.frames, latents.shape[0]) == (frames, steps)
    assert run("decode", tokens, "--out", tmp_path / "b.mp4") == 0
    assert count_frames(tmp_path / "b.mp4") == frames, "what was repeated is left out again"


@pytest.mark.parametrize("size", [(36, 46), (32, 50), (6, 4), (40, 64)])
def test_the_size_that_is_suggested_is_taken(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], size: tuple[int, int]
) -> None:
    source = film(tmp_path / "a.mp4", 9, size)
    given = ("tokenizer", "encode", source, "--tokenizer", folder, "--out", tmp_path / "a.safetensors")
    assert run(*given) == 2
    words = re.findall(r"\((--size [^)]*)\)", capsys.readouterr().err)
    assert run(*given, *words[0].split()) == 0


def test_sizes_and_rates(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, tokens = film(tmp_path / "a.mp4", 18, (64, 80), fps=60), tmp_path / "a.safetensors"
    given = ("tokenizer", "encode", source, "--tokenizer", folder, "--out", tokens)
    assert run(*given) == 2
    assert "64 x 80 (height x width), the tokenizer takes 32 x 48" in capsys.readouterr().err
    assert run(*given, "--size", 64, 82) == 2
    assert "multiples of 8, not 64 x 82: the nearest size is 64 x 80" in capsys.readouterr().err
    assert run(*given, "--resize", "--fps", 25) == 2
    assert "has 60 frames a second, of which 25 cannot be taken evenly" in capsys.readouterr().err
    assert run(*given, "--resize", "--fps", 30) == 0
    latents, about = load_latents(tokens)
    assert (about.frames, about.fps, about.size, tuple(latents.shape)) == (9, 30.0, SIZE, (2, 4, 6))
    assert run(*given, "--size", 64, 80, "--fps", 30) == 0
    latents, about = load_latents(tokens)
    assert (about.size, tuple(latents.shape)) == ((64, 80), (2, 8, 10))
    assert run("decode", tokens, "--out", tmp_path / "b.mp4") == 0
    assert next(read_video(tmp_path / "b.mp4")).shape == (64, 80, 3)
    assert run(*given, "--size", 64, 80, "--clip", 16) == 2
    assert "a clip of 16 frames does not fill whole latent steps: choose 1 + 8 * n" in capsys.readouterr().err


def test_half_precision_gives_nearly_the_same(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, found = film(tmp_path / "a.mp4", 17), []
    for half in ([], ["--dtype", "bfloat16"]):
        tokens = tmp_path / f"{len(half)}.safetensors"
        assert run("tokenizer", "encode", source, "--tokenizer", folder, "--out", tokens, *half) == 0
        assert run("decode", tokens, "--out", tmp_path / f"{len(half)}.mp4", *half) == 0
        found.append(load_latents(tokens))
    (whole, about), (rounded, again) = found
    assert (about.tokenizer, about.dtype, again.dtype) == (again.tokenizer, "float32", "bfloat16")
    assert 0.5 < (whole == rounded).float().mean() < 1
    shown = [np.stack(list(read_video(tmp_path / f"{i}.mp4"))).astype(float) for i in (0, 2)]
    assert np.abs(shown[0] - shown[1]).mean() < 8
    assert run("tokenizer", "report", source, "--tokenizer", "pixels-32x48", "--dtype", "bfloat16") == 2
    assert "leave out --dtype bfloat16" in capsys.readouterr().err
    old = tmp_path / "old.safetensors"
    assert run("tokenizer", "encode", source, "--tokenizer", folder, "--out", old, "--half") == 0
    assert "note: --half is now --dtype bfloat16" in capsys.readouterr().err
    assert torch.equal(load_latents(old)[0], rounded)


def test_weights_that_could_be_downloaded_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = film(tmp_path / "a.mp4", 1)
    assert run("tokenizer", "encode", source, "--tokenizer", "cosmos-dv8x8x8", "--out", tmp_path / "x.safetensors") == 2
    assert "hwm tokenizer download cosmos-dv8x8x8 fetches it" in capsys.readouterr().err


def test_a_folder_is_gone_through_and_gone_on_with(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    films = tmp_path / "films"
    films.mkdir()
    for i in range(3):
        film(films / f"{i}.mp4", 9)
    (films / "notes.txt").write_text("not a video", encoding="utf-8")
    assert run("tokenizer", "encode", films, "--tokenizer", folder, "--out", tmp_path / "tokens") == 0
    assert sorted(p.name for p in (tmp_path / "tokens").iterdir()) == [f"{i}.safetensors" for i in range(3)]
    (tmp_path / "tokens" / "1.safetensors").unlink()
    before = (tmp_path / "tokens" / "0.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert run("tokenizer", "encode", films, "--tokenizer", folder, "--out", tmp_path / "tokens") == 0
    assert "2 of 3 are there already" in capsys.readouterr().out
    assert (tmp_path / "tokens" / "0.safetensors").stat().st_mtime_ns == before
    for other, said in (
        (["--clip", 9], "clip: 0, now 9"),
        (["--fps", 15], "fps: 30.0, now 15.0"),
        (["--size", 16, 24], "size: [32, 48], now [16, 24]"),
        (["--dtype", "bfloat16"], "dtype: 'float32', now 'bfloat16'"),
        (["--tokenizer", "tiny"], f"tokenizer: '{load_tokenizer(folder).id}', now 'tiny@"),
    ):
        words = ["tokenizer", "encode", films, "--tokenizer", folder, "--out", tmp_path / "tokens", *other]
        assert run(*words) == 2
        assert said in capsys.readouterr().err
    old = tmp_path / "tokens" / "0.safetensors"
    latents, about = load_latents(old)
    save_latents(old, latents, replace(about, dtype=""))  # as earlier versions wrote it
    assert run("tokenizer", "encode", films, "--tokenizer", folder, "--out", tmp_path / "tokens") == 0
    assert run("decode", tmp_path / "tokens", "--out", tmp_path / "shown") == 0
    assert sorted(p.name for p in (tmp_path / "shown").iterdir()) == [f"{i}.mp4" for i in range(3)]
    assert run("decode", tmp_path / "tokens", "--out", tmp_path / "shown") == 0
    capsys.readouterr()
    assert run("decode", tmp_path / "tokens", "--out", tmp_path / "shown", "--steps", 1) == 2
    assert "0.mp4 is there with 9 frames, and 1 are asked for" in capsys.readouterr().err
    film(films / "1.mkv", 9)
    assert run("tokenizer", "encode", films, "--tokenizer", folder, "--out", tmp_path / "other") == 2
    assert "several files" in capsys.readouterr().err


def test_videos_by_themselves_are_no_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is chosen by guessing: who calls the old form is told of both new ones."""
    (tmp_path / "films").mkdir()
    source = film(tmp_path / "films" / "a.mp4", 2)

    def fails(message: str, *words: object) -> None:
        assert run("encode", *words, "--out", tmp_path / "out") == 2
        assert message in capsys.readouterr().err

    (tmp_path / "films/a.json").write_text("{}", encoding="utf-8")
    fails("a.json is of a kind that is not read. Is that meant?", source.parent)
    for path in (source, tmp_path / "films"):
        fails("Videos without actions are read with --kind videos", path)
        for old in (["--store"], ["--resize"], ["--strict"], ["--size", "8", "8"], ["--size=8"]):
            fails("files of latents of videos by themselves are made by hwm tokenizer encode", path, *old)
    (tmp_path / "films/a.csv").write_text("x\n1\n2\n", encoding="utf-8")  # and nobody is told that there are no actions
    assert run("encode", tmp_path / "films", "--tokenizer", "pixels-8x8", "--out", tmp_path / "out") == 0
    assert Store(tmp_path / "out").header.action_names == ("x",)
    fails("there is no", tmp_path / "not_there.mp4")
    assert run("tokenizer", "encode", tmp_path / "not_there.mp4", "--out", tmp_path / "x.safetensors") == 2
    assert "there is no" in capsys.readouterr().err


def test_bad_files_and_places_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, tokens = film(tmp_path / "good.mp4", 9), tmp_path / "t.safetensors"
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video at all")

    def fails(message: str, *words: object) -> None:
        assert run(*words) == 2
        assert message in capsys.readouterr().err

    fails("cannot read the video", "tokenizer", "encode", broken, "--tokenizer", folder, "--out", tokens)
    fails("name the .safetensors file", "tokenizer", "encode", good, "--tokenizer", folder, "--out", tmp_path / "t.mp4")
    fails("there is no tokenizer", "tokenizer", "encode", good, "--tokenizer", "nobody", "--out", tokens)
    fails("name the .mp4 file", "decode", good, "--out", tmp_path)
    fails("cannot read the latents", "decode", broken, "--out", tmp_path / "x.mp4")
    save_file({"latents": torch.zeros(1)}, tmp_path / "other.safetensors")
    fails("is no file of latents", "decode", tmp_path / "other.safetensors", "--out", tmp_path / "x.mp4")
    about = About(tokenizer=load_tokenizer(folder).id, frames=9, fps=30.0, size=SIZE)
    save_latents(tokens, torch.full((2, 4, 6), 64_000), about)
    fails("token ids must be in 0..63999", "decode", tokens, "--out", tmp_path / "x.mp4")
    save_latents(
        tokens, torch.zeros(2, 4, 6, dtype=torch.long), About(tokenizer="magvit2", frames=9, fps=30.0, size=SIZE)
    )
    fails("which mean nothing to", "decode", tokens, "--tokenizer", folder, "--out", tmp_path / "x.mp4")
    fails("--steps -1", "decode", tokens, "--tokenizer", folder, "--out", tmp_path / "x.mp4", "--steps", -1)
    assert not (tmp_path / "x.mp4").exists()


def test_a_tokenizer_of_one_size_is_not_taken_for_another() -> None:
    pixels = Pixels((8, 8))
    assert for_size(pixels, (8, 8)) is pixels
    with pytest.raises(HwmError, match="takes pictures of 8 x 8 only"):
        for_size(pixels, (16, 16))


def test_the_report_tells_quality_and_codebook_usage(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = film(tmp_path / "a.mp4", 20), tmp_path / "r.png"
    assert run("tokenizer", "report", source, "--tokenizer", folder, "--out", out, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["frames"], told["size"], told["source"]) == (17, list(SIZE), "a.mp4")
    tokenizer = load_tokenizer(folder)
    truth = to_video(list(read_video(source))[:17], SIZE)
    ids = tokenizer.encode(truth[None])
    error = (tokenizer.decode(ids)[0] - truth).square().mean((1, 2, 3))
    assert told["psnr"] == pytest.approx((-10 * error.log10()).mean().item(), abs=1e-3)
    assert told["psnr_worst"] <= told["psnr"]
    still = truth[:16:8].repeat_interleave(8, 0) - truth[1:]
    assert told["psnr_copy"] == pytest.approx((-10 * still.square().mean((1, 2, 3)).log10()).mean().item(), abs=1e-3)
    assert told["codes"]["different"] == len(ids.unique()) > 3
    assert told["codes"]["cells"] == ids.numel() == 3 * 4 * 6
    assert told["codes"]["usage"] == len(ids.unique()) / tokenizer.latent.vocab
    assert run("tokenizer", "report", source, "--tokenizer", folder) == 0
    assert f"codebook usage {told['codes']['usage']:.2%}: {len(ids.unique())} of " in capsys.readouterr().out
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert run("tokenizer", "report", source, "--tokenizer", "pixels-32x48") == 0
    assert "PSNR 100.00 dB" in capsys.readouterr().out
    assert run("tokenizer", "report", source, "--tokenizer", folder, "--out", tmp_path / "r.jpg") == 2
    film(tmp_path / "b.mp4", 9, fps=60)
    assert run("tokenizer", "report", tmp_path, "--tokenizer", folder, "--fps", 30, "--json") == 0
    both = json.loads(capsys.readouterr().out)
    assert (both["videos"], both["frames"], both["codes"]["cells"]) == (2, 17 + 1, 4 * 4 * 6)
    assert run("tokenizer", "report", tmp_path, "--tokenizer", folder, "--fps", 25) == 2
    assert "cannot be taken evenly" in capsys.readouterr().err
    assert run("tokenizer") == 0
    assert run("tokenizer", "reprot") == 2


def test_the_report_tells_the_perceptual_distance_where_its_weights_are(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, network = film(tmp_path / "a.mp4", 9), EfficientNetLite0()
    monkeypatch.setattr(report, "installed", lambda: tmp_path)
    monkeypatch.setattr(report, "load_efficientnet", lambda: network)
    assert run("tokenizer", "report", source, "--tokenizer", folder, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    tokenizer = load_tokenizer(folder)
    truth = to_video(list(read_video(source)), SIZE)
    made = tokenizer.decode(tokenizer.encode(truth[None]))[0]
    assert told["perceptual"] == pytest.approx(network(made, truth).mean().item(), rel=1e-3)
    still = truth[:1].expand(8, -1, -1, -1)
    assert told["perceptual_copy"] == pytest.approx(network(still, truth[1:]).mean().item(), rel=1e-3)
    assert run("tokenizer", "report", source, "--tokenizer", folder) == 0
    assert f"perceptual distance {told['perceptual']:.4f}, of the frame before" in capsys.readouterr().out
    assert run("tokenizer", "report", source, "--tokenizer", "pixels-16x24", "--json") == 0
    assert json.loads(capsys.readouterr().out)["perceptual"] is None, "too small a picture for it"
    monkeypatch.setattr(report, "installed", lambda: None)
    assert run("tokenizer", "report", source, "--tokenizer", folder) == 0
    assert "perceptual" not in capsys.readouterr().out


def test_codebook_usage_is_counted() -> None:
    class Any4(Pixels):
        latent = LatentSpec((1, 1), 4, levels=(2, 2))

    any4 = Any4.__new__(Any4)
    found = codebook_usage(torch.tensor([0, 0, 1, 1]), any4)
    assert (found.cells, found.different, found.vocab, found.usage, found.levels) == (4, 2, 4, 0.5, (1.0, 0.5))
    assert found.perplexity == pytest.approx(2)


class Shelf:
    """A hub with one repository in it."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.contents, self.fetched = files, 0

    def files(self, repo: str, folder: str) -> Iterable[RemoteFile]:
        if not self.contents:
            raise OSError("401 unauthorised")
        return [RemoteFile(name, len(data)) for name, data in self.contents.items()]

    def fetch(self, repo: str, path: str, out: Path) -> None:
        self.fetched += 1
        out.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(self.contents[path])


def test_the_two_halves_are_fetched_and_the_licence_is_told(tmp_path: Path) -> None:
    hub, said = Shelf({"encoder.jit": b"e", "decoder.jit": b"d", "autoencoder.jit": b"both", "README.md": b"?"}), []
    folder = download("cosmos-dv8x8x8", tmp_path, hub, said.append)
    assert folder == tmp_path / "Cosmos-0.1-Tokenizer-DV8x8x8"
    assert sorted(p.name for p in folder.iterdir()) == ["decoder.jit", "encoder.jit"]
    assert "NVIDIA Open Model License" in said[0]
    assert download("cosmos-dv8x8x8", tmp_path, hub, said.append) == folder
    assert hub.fetched == 2
    assert "0 of 2 files to fetch" in said[-1]
    with pytest.raises(HwmError, match=r"did you mean cosmos-dv"):
        download("cosmos-dv8x8", tmp_path, hub, said.append)
    with pytest.raises(HwmError, match=r"has no decoder.jit: it has been moved"):
        download("cosmos-dv8x8x8", tmp_path, Shelf({"encoder.jit": b"e"}), said.append)
    with pytest.raises(HwmError, match=r"401 unauthorised.* accept its licence there and set HF_TOKEN"):
        download("cosmos-dv8x8x8", tmp_path, Shelf({}), said.append)


def test_every_name_says_its_variant() -> None:
    for name, repo in REPOSITORIES.items():
        assert repo.lower().endswith(name.removeprefix("cosmos-"))
