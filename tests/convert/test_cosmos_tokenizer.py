"""Cosmos tokenizers as published: TorchScript and safetensors files, which variant they are, and broken ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hwm import cli
from hwm.convert import from_reference
from hwm.convert.cases import compare, read_case, table
from hwm.convert.cosmos_tokenizer import load_torchscript, read, resampling, resampling_of, write
from hwm.data.onex.specs import onex_v2
from hwm.errors import CheckpointError, HwmError
from hwm.loading import load_tokenizer
from hwm.tokenizers.cosmos import Cosmos, CosmosImage, CosmosVideo
from hwm.tokenizers.cosmos_video import Down, Up
from hwm.tokenizers.fsq import FSQ
from hwm.types import DataSpec, LatentSpec
from hwm.weights import save_tensors
from tests.parity import large_folder, recorded_path

SIZE = (16, 32)
Shelf = Callable[[Cosmos.Config], Path]
CASES = ("cosmos-image-ci8x8", "cosmos-image-di16x16-patch2", "cosmos-tokenizer-cv4x8x8-decoder",
         "cosmos-tokenizer-cv8x8x8", "cosmos-tokenizer-dv4x8x8-patch2", "cosmos-tokenizer-dv8x16x16",
         "cosmos-tokenizer-dv8x8x8", "fsq-64000")  # fmt: skip
DV8, DI8 = replace(CosmosVideo.tiny(), multipliers=(1, 2, 2)), CosmosImage.tiny()
CV8 = replace(DV8, levels=(), channels=16)
LEGACY = replace(CV8, legacy=True)
SHORT = replace(CV8, decoder_multipliers=(1, 2))  # levels of its decoder


def build(config: Cosmos.Config, seed: int = 0) -> Cosmos:
    torch.manual_seed(seed)
    model: Cosmos = config.build(DataSpec(LatentSpec(SIZE, channels=3), {})).eval()
    nn.init.normal_(model.home, std=0.5)
    return model


def equal(a: Cosmos, b: Cosmos) -> bool:
    return a.state_dict().keys() == b.state_dict().keys() and all(
        torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items()
    )


class Coder(nn.Module):
    """One half of a tokenizer as its released graph has it: names, buffers, axes and results."""

    def __init__(self, model: Cosmos, half: str) -> None:
        super().__init__()
        self.video, self.discrete, self.first = isinstance(model, CosmosVideo), bool(model.config.levels), half
        self.model = [model]  # in a list: not a submodule, so that names have no prefix
        if half == "encoder":
            self.encoder, self.quant_conv = model.encoder, model.quant_conv
        else:
            self.post_quant_conv, self.decoder = model.post_quant_conv, model.decoder
        if self.discrete:
            self.quantizer = nn.Module()
            self.quantizer.register_buffer("_levels", torch.tensor(model.config.levels, dtype=torch.int32))

    def forward(self, x: Tensor) -> Any:
        model = self.model[0]
        if self.first == "encoder":
            z = model.analyse(x.transpose(1, 2) if self.video else x[:, None], None)
            z = z if self.video else z[:, :, 0]
            codes = model.quantizer(z)
            return (model.quantizer.ids(codes).int() if self.discrete else codes, torch.zeros(()))
        codes = model.quantizer.codes(x) if self.discrete else x
        shown = model.synthesise(codes if self.video else codes[:, :, None], None)
        return shown.transpose(1, 2) if self.video else shown[:, 0]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """A folder as published, of the config's `build`; graphs take long to trace."""
    folders: dict[Cosmos.Config, Path] = {}

    def of(config: Cosmos.Config) -> Path:
        if config not in folders:
            folders[config] = release(build(config), tmp_path_factory.mktemp("releases") / config.variant)
        return folders[config]

    return of


def release(model: Cosmos, folder: Path) -> Path:
    folder.mkdir()
    video = torch.rand(1, 9, 3, *SIZE) * 2 - 1
    x = video.transpose(1, 2) if isinstance(model, CosmosVideo) else video[0]
    encoder, decoder = Coder(model, "encoder").eval(), Coder(model, "decoder").eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.jit.trace(encoder, x, check_trace=False).save(str(folder / "encoder.jit"))
        torch.jit.trace(decoder, encoder(x)[0], check_trace=False).save(str(folder / "decoder.jit"))
    return folder


