"""Training of the Cosmos tokenizers with the one trainer: gradients, runs that go on, and what comes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hwm import cli
from hwm.commands.training import train_recipe
from hwm.data.mixture import DataConfig
from hwm.data.readers import open_store
from hwm.data.store import Header
from hwm.data.writer import Writer
from hwm.encode.files import for_size
from hwm.errors import HwmError
from hwm.loading import load_tokenizer
from hwm.objectives.reconstruction import LossWeights
from hwm.recipes import Recipe
from hwm.tokenizers.cosmos import Cosmos, CosmosImage, CosmosVideo
from hwm.train.blocks import recompute
from hwm.train.config import TrainConfig
from hwm.types import Batch, DataSpec, LatentSpec
from hwm.weights import load_tensors
from tests.commands.test_tokens import film

SIZE = (16, 32)
SPEC = DataSpec(LatentSpec(SIZE, channels=3), {}, "pixels-16x32")
ADVERSARIAL = LossWeights(squared=1.0, adversarial=0.2, begins=2, width=8, halvings=2)
KINDS: dict[str, Cosmos.Config] = {
    "dv": CosmosVideo.tiny(),
    "cv": replace(CosmosVideo.tiny(), levels=(), channels=5),
    "dv4": replace(CosmosVideo.tiny(), time=4, loss_weights=ADVERSARIAL),
    "di": CosmosImage.tiny(),
    "ci": replace(CosmosImage.tiny(), levels=(), channels=4, loss_weights=ADVERSARIAL),
}


def clips(frames: int, size: int = 2, seed: int = 0) -> Tensor:
    """Smooth pictures that move: (B, F, 3, 16, 32) in [0, 1]."""
    g = torch.Generator().manual_seed(seed)
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(16), torch.arange(32), indexing="ij")
    phase = torch.rand(size, 1, 3, 1, 1, generator=g) * 6
    return 0.5 + 0.4 * torch.sin(phase + (x + 2 * t)[:, None] / 6) * torch.cos(y[:, None] / 5)


def batch(frames: int) -> Batch:
    return Batch(clips(frames), torch.zeros(2, frames, 1, 1), "toy")


def build(config: Cosmos.Config) -> Cosmos:
    torch.manual_seed(0)
    model: Cosmos = config.build(SPEC)
    return model.train()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of 24 pictures."""
    path = tmp_path_factory.mktemp("pixels") / "store"
    latent = LatentSpec(SIZE, channels=3)
    writer = Writer(path, Header(embodiment="toy", action_names=("a",), actions_per_step=1, fps=10.0, latent=latent,
                                 dtype="uint8", tokenizer="pixels-16x32"))  # fmt: skip
    for i in range(2):
        values = (clips(24, 1, seed=i)[0] * 255).round().byte().numpy()
        writer.add(f"e{i}", np.random.default_rng(i).normal(size=(24, 1, 1)), values)
    return writer.finish().path


def small(store: Path, config: Cosmos.Config, **train: object) -> Recipe:
    data = DataConfig(stores=(str(store),), val_stores=(str(store),), steps=config.frames + 1)
    settings = {"steps": 6, "batch_size": 2, "lr": 3e-3, "floor": 1.0, "warmup": 1, "ema": 0.5, "val_every": 3,
                "val_batches": 1, "save_every": 3, "keep": 0, "device": "cpu"}  # fmt: skip
    return Recipe(model=config, data=data, train=TrainConfig(**{**settings, **train}))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_has_a_gradient_and_the_loss_falls(kind: str) -> None:
    model = build(KINDS[kind])
    if model.adversary:
        model.adversary.passes += 2
    given = batch(model.latent.frames(3))
    model.loss(given)[0].backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    last = "adversary.discriminator"  # whose last bias counts for real and made alike
    assert [name for name in silent if not name.startswith(last)] == []
    assert len([name for name in silent if name.startswith(last)]) <= 1
    model = build(replace(KINDS[kind], loss_weights=LossWeights()))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(30):
        loss, values = model.loss(given)
        assert values["absolute"] == loss.detach()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("kind", ["dv", "cv", "di"])
def test_the_loss_is_that_of_encoding_and_decoding(kind: str) -> None:
    model = build(KINDS[kind]).eval()
    with torch.no_grad():  # pictures about grey, of which nothing is clamped
        list(model.decoder.parameters())[-2].mul_(0.1)
    given = batch(model.latent.frames(3))
    loss, values = model.loss(given)
    shown = model.decode(model.encode(given.latents))
    inside = (shown - given.latents).abs().mean() * 2  # values in [-1, 1]
    assert 0 < shown.min() < shown.max() < 1
    torch.testing.assert_close(loss.detach(), inside, rtol=1e-4, atol=1e-5)
    assert 0 < values["psnr"] < 40


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_units_that_are_computed_again_give_the_same_gradients(mode: str) -> None:
    given = batch(17)
    gradients = []
    for again in ("none", mode):
        model = build(KINDS["dv"])
        assert len(list(model.units())) == 13
        recompute(model, again)
        model.loss(given)[0].backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dv4", "ci"])
def test_a_compiled_model_has_the_same_gradients(kind: str) -> None:
    gradients = []
    for compiled in (False, True):
        torch.compiler.reset()
        model = build(replace(KINDS[kind], loss_weights=replace(KINDS[kind].loss_weights, begins=0)))
        run = torch.compile(model, backend="aot_eager") if compiled else model
        run(batch(model.latent.frames(2)))[0].backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_half_precision_trains_with_an_adversary() -> None:
    model = build(replace(KINDS["dv4"], loss_weights=replace(ADVERSARIAL, begins=0)))
    with torch.autocast("cpu", torch.bfloat16):
        loss, values = model.loss(batch(9))
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert values["adversarial_weight"] > 0


