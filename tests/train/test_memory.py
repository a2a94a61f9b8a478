"""The memory that a step is said to take is what it takes, and what is advised fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hwm import cli
from hwm.data.clips import fake_batch
from hwm.devices import Runtime
from hwm.errors import HwmError
from hwm.models.diffusion import Diffusion
from hwm.models.flow_hwm import FlowHWM
from hwm.models.genie import Genie
from hwm.models.masked_hwm import MaskedHWM
from hwm.nn.layers import sparing
from hwm.recipes import find_recipe
from hwm.train.config import TrainConfig
from hwm.train.halves import Halves
from hwm.train.memory import _Live, fewest_passes, fit, read_size, training_memory
from hwm.types import ActionSpec, DataSpec, LatentSpec

ACTIONS = {"toy": ActionSpec(2, ("a", "b", "c"), (0.0,) * 3, (1.0,) * 3)}
IDS = DataSpec(LatentSpec((8, 8), 25, levels=(5, 5)), ACTIONS)
VALUES = DataSpec(LatentSpec((8, 8), channels=4), ACTIONS)
PLAIN = TrainConfig(batch_size=2, dtype="float32")


def really(config, spec: DataSpec, train: TrainConfig) -> float:
    """The same count over a step that is taken and spares memory: most bytes alive beside weights and gradients."""
    torch.manual_seed(0)
    module, batch = config.build(spec), fake_batch(spec, train.batch_size, 3)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    kept = [
        *module.parameters(),
        *(p.grad for p in module.parameters()),
        *module.buffers(),
        batch.latents,
        batch.actions,
    ]
    live, runtime = _Live({t.untyped_storage()._cdata for t in kept}), Runtime(torch.device("cpu"), train.dtype)
    with live:
        halves = Halves(module, runtime, train.activation_checkpoint)
        with halves.used():
            with sparing(), runtime.autocast():
                loss, _ = module(batch)
            loss.backward()
            halves.collect()
    return live.peak


@pytest.mark.parametrize(
    ("config", "spec"),
    [
        (MaskedHWM.Config(dim=64, depth=2, heads=2), IDS),
        (FlowHWM.Config(dim=64, depth=2, heads=2), VALUES),
        (Genie.Config(dim=64, depth=2, heads=2), IDS),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_takes_what_was_said(config, spec: DataSpec, dtype: str) -> None:
    train = replace(PLAIN, dtype=dtype)
    said = training_memory(config, spec, 3, train)
    took = really(config, spec, train)
    assert said.activations == pytest.approx(took, rel=0.15)  # how many cells are masked depends on chance
    count = sum(p.numel() for p in config.build(spec).parameters())
    assert (said.parameters, said.weights, said.optimizer, said.average) == (count, 4 * count, 8 * count, 0)


@pytest.mark.parametrize("clips", [2, 16])
def test_a_step_of_many_clips_is_counted_as_it_is(clips: int) -> None:
    """With few clips the peak comes when weights are cast, with many in the middle: it is no line."""
    config = Diffusion.Config(past=2, widths=(64, 128), blocks=(1, 1), attention=(False, True))
    spec = replace(VALUES, latent=replace(VALUES.latent, grid=(16, 16)))
    train = replace(PLAIN, dtype="bfloat16", batch_size=clips)
    assert training_memory(config, spec, 3, train).activations == pytest.approx(really(config, spec, train), rel=0.02)


def test_what_saves_memory_saves_memory() -> None:
    config = MaskedHWM.Config(dim=128, depth=3, heads=2)
    plain = training_memory(config, IDS, 3, PLAIN)
    again = training_memory(config, IDS, 3, replace(PLAIN, activation_checkpoint="full"))
    some = training_memory(config, IDS, 3, replace(PLAIN, activation_checkpoint="selective"))
    assert again.activations < 0.7 * some.activations < 0.65 * plain.activations
    muon = training_memory(config, IDS, 3, replace(PLAIN, optimizer="muon"))
    assert plain.optimizer / 2 < muon.optimizer < 0.7 * plain.optimizer
    divided = training_memory(config, IDS, 3, replace(PLAIN, shard=0), processes=8)
    assert divided.weights == plain.weights / 8
    largest = max(sum(p.numel() for p in unit.parameters()) for unit in config.build(IDS).units())
    assert divided.activations - plain.activations == 2 * 4 * largest  # the blocks that are put together
    assert training_memory(config, IDS, 3, replace(PLAIN, ema=0.9)).average == plain.weights


@pytest.mark.parametrize(("share", "size"), [(1.0, 6), (1.2, 6), (2.0, 12), (9.0, 12)])
def test_an_update_is_done_in_as_few_passes_as_there_is_room_for(share: float, size: int) -> None:
    config, train = MaskedHWM.Config(dim=64, depth=2, heads=2), TrainConfig(batch_size=6, accumulate=2, dtype="float32")
    limit = share * training_memory(config, IDS, 3, train).total
    for found in (fit(config, IDS, 3, train, limit), fewest_passes(config, IDS, 3, train, limit)):
        assert found is not None
        assert found.train == replace(train, batch_size=size, accumulate=12 // size)
        assert training_memory(config, IDS, 3, found.train).total <= limit
        assert found.options(train) == ("" if size == 6 else "--train.batch-size 12 --train.accumulate 1")


def test_a_format_that_is_chosen_anyway_is_no_advice() -> None:
    """What is foretold of `auto` is bfloat16 already."""
    config, train = MaskedHWM.Config(dim=64, depth=2, heads=2), TrainConfig(batch_size=6, ema=0.9)
    plain, without = (training_memory(config, IDS, 3, replace(train, batch_size=1, ema=e)).total for e in (0.9, 0.0))
    found = fit(config, IDS, 3, train, without + (plain - without) / 9)
    assert found is not None
    assert found.train.dtype == "auto"
    assert "dtype" not in found.options(train)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_advice_fits_and_leaves_the_size_of_an_update(share: float) -> None:
    config, train = MaskedHWM.Config(dim=64, depth=2, heads=2), TrainConfig(batch_size=6, accumulate=2, dtype="float32")
    whole = training_memory(config, IDS, 3, train).total
    found = fit(config, IDS, 3, train, share * whole)
    assert found is not None
    assert found.train.batch_size * found.train.accumulate == 12
    again = training_memory(config, IDS, 3, found.train)
    assert again.total == pytest.approx(found.memory.total, rel=1e-6)
    assert again.total <= share * whole
    assert (found.train == train) == (share == 1)
    assert bool(found.options(train)) == (share < 1)
    assert fit(config, IDS, 3, train, 1000) is None


def test_the_command_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "masked_hwm_toy", "--memory", "24GB"]) == 0
    count = sum(
        p.numel()
        for p in find_recipe("masked_hwm_toy")()
        .model.build(find_recipe("masked_hwm_toy")().data.open().spec)
        .parameters()
    )
    out = capsys.readouterr().out
    assert f"masked_hwm_toy: {count:,} parameters, 0." in out
    assert "as it is" in out
    assert cli.main(["recipes", "masked_hwm_toy", "--memory", "2MB"]) == 0
    assert "no options make it fit into 2MB" in capsys.readouterr().out
    assert cli.main(["recipes", "--memory", "much"]) == 2
    assert "write for example 24GB" in capsys.readouterr().err
    assert cli.main(["recipes", "masked_hwm_toi"]) == 2


def test_sizes_are_read() -> None:
    assert read_size("24GB") == read_size(" 24 gib ") == read_size("24576M") == 24 * 2**30
    for bad in ("", "24", "GB", "1.2.3GB", "-1GB"):
        with pytest.raises(HwmError, match="no size of memory"):
            read_size(bad)