@pytest.mark.parametrize("name", CASES)
def test_recorded_outputs_are_ours(name: str) -> None:
    model, rows = compare(read_case(recorded_path(name)))
    assert rows
    assert all(row.passed for row in rows), table(rows)
    assert not any(p.requires_grad and p.is_meta for p in model.parameters())


def test_every_recorded_case_is_listed() -> None:
    folder = large_folder()
    kinds = ("cosmos-tokenizer", "cosmos-image", "fsq")
    assert {p.stem for kind in kinds for p in folder.glob(f"{kind}-*.safetensors")} == set(CASES)


@pytest.mark.parametrize("config", [DV8, CV8, DI8], ids=lambda c: c.variant)
def test_a_release_is_read(shelf: Shelf, config: Cosmos.Config) -> None:
    model = build(config)
    found = read(shelf(config), SIZE)
    assert found.config == config
    assert equal(found, model)
    assert not found.training
    video = torch.rand(1, 9, 3, *SIZE)
    assert torch.equal(found.encode(video), model.encode(video))


@pytest.mark.parametrize("name", ["weights", "Cosmos-Tokenize1-{}-720p"])
@pytest.mark.parametrize(
    "config",
    [
        DV8,
        replace(DV8, legacy=True),
        replace(DV8, space=16),
        replace(DV8, space=16, legacy=True),
        replace(DV8, time=4),
        replace(CV8, space=16, time=4, patch=2, multipliers=(1, 1, 2, 2)),
        replace(SHORT, time=4),
        replace(SHORT, time=4, patch=2, space=4),
        replace(DI8, levels=(), space=4),
        replace(DI8, multipliers=(1, 2, 2), decoder_multipliers=(2, 1)),
        replace(DI8, blocks=2),
    ],
    ids=lambda c: c.variant,
)
def test_the_variant_is_told_by_names_of_weights_or_of_the_folder(
    tmp_path: Path, config: Cosmos.Config, name: str
) -> None:
    model, folder = build(config), tmp_path / name.format(config.variant)
    assert resampling_of(config) == resampling(model.state_dict()) != set()
    write(model, folder)
    found = read(folder, SIZE)
    assert found.config == config
    assert equal(found, model)