def test_windows_that_do_not_fill_steps_are_refused() -> None:
    model = build(KINDS["dv"])
    with pytest.raises(HwmError, match=r"8 frames do not fill whole latent steps: they hold 1 \+ 8 \* n"):
        model.loss(batch(8))


@pytest.mark.parametrize("kind", ["dv", "dv4"])
def test_a_run_that_goes_on_is_the_run_that_did_not_stop(store: Path, tmp_path: Path, kind: str) -> None:
    recipe = small(store, KINDS[kind])
    train_recipe(recipe, tmp_path / "whole")
    train_recipe(recipe.but(train={"steps": 3}), tmp_path / "parts")
    train_recipe(recipe, tmp_path / "parts")
    for file in ("model.safetensors", "state/raw.safetensors", "state/optimizer_0.safetensors"):
        one, other = (
            load_tensors(tmp_path / run / "checkpoints" / "step_00000006" / file) for run in ("whole", "parts")
        )
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), name


def test_what_was_trained_encodes_is_exported_and_begins_another_run(store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_recipe(small(store, KINDS["dv4"]), run)
    tokenizer = load_tokenizer(run)
    assert isinstance(tokenizer, CosmosVideo)
    assert tokenizer.config == KINDS["dv4"]
    video = clips(9)
    ids = tokenizer.encode(video)
    source = film(tmp_path / "a.mp4", 9, SIZE)
    assert (
        cli.main(
            ["tokenizer", "encode", str(source), "--tokenizer", str(run), "--out", str(tmp_path / "a.safetensors")]
        )
        == 0
    )
    assert for_size(tokenizer, (32, 32)).latent.grid == (4, 4)
    published = tmp_path / "Mine-DV4x8x8"
    assert cli.main(["convert", "cosmos-tokenizer", str(run), "--to", "published", "--out", str(published)]) == 0
    assert cli.main(["convert", "cosmos-tokenizer", str(published), "--out", str(tmp_path / "ours")]) == 0
    again = load_tokenizer(tmp_path / "ours")
    assert isinstance(again, CosmosVideo)
    assert again.adversary is None
    fitted = for_size(again, SIZE)
    assert torch.equal(fitted.encode(video), ids)
    # from weights without an adversary to a run with one, and on from there
    tuned = train_recipe(
        small(store, KINDS["dv4"], steps=1, lr=0.0, ema=0.0), tmp_path / "tuned", str(tmp_path / "ours")
    )
    assert torch.equal(tuned.encode(video), ids)
    plain = replace(KINDS["dv4"], loss_weights=LossWeights())
    bare = train_recipe(small(store, plain, steps=1, lr=0.0, ema=0.0), tmp_path / "bare", str(tmp_path / "ours"))
    assert torch.equal(bare.encode(video), ids)


def test_videos_become_a_store_to_train_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    films, out = tmp_path / "films", tmp_path / "pixels"
    films.mkdir()
    for i, frames in enumerate((20, 12)):
        film(films / f"{i}.mp4", frames, (32, 64))
    words = ["encode", str(films), "--kind", "videos", "--tokenizer", "pixels-16x32", "--out", str(out)]
    assert cli.main(words) == 0
    assert "2 episodes, 32 steps" in capsys.readouterr().out
    stored = open_store(out)
    assert [e.steps for e in stored.episodes] == [20, 12]
    assert (stored.header.dtype, stored.header.fps, stored.latents[0].shape) == ("uint8", 30.0, (3, *SIZE))
    assert stored.latents[0].max() > 200
    model = train_recipe(small(out, KINDS["dv"], steps=1), tmp_path / "run")
    assert model.encode(clips(9)).shape == (2, 2, 2, 4)
    film(films / "other.mp4", 9, (32, 64), fps=60)
    assert cli.main([*words[:-1], str(tmp_path / "mixed")]) == 2
    assert "other.mp4 has 60 frames a second and 0.mp4 30: say how many to take" in capsys.readouterr().err
    assert cli.main([*words[:-1], str(tmp_path / "even"), "--fps", "30"]) == 0
    even = open_store(tmp_path / "even")
    assert [e.steps for e in even.episodes] == [20, 12, 5]
    assert np.array_equal(even.latents[:32], stored.latents), "every frame of those of 30 a second"
    assert cli.main([*words[:-1], str(tmp_path / "fast"), "--fps", "40"]) == 2
    assert "40 cannot be made of them" in capsys.readouterr().err
    assert cli.main([*words, "--camera", "top"]) == 2
    assert "have no cameras" in capsys.readouterr().err
    (films / "0.mkv").write_bytes((films / "0.mp4").read_bytes())
    assert cli.main([*words[:-1], str(tmp_path / "double")]) == 2
    assert "several episodes are called '0'" in capsys.readouterr().err


def test_a_store_of_ids_leaves_out_frames_that_fill_no_step(store: Path, tmp_path: Path) -> None:
    run, source = tmp_path / "run", film(tmp_path / "a.mp4", 12, SIZE)
    train_recipe(small(store, KINDS["dv"], steps=1), run)
    words = ["encode", str(source), "--kind", "videos", "--tokenizer", str(run), "--out", str(tmp_path / "ids")]
    assert cli.main(words) == 0
    stored = open_store(tmp_path / "ids")
    assert (stored.steps, stored.header.fps, stored.header.tokenizer) == (2, 30 / 8, load_tokenizer(run).id)
