"""Checkpoints: what is saved comes back, what is damaged or unfinished is never taken for whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hwm import weights as files
from hwm.config import REGISTRY
from hwm.data.clips import fake_batch
from hwm.errors import CheckpointError
from hwm.models.masked_hwm import MaskedHWM
from hwm.train import checkpoint
from hwm.train.checkpoint import find, load_model, load_step, save_model, save_step, step_folders
from hwm.train.optim import optimizers
from hwm.types import ActionSpec, DataSpec, LatentSpec
from hwm.weights import load_tensors, save_tensors
from tests.models.toys import is_aligned
from tests.train.toy import Toy

SPEC = DataSpec(
    LatentSpec((2, 2), 25, levels=(5, 5)), {"toy": ActionSpec(2, ("a", "b"), (0.5, 0.0), (2.0, 0.0))}, "test@1", 7.5
)
BATCH = fake_batch(SPEC, 4, 3)


@pytest.fixture(autouse=True)
def _toy_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRY, Toy.name, Toy)


def toy(seed: int = 0, **config: object) -> Toy:
    torch.manual_seed(seed)
    return Toy.Config(**config).build(SPEC)  # type: ignore[arg-type]


def trained(module: Toy, kind: str = "adamw", updates: int = 2) -> list[torch.optim.Optimizer]:
    made = optimizers(module, kind, 1e-2, 0.1, (0.9, 0.95))
    for _ in range(updates):
        module(BATCH)[0].backward()
        for o in made:
            o.step()
            o.zero_grad()
    return made


def save(run: Path, step: int, module: Toy, made: list[torch.optim.Optimizer], keep: int = 2) -> Path:
    return save_step(run, step, module, None, made, {"seed": 1}, keep)


@pytest.mark.parametrize("make", [toy, lambda: MaskedHWM.tiny().build(SPEC)])
def test_a_loaded_model_gives_the_same_output(tmp_path: Path, make: Callable) -> None:
    module = make()
    save_model(tmp_path / "m", module, note="hello")
    loaded = load_model(tmp_path / "m")
    assert type(loaded) is type(module)
    assert loaded.config == module.config
    assert loaded.spec == SPEC
    assert not loaded.training
    module.eval()
    results = []
    for m in (module, loaded):
        torch.manual_seed(3)
        results.append(m.loss(BATCH)[0])
    assert torch.equal(*results)
    assert json.loads((tmp_path / "m" / "hwm.json").read_text(encoding="utf-8"))["notes"] == {"note": "hello"}


def test_a_loaded_model_is_the_file_and_training_it_leaves_the_file_alone(tmp_path: Path) -> None:
    save_model(tmp_path / "m", MaskedHWM.tiny().build(SPEC))
    file = tmp_path / "m" / "model.safetensors"
    before, state = file.read_bytes(), torch.get_rng_state()
    loaded = load_model(tmp_path / "m")
    assert torch.equal(torch.get_rng_state(), state), "no weights are drawn that are not used"
    assert all(p.requires_grad and not p.is_meta for p in loaded.parameters())
    with torch.no_grad():
        for p in loaded.parameters():
            p.add_(1.0)
    assert file.read_bytes() == before
    save_model(tmp_path / "m", loaded)  # over the file that it is
    again = load_model(tmp_path / "m").state_dict()
    assert all(torch.equal(v, again[k]) for k, v in loaded.state_dict().items())


def test_half_precision_is_read_as_it_was_built(tmp_path: Path) -> None:
    module = toy()
    half = {k: v.half() if v.is_floating_point() else v for k, v in module.state_dict().items()}
    save_model(tmp_path / "m", module, half)
    loaded = load_model(tmp_path / "m")
    for k, v in loaded.state_dict().items():
        assert v.dtype == module.state_dict()[k].dtype
        assert torch.equal(v, half[k].to(v.dtype))


def test_an_average_is_what_is_used(tmp_path: Path) -> None:
    module = toy()
    average = {k: v + 1 for k, v in module.state_dict().items()}
    folder = save_step(tmp_path, 3, module, average, trained(module, updates=0), {}, 2)
    assert torch.equal(load_model(tmp_path).state_dict()["hidden.weight"], average["hidden.weight"])
    assert torch.equal(load_tensors(folder / "state" / "raw.safetensors")["hidden.weight"], module.hidden.weight)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:100], lambda data: b"", lambda data: b"x" * 99]
)
def test_damaged_weights_are_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    save_model(tmp_path / "m", toy())
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=r"cannot read the weights .*model.safetensors"):
        load_model(tmp_path / "m")
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot read the weights"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format"', '"fromat"', "has format None, this program reads 'hwm-checkpoint/1'"),
        ("{", "", "no readable hwm.json"),
        ("{", "\x00", "no readable hwm.json"),
        ('"config"', '"confg"', "lacks its config or its spec"),
        ('"test_toy"', '"test_tyo"', "no model called 'test_tyo'; did you mean test_toy"),
        ('"dim": 8', '"dims": 8', "no field of Config called 'dims'; did you mean dim"),
        ('"vocab"', '"vocb"', "no field of DataSpec.latent called 'vocb'"),
        ('"dim": 8', '"dim": 9', "do not fit their config: .* of other shape"),
    ],
)
def test_damaged_descriptions_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    save_model(tmp_path / "m", toy())
    file = tmp_path / "m" / "hwm.json"
    assert old in file.read_text(encoding="utf-8")
    file.write_text(file.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "m")


def test_missing_and_extra_weights_are_named(tmp_path: Path) -> None:
    module = toy()
    weights = dict(module.state_dict())
    weights["extra"] = weights.pop("head.bias")
    save_model(tmp_path / "m", module, weights)
    with pytest.raises(CheckpointError, match=r"missing \['head.bias'\], unexpected \['extra'\]"):
        load_model(tmp_path / "m")


def test_no_checkpoint_is_said(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(CheckpointError, match="there is no checkpoint"):
            load_model(path)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_optimizers_go_on_where_they_were(tmp_path: Path, kind: str) -> None:
    first = toy(noise=0.0)
    made = trained(first, kind)
    folder = save(tmp_path, 2, first, made)
    second = toy(seed=5, noise=0.0)
    again = optimizers(second, kind, 1e-2, 0.1, (0.9, 0.95))
    assert load_step(folder, second, again) == {"step": 2, "seed": 1}
    for a, b in zip(made, again, strict=True):
        states = [[o.state[p] for g in o.param_groups for p in g["params"]] for o in (a, b)]
        for x, y in zip(*states, strict=True):
            assert x.keys() == y.keys()
            for field in x:
                assert torch.equal(x[field], y[field])
                assert x[field].stride() == y[field].stride()  # as fast as before, and rounded alike
                assert x[field].dtype == y[field].dtype
    for m, o in ((first, made), (second, again)):
        m(BATCH)[0].backward()
        for optimizer in o:
            optimizer.step()
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())


def test_other_runs_are_not_resumed(tmp_path: Path) -> None:
    module = toy()
    folder = save(tmp_path, 2, module, trained(module))
    other = toy(dim=16)
    with pytest.raises(CheckpointError, match="another model configuration"):
        load_step(folder, other, optimizers(other, "adamw", 1e-2, 0.1, (0.9, 0.95)))
    with pytest.raises(CheckpointError, match="trained with 1 optimizers and this run has 2"):
        load_step(folder, module, optimizers(module, "muon", 1e-2, 0.1, (0.9, 0.95)))
    muon = save(tmp_path / "muon", 2, module, trained(module, "muon"))
    with pytest.raises(CheckpointError, match="trained with 2 optimizers and this run has 1"):
        load_step(muon, module, optimizers(module, "adamw", 1e-2, 0.1, (0.9, 0.95)))


def test_other_data_is_not_resumed_but_more_of_it_is(tmp_path: Path) -> None:
    module = toy()
    folder = save(tmp_path, 2, module, trained(module))
    action = SPEC.actions["toy"]
    renamed = DataSpec(SPEC.latent, {"toy": ActionSpec(2, ("a", "c"), action.mean, action.std)}, "test@1", 7.5)
    retokenized = DataSpec(SPEC.latent, SPEC.actions, "test@2", 7.5)
    for spec in (renamed, retokenized):
        other = Toy.Config().build(spec)
        with pytest.raises(CheckpointError, match="other latents or actions"):
            load_step(folder, other, trained(other, updates=0))
    more = Toy.Config().build(
        DataSpec(SPEC.latent, {"toy": ActionSpec(2, ("a", "b"), (0.6, 0.0), (2.1, 0.0))}, "test@1")
    )
    assert load_step(folder, more, trained(more, updates=0))["step"] == 2


def test_damaged_state_is_named(tmp_path: Path) -> None:
    module = toy()
    made = trained(module)
    for name in ("raw.safetensors", "optimizer_0.safetensors", "progress.json"):
        shutil.rmtree(tmp_path / "r", ignore_errors=True)
        file = save(tmp_path / "r", 2, module, made) / "state" / name
        file.write_bytes(file.read_bytes()[:10])
        with pytest.raises(CheckpointError, match=name):
            load_step(file.parents[1], module, made)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    module = toy()
    made = trained(module)
    for step in range(1, 6):
        save(tmp_path, step, module, made, keep=2)
    assert [p.name for p in step_folders(tmp_path)] == ["step_00000004", "step_00000005"]
    for step in range(6, 9):
        save(tmp_path, step, module, made, keep=0)
    assert len(step_folders(tmp_path)) == 5
    assert find(tmp_path).name == "step_00000008"


# killed before it writes the weights to use, the raw ones, the optimizer
@pytest.mark.parametrize("moment", [0, 1, 2])
def test_half_written_ones_are_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    module = toy()
    made = trained(module)
    save(tmp_path, 2, module, made)

    class Killed(BaseException):
        pass

    real, written = files.save_file, []

    def dying(tensors: dict, path: str) -> None:
        if len(written) == moment:
            raise Killed
        written.append(path)
        real(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", dying)
        with pytest.raises(Killed):
            save(tmp_path, 4, module, made)
    assert list((tmp_path / "checkpoints").glob(".step_*"))  # as a kill leaves it
    assert find(tmp_path).name == "step_00000002"
    load_model(tmp_path)
    save(tmp_path, 4, module, made)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_00000002", "step_00000004"]


def test_half_removed_ones_are_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = toy()
    made = trained(module)
    save(tmp_path, 2, module, made, keep=1)

    class Killed(BaseException):
        pass

    def dying(folder: Path, **_: object) -> None:
        (folder / "hwm.json").unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", dying)
        with pytest.raises(Killed):
            save(tmp_path, 4, module, made, keep=1)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    assert find(tmp_path).name == "step_00000004"
    save(tmp_path, 6, module, made, keep=1)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000006"]


def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = toy()
    made = trained(module)
    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", full_disk)
        with pytest.raises(
            CheckpointError, match=r"step 1 could not be written \(.*No space left.*\); there is none before"
        ):
            save(tmp_path, 1, module, made)
    save(tmp_path, 2, module, made, keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", full_disk)
        with pytest.raises(CheckpointError, match=r"the last good one is .*step_00000002"):
            save(tmp_path, 4, module, made, keep=1)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]
    load_model(tmp_path)


def full_disk(tensors: object, path: str) -> None:
    Path(path).write_bytes(b"some of it")
    raise OSError(28, "No space left on device")


def test_the_same_step_may_be_saved_again(tmp_path: Path) -> None:
    module = toy()
    made = trained(module)
    save(tmp_path, 2, module, made, keep=1)
    with torch.no_grad():
        module.hidden.weight.zero_()
    save(tmp_path, 2, module, made, keep=1)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]
    assert not load_model(tmp_path).state_dict()["hidden.weight"].any()


def test_a_finished_run_that_goes_on_is_its_newest_step(tmp_path: Path) -> None:
    module = toy()
    made = trained(module)
    save(tmp_path, 2, module, made)
    save_model(tmp_path, module, step=2)
    assert find(tmp_path) == tmp_path
    save(tmp_path, 4, module, made)
    assert find(tmp_path).name == "step_00000004"
    save_model(tmp_path, module, step=4)
    assert find(tmp_path) == tmp_path


def test_weights_half_replaced_are_not_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "m", toy())
    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", full_disk)
        with pytest.raises(OSError, match="No space left"):
            save_model(tmp_path / "m", toy(dim=16))
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_model(tmp_path / "m")


def test_tensors_of_any_layout_are_saved(tmp_path: Path) -> None:
    x = torch.arange(24.0).view(2, 3, 4)
    tensors = {"t": x.transpose(0, 2), "part": x[:, 1], "grad": x.clone().requires_grad_()}
    save_tensors(tmp_path / "x.safetensors", tensors)
    for k, v in load_tensors(tmp_path / "x.safetensors").items():
        assert torch.equal(v, tensors[k])
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_tensors_of_any_type_are_read_as_they_were(tmp_path: Path) -> None:
    kinds = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)
    tensors = {f"{i}": torch.arange(5).to(kind) for i, kind in enumerate(kinds)}
    tensors |= {"scalar": torch.tensor(7.5), "empty": torch.zeros(0, 3), "wide": torch.randn(3, 1000)}
    save_tensors(tmp_path / "x.safetensors", tensors)
    found = load_tensors(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, value in found.items():
        assert value.dtype == tensors[name].dtype
        assert torch.equal(value, tensors[name])
        assert is_aligned(value)
