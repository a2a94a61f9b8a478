"""Low-rank updates: what they compute, what they leave alone, and checkpoints that know nothing of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hwm.commands.training import train_recipe
from hwm.data.mixture import DataConfig
from hwm.errors import CheckpointError, HwmError
from hwm.models.base import WorldModel
from hwm.models.cosmos_ar import CosmosAR
from hwm.models.genie import Genie
from hwm.models.hma_discrete import HMADiscrete
from hwm.models.masked_hwm import MaskedHWM
from hwm.models.next_block import NextBlock
from hwm.recipes import Recipe
from hwm.train import trainer
from hwm.train.checkpoint import load_model, step_folders
from hwm.train.config import TrainConfig
from hwm.train.lora import A, B, choose, merged, rank_of
from hwm.train.memory import training_memory
from hwm.train.optim import optimizers
from hwm.train.trainer import Trainer
from hwm.weights import load_tensors
from tests.conftest import make_store
from tests.models.test_registry import FAMILIES, OneClip, build, clip
from tests.models.toys import toy_batch, toy_spec
from tests.train.low_rank import make_trainer
from tests.train.toy import Toy

pytest.importorskip("peft", reason="the extra `lora` is not installed")

ROOT = Path(__file__).parents[2]
PATIENCE = 900
MODELS: dict[str, Callable[[], WorldModel]] = {name: (lambda name=name: build(name)) for name in FAMILIES} | {
    **{f"masked_hwm {v}": (lambda v=v: replace(MaskedHWM.tiny(), variant=v).build(toy_spec()))
       for v in ("modality", "full", "split")},
    "hma_discrete, otherwise": lambda: replace(
        HMADiscrete.tiny(), action_network=("concatenate", "add", "cross_attend"), action_loss=0.5
    ).build(toy_spec()),
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(trainer, "peak_flops", lambda device, dtype: 1e9)
    return make_store(tmp_path / "store", [30, 40]).path


def loss_of(model: WorldModel) -> torch.Tensor:
    """Of a clip of each robot, with the same masks every time."""
    torch.manual_seed(1)
    steps = model.config.past + model.config.horizon
    return sum(model(toy_batch(model.spec, steps, embodiment=name))[0] for name in model.spec.actions)  # type: ignore[return-value]


@pytest.mark.parametrize("name", MODELS)
def test_updates_compute_what_the_merged_matrix_does_in_every_family(name: str) -> None:
    torch.manual_seed(0)
    low, plain, before = MODELS[name](), MODELS[name](), MODELS[name]()
    choose(low, (), 3)
    with torch.no_grad():
        for p in low.parameters():  # B and the gates of some models begin at zero, and let nothing pass
            p += 0.1 * torch.randn_like(p)
    weights = low.state_dict()
    plain.load_state_dict(merged(weights))
    before.load_state_dict(merged({k: torch.zeros_like(v) if k.endswith(B) else v for k, v in weights.items()}))
    loss, expected = loss_of(low), loss_of(plain)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert abs(loss - loss_of(before)) > 1e-4, "the updates must matter for this to say anything"

    loss.backward()
    expected.backward()
    own, theirs = dict(low.named_parameters()), dict(plain.named_parameters())
    layers = [key.removesuffix(A) for key in own if key.endswith(A)]
    inside = {m for unit in plain.units() for m in unit.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)}
    assert layers == [key for key, m in plain.named_modules() if m in inside], "each hidden matrix has its update"
    moved = 0
    for layer in layers:
        a, b, gradient = own[layer + A], own[layer + B], theirs[f"{layer}.weight"].grad
        if gradient is None or not gradient.any():  # what a last block makes of actions is read by nothing
            assert b.grad is None or not b.grad.any()
            continue
        moved += 1
        gradient, (grad_a, grad_b) = gradient.flatten(1), (p.grad.flatten(1) for p in (a, b))
        for update, chained in ((grad_a, b.flatten(1).T @ gradient), (grad_b, gradient @ a.flatten(1).T)):
            assert (update - chained).norm() < 1e-4 * chained.norm(), layer
    assert moved > 0.7 * len(layers)
    assert all(p.grad is None for key, p in own.items() if not key.endswith((A, B)))


@pytest.mark.parametrize("name", FAMILIES)
def test_training_begins_at_the_model_as_it_was(name: str) -> None:
    model = build(name)
    weights, loss = {k: v.clone() for k, v in model.state_dict().items()}, loss_of(model)
    choose(model, (), 2)
    assert torch.equal(loss_of(model), loss)
    again = merged(model.state_dict())
    assert list(again) == list(weights)
    assert all(torch.equal(v, weights[k]) for k, v in again.items())


def test_convolutions_have_updates_and_keep_their_kernel() -> None:
    model = build("diffusion")
    choose(model, (), 3)
    shapes = {key: tuple(p.shape) for key, p in model.named_parameters() if "down.0.0.conv1" in key and ".lora_" in key}
    assert sorted(shapes.values()) == [(3, 16, 3, 3), (16, 3, 1, 1)]
    for key, p in model.named_parameters():
        if key.endswith(B):
            torch.nn.init.normal_(p, std=0.1)
    again = build("diffusion")
    again.load_state_dict(merged(model.state_dict()))
    torch.testing.assert_close(loss_of(again), loss_of(model))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_merging_adds_the_product_to_its_own_matrix_and_leaves_the_rest(rows: int, columns: int, rank: int, bias: bool):
    w, a, b, other = torch.randn(rows, columns), torch.randn(rank, columns), torch.randn(rows, rank), torch.randn(3)
    weights = {"x.base_layer.weight": w, "x" + A: a, "x" + B: b, "own.base_layer.weight": other}
    out = merged(weights | ({"x.base_layer.bias": other} if bias else {}))
    assert out.keys() == {"x.weight", "own.base_layer.weight"} | ({"x.bias"} if bias else set())
    torch.testing.assert_close(out["x.weight"], w + b @ a)
    assert out["own.base_layer.weight"] is other
    assert not bias or out["x.bias"] is other
    assert (rank_of(weights), rank_of(out)) == (rank, 0)


def test_a_run_leaves_the_shared_weights_and_ends_in_an_ordinary_checkpoint(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_trainer(data, tmp_path / "run", steps=4)
    begun = {k: v.clone() for k, v in made.module.state_dict().items()}
    trained = made.run()
    raw = load_tensors(step_folders(tmp_path / "run")[-1] / "state" / "raw.safetensors")
    assert rank_of(raw) == 2
    for name, value in raw.items():
        assert torch.equal(value, begun[name]) != name.startswith(("head.", *(n for n in begun if n.endswith((A, B)))))
    batch = made.data.batch(9, 0, 2)
    loss, prediction = trained(batch)[0], trained.predict(batch.window(0, 2, 3)).latents

    monkeypatch.setitem(sys.modules, "peft", None)
    for folder in (tmp_path / "run", step_folders(tmp_path / "run")[-1]):
        model = load_model(folder)
        assert all(type(m).__module__ != "peft" for m in model.modules())
        assert model.state_dict().keys() == made.module.config.build(made.module.spec).state_dict().keys()
        torch.testing.assert_close(model(batch)[0], loss)
        assert torch.equal(model.predict(batch.window(0, 2, 3)).latents, prediction)
    before = merged(begun)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {n.removesuffix(A) + ".weight" for n in begun if n.endswith(A)} | {"head.weight", "head.bias"}


@pytest.mark.parametrize("ema", [0.5, 0.0])
def test_a_resumed_run_is_the_uninterrupted_one(data: Path, tmp_path: Path, ema: float) -> None:
    one, two, aside = (tmp_path / name for name in ("one", "two", "aside"))
    make_trainer(data, one, steps=5, drop=0.1, ema=ema).run()
    make_trainer(data, aside, steps=5, drop=0.1, ema=ema, async_save=True).run()
    halted = make_trainer(data, two, steps=5, drop=0.1, ema=ema)
    batches = halted._batches()
    for _ in range(3):
        halted.update(batches)
        halted.step += 1
    halted.save()
    make_trainer(data, two, steps=5, drop=0.1, ema=ema).run()
    files = [f.relative_to(one) for f in one.rglob("*.safetensors") if "step_00000004" not in str(f)]
    assert len(files) == (5 if ema else 4), "raw weights, optimizer, the average, and merged weights twice"
    for file in files:
        a, *others = (load_tensors(run / file) for run in (one, two, aside))
        for b in others:
            assert a.keys() == b.keys()
            assert all(torch.equal(v, b[k]) for k, v in a.items()), file


def test_an_average_may_begin_later(data: Path, tmp_path: Path) -> None:
    make_trainer(data, tmp_path / "run", steps=2, ema=0.0).run()
    made = make_trainer(data, tmp_path / "run", steps=4, ema=0.9)
    assert made.step == 2
    assert made.average is not None
    assert all(torch.equal(v, made.average.weights[k]) for k, v in made.module.state_dict().items())
    made.run()


def test_updates_are_of_the_weights_that_a_run_begins_from(data: Path, tmp_path: Path) -> None:
    stores, model = DataConfig(stores=(str(data),)), NextBlock.Config(past=2, horizon=1, dim=16, depth=2, heads=2)
    plain = Recipe(model=model, data=stores, train=TrainConfig(steps=2, batch_size=2, lr=1e-2))
    train_recipe(plain, tmp_path / "plain")
    train_recipe(plain.but(train={"lora": 2, "seed": 1}), tmp_path / "tuned", init=str(tmp_path / "plain"))
    found = load_tensors(step_folders(tmp_path / "tuned")[-1] / "state" / "raw.safetensors")
    kept = {k.replace(".base_layer.", "."): v for k, v in found.items() if not k.endswith((A, B))}
    expected = load_tensors(tmp_path / "plain" / "model.safetensors")
    assert kept.keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) for k, v in kept.items())
    assert all(v.any() for k, v in found.items() if k.endswith(B))


def test_another_rank_is_not_resumed(data: Path, tmp_path: Path) -> None:
    make_trainer(data, tmp_path / "run", steps=2).run()
    for rank in (0, 3):
        with pytest.raises(CheckpointError, match=rf"--train\.lora 2 and this run has {rank}: give the same"):
            make_trainer(data, tmp_path / "run", steps=4, lora=rank)


def test_a_further_robot_has_weights_of_its_own_and_the_trunk_low_rank_updates(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build("hma_discrete")
    begun = {k: v.clone() for k, v in model.state_dict().items()}
    own = {k for k in begun if k.startswith(model.fresh)}
    config = TrainConfig(steps=2, batch_size=2, warmup=0, lr=1e-3, lora=2, only=("fresh",), val_every=0)
    Trainer(config, model, OneClip(clip(model), model.spec), None, tmp_path).run()  # type: ignore[arg-type]
    after = model.state_dict()
    assert not [k for k in own if k not in after], "what trains itself has no update beside it"
    updated = {k.removesuffix(A) + ".weight" for k in after if k.endswith(A)}
    assert updated
    assert not updated & own
    moved = {k for k, v in load_tensors(tmp_path / "model.safetensors").items() if not torch.equal(v, begun[k])}
    assert moved <= updated | own
    assert len(moved & updated) > 0.9 * len(updated)
    assert any(k.startswith("trunk.stems.arm") for k in moved)


def test_what_cannot_be_done_is_said(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HwmError, match=r"train\.lora must not be negative, got -1"):
        TrainConfig(lora=-1)
    toy = Toy(Toy.Config(), toy_spec())
    with pytest.raises(HwmError, match=r"test_toy has no hidden matrices left.*leave out train\.lora"):
        choose(toy, (), 2)
    with pytest.raises(HwmError, match=r"next_block has no hidden matrices left.*name less in train\.only"):
        make_trainer(data, tmp_path / "run", only=("blocks.*",))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(HwmError, match=r"pip install 'humanoid-world-models\[lora\]'"):
        make_trainer(data, tmp_path / "run")


@pytest.mark.parametrize("kind", ["adamw", "muon", "adafactor"])
@pytest.mark.parametrize("width", [1.0, 4.0])
def test_updates_are_trained_by_adamw(kind: str, width: float) -> None:
    model = Genie.tiny().build(toy_spec())
    choose(model, ("blocks.0.fc1.*", "head.*"), 2)
    model.mup_width = width
    names = {p: n for n, p in model.named_parameters()}
    found = {
        names[p]: (type(o).__name__, g.get("lr_share", 1.0) if isinstance(o, torch.optim.AdamW) else None)
        for o in optimizers(model, kind, 0.1, 0.5, (0.9, 0.95))
        for g in o.param_groups
        for p in g["params"]
    }
    assert {n for n, p in model.named_parameters() if p.requires_grad} == found.keys()
    assert {v for n, v in found.items() if n.endswith(A)} == {("AdamW", 1 / width)}
    assert {v for n, v in found.items() if n.endswith(B)} == {("AdamW", 1.0)}
    other = {"adamw": ("AdamW", 1 / width), "muon": ("Muon", None), "adafactor": ("Adafactor", None)}
    assert found["blocks.0.fc1.weight"] == other[kind]


def test_memory_counts_gradients_and_optimizer_of_what_is_trained() -> None:
    config, spec, plain = CosmosAR.tiny(), toy_spec(), TrainConfig(batch_size=2, dtype="float32")
    full = training_memory(config, spec, 3, plain)
    for changes in ({"lora": 2}, {"only": ("layers.*",)}, {"lora": 2, "only": ("output.*",)}):
        train = replace(plain, **changes)
        said, model = training_memory(config, spec, 3, train), config.build(spec)
        choose(model, train.only, train.lora)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert 0 < trained < 0.9 * full.parameters
        assert (said.gradients, said.optimizer) == (4 * trained, 8 * trained)
        assert said.weights == 4 * sum(p.numel() for p in model.parameters())
        assert said.total < full.total


def test_two_processes_are_one_divided_or_not(data: Path, tmp_path: Path) -> None:
    one, copies, divided, again = (tmp_path / name for name in ("one", "copies", "divided", "again"))
    make_trainer(data, one, steps=2).run()
    shutil.copytree(one, again)
    make_trainer(data, one, steps=4).run()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "tests.train.low_rank", str(data)]
    for run, shard in ((copies, 1), (divided, 0), (again, 0)):  # one after the other in the same two processes
        command += [str(run), json.dumps({"batch_size": 2, "steps": 4, "shard": shard})]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert f"resuming {again} at update 2" in done.stdout
    for run in (copies, divided, again):
        same(one, run)
    # what was divided goes on in one process
    assert len(list(step_folders(divided)[-1].glob("state/shards/*.safetensors"))) == 2
    for run in (one, divided):
        make_trainer(data, run, steps=6).run()
    same(one, divided)


def same(one: Path, two: Path) -> None:
    a, b = (load_tensors(run / "model.safetensors") for run in (one, two))
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=2e-5, rtol=1e-4, msg=f"{name} of {two}")