@pytest.mark.parametrize("config", [DV8, replace(DV8, legacy=True), CV8, DI8], ids=lambda c: c.variant)
def test_the_graphs_give_what_ours_gives(shelf: Shelf, config: Cosmos.Config) -> None:
    """Also at other lengths than they were traced with."""
    model = build(config)
    graphs = load_torchscript(shelf(config), SIZE)
    assert graphs.latent == model.latent
    assert graphs.answers_to(model.published)
    assert graphs.id != model.id
    for frames in (1, 9, 17):
        video = torch.rand(2, frames, 3, *SIZE)
        latents = graphs.encode(video)
        torch.testing.assert_close(latents, model.encode(video), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(graphs.decode(latents), model.decode(latents), rtol=1e-4, atol=1e-4)
    pieces = list(graphs.encode_pieces(video.split([1, 8, 8], 1)))
    assert torch.equal(torch.cat(pieces, 1), latents)
    assert torch.equal(torch.cat(list(graphs.decode_pieces(latents.split(1, 1))), 1), graphs.decode(latents))
    torch.testing.assert_close(graphs.shift(latents, 2), model.shift(latents, 2), rtol=1e-3, atol=1e-3)
    with pytest.raises(HwmError, match="takes video of shape"):
        graphs.encode(video[0])
    with pytest.raises(HwmError, match="of shape"):
        graphs.decode(latents[0])


def test_a_folder_of_graphs_can_be_named_as_a_tokenizer(shelf: Shelf) -> None:
    found = load_tokenizer(shelf(DV8))
    assert found.id.startswith(f"{shelf(DV8)}@")
    assert found.id != load_tokenizer(shelf(replace(DV8, base=8))).id
    assert load_tokenizer(found.id).id == found.id
    assert found.answers_to("cosmos-dv8x8x8")
    assert found.latent == onex_v2().latent


def test_graphs_of_one_half_are_not_enough(shelf: Shelf, tmp_path: Path) -> None:
    folder = copytree(shelf(DV8), tmp_path / "release")
    (folder / "decoder.jit").unlink()
    with pytest.raises(CheckpointError, match=r"has no decoder.jit"):
        load_torchscript(folder, SIZE)
    with pytest.raises(CheckpointError, match=r"decoder.jit missing, and none of autoencoder.jit"):
        read(folder, SIZE)
    with pytest.raises(CheckpointError, match=r"no whole Cosmos tokenizer of video: 'decoder.up.0.* is missing"):
        read(folder / "encoder.jit", SIZE)


def test_half_precision_buffers_and_whole_files(tmp_path: Path) -> None:
    model = build(DV8)
    stored = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    stored |= {"quantizer._basis": torch.ones(6), "encoder.patcher3d.wavelets": torch.ones(2)}
    torch.save(stored, tmp_path / "model.pt")
    save_tensors(tmp_path / "DV8x8x8.safetensors", stored)
    for source in (tmp_path, tmp_path / "model.pt", tmp_path / "DV8x8x8.safetensors"):
        found = read(source, SIZE)
        assert found.config == DV8
        assert found.home.dtype == torch.float32
        assert torch.equal(found.home, model.home.to(torch.bfloat16).float())


def resamplers(config: CosmosVideo.Config) -> dict[str, nn.Module]:
    """Every resampling layer of the early module, with every convolution, by its name."""
    down, up = config.widths[1:-1], config.decoder_widths[2:]
    layers: dict[str, nn.Module] = {f"encoder.down.{i}.downsample": Down(c, True, True) for i, c in enumerate(down)}
    return layers | {f"decoder.up.{i}.upsample": Up(c, True, True) for i, c in enumerate(up, 1)}


def early(config: CosmosVideo.Config) -> dict[str, Tensor]:
    """Weights of the early module, which has every resampling convolution, whether it runs it or not."""
    layers = resamplers(config)
    unused = {f"{name}.{k}": v for name, layer in layers.items() for k, v in layer.state_dict().items()}
    return unused | build(config).state_dict()


def test_convolutions_that_are_never_run_are_left_out_where_the_name_tells_the_variant(tmp_path: Path) -> None:
    config = replace(CV8, time=4)
    weights = early(config)
    assert len(weights) == len(build(config).state_dict()) + 16
    save_tensors(tmp_path / "Cosmos-Tokenizer-CV4x8x8.safetensors", weights)
    found = read(tmp_path / "Cosmos-Tokenizer-CV4x8x8.safetensors", SIZE)
    assert found.config == config
    assert equal(found, build(config))
    save_tensors(tmp_path / "weights.safetensors", weights)
    with pytest.raises(CheckpointError, match=r"may be any of .*CV4x8x8.* name the file or its folder"):
        read(tmp_path / "weights.safetensors", SIZE)


@pytest.mark.parametrize("config", [CV8, LEGACY, replace(CV8, space=16), replace(LEGACY, space=16)])
def test_which_decoder_it_is_must_be_said_where_weights_leave_it_open(
    tmp_path: Path, config: CosmosVideo.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"Cosmos-Tokenizer-{config.variant}.safetensors"
    save_tensors(path, early(config))
    with pytest.raises(
        CheckpointError, match=r"legacy one .* decoder.up.\[2\].* decoder.up.\[1\].*--legacy no .*--legacy yes"
    ):
        read(path, SIZE)
    assert cli.main(["convert", "cosmos-tokenizer", str(path), "--out", str(tmp_path / "ours")]) == 2
    assert "--legacy" in capsys.readouterr().err
    said = ["--legacy", "yes" if config.legacy else "no"]
    assert cli.main(["convert", "cosmos-tokenizer", str(path), "--out", str(tmp_path / "ours"), *said]) == 0
    assert equal(load_tokenizer(tmp_path / "ours"), build(config))
    found = read(path, SIZE, legacy=config.legacy)
    latents = torch.randn(1, 2, 16, *found.latent.grid)
    assert torch.equal(found.decode(latents), build(config).decode(latents))
    other = read(path, SIZE, legacy=not config.legacy)
    assert not torch.allclose(other.decode(latents), found.decode(latents), atol=0.01), "the wrong one is wrong"


def test_shapes_tell_which_decoder_it_is_where_the_other_does_not_fit(tmp_path: Path) -> None:
    config = replace(SHORT, legacy=True)  # of two levels, of which only the first can double anything
    save_tensors(tmp_path / "CV8x8x8.safetensors", early(config))
    for said in (None, True):
        assert read(tmp_path / "CV8x8x8.safetensors", SIZE, said).config == config
    with pytest.raises(CheckpointError, match=r"has a legacy decoder, as names and shapes .*leave out --legacy"):
        read(tmp_path / "CV8x8x8.safetensors", SIZE, False)


@pytest.mark.parametrize("config", [CV8, LEGACY], ids=["current", "legacy"])
def test_a_graph_tells_which_convolutions_it_runs(tmp_path: Path, config: CosmosVideo.Config) -> None:
    model = build(config)
    for name, layer in resamplers(config).items():
        level, _, way = name.rpartition(".")
        if not hasattr(model.get_submodule(level), way):
            model.get_submodule(level).add_module(way, layer)
    assert model.state_dict().keys() == early(config).keys() > build(config).state_dict().keys()
    folder = release(model, tmp_path / "weights")
    assert read(folder, SIZE).config == config
    assert equal(read(folder, SIZE), build(config))
    assert load_torchscript(folder, SIZE).twin.config == config


def test_the_question_is_answered_only_where_it_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(build(DV8), tmp_path / "plain")
    write(build(DI8), tmp_path / "pictures")
    for folder, kind, message in (
        ("plain", "cosmos-tokenizer", "has no legacy decoder"),
        ("pictures", "cosmos-tokenizer", "has no legacy decoder"),
        ("plain", "magvit2", "--legacy says nothing of a magvit2"),
    ):
        words = ["convert", kind, str(tmp_path / folder), "--out", str(tmp_path / "ours"), "--legacy", "yes"]
        assert cli.main(words) == 2
        assert message in capsys.readouterr().err
    words = ["convert", "cosmos-tokenizer", str(tmp_path / "plain"), "--out", str(tmp_path / "ours"), "--legacy", "no"]
    assert cli.main(words) == 0
    words = [
        "convert",
        "cosmos-tokenizer",
        str(tmp_path / "ours"),
        "--out",
        str(tmp_path / "back"),
        "--to",
        "published",
    ]
    assert cli.main([*words, "--legacy", "no"]) == 2


def test_the_levels_of_a_decoder_are_read_off_its_weights() -> None:
    """A released config does not say them."""
    config = replace(SHORT, time=4)
    fields = {"name": "CV", "spatial_compression": 8, "temporal_compression": 4, "channels": config.base,
              "channels_mult": [1, 2, 2], "num_res_blocks": 1, "z_channels": config.z}  # fmt: skip
    assert from_reference("cosmos-tokenizer", fields, build(config).state_dict()).config == config
    both = replace(config, decoder_multipliers=())
    assert from_reference("cosmos-tokenizer", fields, build(both).state_dict()).config == both


def test_another_variant_than_the_name_says_is_refused(tmp_path: Path) -> None:
    def fails(config: Cosmos.Config, name: str, message: str) -> None:
        write(build(config), tmp_path / name)
        with pytest.raises(CheckpointError, match=message):
            read(tmp_path / name, SIZE)

    fails(replace(DV8, space=16), "DV8x8x8", r"not of a DV8x8x8: .*another variant \(DV8x16x16\)")
    fails(DV8, "DV8x16x16", r"is missing.* Expected: DV8x16x16; found: DV8x8x8")
    fails(DV8, "CV8x8x8", r"named after a tokenizer of continuous latents.*6 channels: DV8x8x8")
    fails(DV8, "DI8x8", r"holds no whole Cosmos tokenizer of pictures")


def test_graphs_of_another_variant_than_their_folder_says_are_not_run(shelf: Shelf, tmp_path: Path) -> None:
    wrong = copytree(shelf(DV8), tmp_path / "Cosmos-Tokenizer-DV8x16x16")
    with pytest.raises(CheckpointError, match=r"Expected: DV8x16x16; found: DV8x8x8"):
        load_tokenizer(wrong)


def test_files_that_are_not_whole_or_something_else_are_refused(shelf: Shelf, tmp_path: Path) -> None:
    folder = copytree(shelf(DV8), tmp_path / "Cosmos-Tokenizer-DV8x8x8")
    data = (folder / "decoder.jit").read_bytes()
    for part in (data[: len(data) // 2], b"", b"version https://git-lfs.github.com/spec/v1\n"):
        (folder / "decoder.jit").write_bytes(part)
        with pytest.raises(CheckpointError, match=r"decoder.jit is not a whole TorchScript file: .*fetch it again"):
            read(folder, SIZE)
    weights = dict(build(DV8).state_dict())

    def fails(weights: dict[str, Tensor], message: str) -> None:
        save_tensors(tmp_path / "some.safetensors", weights)
        with pytest.raises(CheckpointError, match=message):
            read(tmp_path / "some.safetensors", SIZE)

    fails({k: v for k, v in weights.items() if k != "decoder.norm_out.norm.bias"}, "decoder.norm_out.norm.bias is miss")
    fails({**weights, "quant_conv.conv3d.bias": torch.ones(7)}, r"\(7,\) instead of \(6,\)")
    fails({**weights, "decoder.more.weight": torch.ones(7)}, r"decoder.more.weight is not known.*Expected: DV8x8x8")
    fails({"classifier.weight": torch.ones(2)}, "holds no Cosmos tokenizer")
    fails({k: v for k, v in weights.items() if k.startswith("decoder.")}, "holds no whole Cosmos tokenizer")


def test_the_verb_converts_both_ways_and_the_result_answers_to_the_published_data(
    shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shelf(DV8)
    assert cli.main(["convert", "cosmos-tokenizer", str(source), "--out", str(tmp_path / "ours")]) == 0
    assert f"cosmos-video, {sum(p.numel() for p in build(DV8).parameters()):,} param" in capsys.readouterr().out
    found = load_tokenizer(tmp_path / "ours")
    assert isinstance(found, CosmosVideo)
    assert equal(found, build(DV8))
    assert found.latent == onex_v2().latent
    assert found.answers_to(onex_v2().tokenizer)
    assert found.id.startswith(f"{tmp_path / 'ours'}@")
    again = [
        "convert",
        "cosmos-tokenizer",
        str(tmp_path / "ours"),
        "--to",
        "published",
        "--out",
        str(tmp_path / "back"),
    ]
    assert cli.main(again) == 0
    assert equal(read(tmp_path / "back", SIZE), build(DV8))
    assert cli.main(["convert", "cosmos-tokenizer", str(tmp_path / "back"), "--out", str(tmp_path / "ours")]) == 2
    assert "choose another --out" in capsys.readouterr().err


def test_configs_of_no_release_are_refused() -> None:
    good = {"name": "DV", "spatial_compression": 8, "temporal_compression": 8}
    for change, message in (
        ({"name": "XV"}, "DV, CV, DI or CI"),
        ({"patch_method": "rearrange"}, "patch_method is 'rearrange' instead of 'haar'"),
        ({"formulation": "VAE"}, "formulation"),
        ({"attn_resolutions": [256]}, "attention at a resolution of 256"),
        ({"embedding_dim": 5}, "embedding_dim is 5"),
        ({"widths": 5}, "widths"),
        ({"name": 5}, "name"),
        ({"spatial_compression": 2}, "space"),
    ):
        with pytest.raises(HwmError, match=message):
            from_reference("cosmos-tokenizer", {**good, **change}, {})


def test_the_quantiser_alone_is_a_family() -> None:
    found = from_reference("fsq", {"levels": [3, 4]}, {})
    assert isinstance(found, FSQ)
    assert found.vocab == 12
    with pytest.raises(HwmError):
        from_reference("fsq", {}, {})


def test_write_and_read_are_inverse(tmp_path: Path) -> None:
    for config in (DV8, CV8, DI8):
        model = build(config)
        folder = tmp_path / config.variant
        write(model, folder)
        assert equal(read(folder, SIZE), model)
