"""The training loop: a run that was stopped, killed or spread over processes is the run that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hwm import devices
from hwm.config import from_json
from hwm.errors import HwmError
from hwm.models.masked_hwm import MaskedHWM
from hwm.recipes import Recipe
from hwm.train import blocks
from hwm.train import trainer as module
from hwm.train.checkpoint import load_model, step_folders
from hwm.train.config import TrainConfig
from hwm.train.loggers import read_log
from hwm.train.trainer import Trainer, write_run
from hwm.weights import load_tensors
from tests.conftest import ROOT, make_store
from tests.models.toys import toy_spec
from tests.train.toy import Toy, make_trainer, mixture

PATIENCE = 900  # seconds that a process of its own may take on a machine that is busy
pytestmark = [
    pytest.mark.usefixtures("quick"),
    pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad"),
]


def files(run: Path, step: int) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors of a step's checkpoint: weights to use, raw weights, optimizers."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    return {str(f.relative_to(folder)): load_tensors(f) for f in sorted(folder.rglob("*.safetensors"))}


def assert_same_run(a: Path, b: Path, step: int) -> None:
    """Bit for bit: weights, averages, optimizers; and the log, but for clocks."""
    left, right = files(a, step), files(b, step)
    assert left.keys() == right.keys()
    for name, tensors in left.items():
        assert tensors.keys() == right[name].keys()
        for k, v in tensors.items():
            assert torch.equal(v, right[name][k]), (name, k)
    clocks = ("time", "seconds", "tokens_per_second", "memory_bytes", "utilisation")
    logs = [[{k: v for k, v in line.items() if k not in clocks} for line in read_log(run)] for run in (a, b)]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_run_is_the_uninterrupted_one(
    data: Path, tmp_path: Path, optimizer: str, accumulate: int, ema: float
) -> None:
    options = {"optimizer": optimizer, "accumulate": accumulate, "ema": ema}
    make_trainer(data, tmp_path / "whole", steps=4, **options).run()
    halves = tmp_path / "halves"
    first = make_trainer(data, halves, steps=4, **options)
    first.world = Stops(first.world, 2)  # type: ignore[assignment]
    first.run()
    assert [p.name for p in step_folders(halves)] == ["step_00000002"]
    make_trainer(data, halves, steps=4, **options).run()
    assert_same_run(tmp_path / "whole", halves, 4)
    found = files(halves, 4)
    assert len(found) == (3 if optimizer == "adamw" else 4)
    assert all(torch.equal(v, found["model.safetensors"][k]) for k, v in found["state/raw.safetensors"].items()) == (
        not ema
    )


class Stops:
    """A world in which time is up after some updates."""

    def __init__(self, world: Any, after: int) -> None:
        self.world, self.left = world, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world, name)

    def any(self, *flags: bool) -> list[bool]:
        self.left -= 1
        return [self.left == 0, False]


def test_the_masked_world_model_resumes_too(data: Path, tmp_path: Path) -> None:
    def train(run: str, stop: int = 0) -> None:
        torch.manual_seed(0)
        made = mixture(data)
        config = TrainConfig(
            steps=4, batch_size=4, optimizer="muon", ema=0.9, lr=1e-2, warmup=1, dtype="bfloat16", log_every=1,
            val_every=2, val_batches=2, save_every=2,
        )  # fmt: skip
        t = Trainer(config, MaskedHWM.tiny().build(made.spec), made, made, tmp_path / run)
        if stop:
            t.world = Stops(t.world, stop)  # type: ignore[assignment]
        t.run()

    train("whole")
    train("halves", stop=2)
    train("halves")
    assert_same_run(tmp_path / "whole", tmp_path / "halves", 4)
    assert isinstance(load_model(tmp_path / "halves"), MaskedHWM)


def start(data: Path, run: Path, launcher: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[str]:
    """Train the toy in a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launcher, "-m", "tests.train.toy", str(data), str(run), json.dumps(options)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Until the log of a run has a line of this update."""
    end = time.monotonic() + PATIENCE
    while not any(line["step"] >= step for line in read_whole_lines(run)):
        assert time.monotonic() < end, "the run does not get there"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def read_whole_lines(run: Path) -> list[dict[str, float]]:
    path = run / "log.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_run_goes_on_as_if_it_had_not_been(data: Path, tmp_path: Path, workers: int) -> None:
    make_trainer(data, tmp_path / "whole", steps=12).run()
    run = tmp_path / "killed"
    process = start(data, run, steps=12, slow=0.05, workers=workers)
    wait_for(run, 5, process)
    time.sleep(0.05 * torch.rand(()).item())  # at no particular moment
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    with (run / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"step": 7, "lo')  # a line cut short
    done = int(step_folders(run)[-1].name.removeprefix("step_"))
    assert 4 <= done < 12
    (run / "checkpoints" / f".step_{done + 2:08d}.1").mkdir()  # and a checkpoint
    resumed = make_trainer(data, run, steps=12)
    assert resumed.step == done
    resumed.run()
    assert_same_run(tmp_path / "whole", run, 12)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step_00000010", "step_00000012"]
    steps = [line["step"] for line in read_log(run) if "loss" in line]
    assert steps == list(range(1, 13))


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGINT, 0), (signal.SIGINT, 1), (signal.SIGTERM, 0), (signal.SIGUSR1, 1)]
)
def test_signals_save_and_say_how_to_go_on(data: Path, tmp_path: Path, number: int, workers: int) -> None:
    run = tmp_path / "run"
    process = start(data, run, steps=1000, slow=0.05, save_every=0, val_every=0, workers=workers, accumulate=2)
    wait_for(run, 2, process)
    children = [
        int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    ]
    assert len(children) >= workers
    for pid in (process.pid, *children):  # as a terminal does: to the whole group
        os.kill(pid, number)
    output, _ = process.communicate(timeout=PATIENCE)
    done = int(step_folders(run)[-1].name.removeprefix("step_"))
    assert f"stopped at update {done}; the same command goes on from there" in output
    assert output.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode != 0
    assert max(line["step"] for line in read_log(run)) == done
    assert make_trainer(data, run, steps=done, accumulate=2, save_every=0, val_every=0).step == done


def test_a_second_signal_interrupts_at_once_but_an_echo_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupts, before = module._Interrupts(), [signal.getsignal(s) for s in module._Interrupts.wanted]
    with interrupts as got:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # torchrun passes on what the terminal has sent already
        assert got == [signal.SIGINT, signal.SIGTERM]
        monkeypatch.setattr(interrupts, "first", interrupts.first - interrupts.same)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(s) for s in module._Interrupts.wanted] == before


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_values_that_are_not_finite_stop_with_the_batch_saved(
    data: Path, tmp_path: Path, monkeypatch, where: str
) -> None:
    made = make_trainer(data, tmp_path / "run", steps=6)
    real = Toy.loss

    def loss(self: Toy, batch: Any) -> Any:
        value, metrics = real(self, batch)
        if made.step == 3 and self.training:
            if where == "loss":
                return value * float("nan"), metrics
            value = value + (self.hidden.weight * 0).abs().sum().sqrt()  # its slope at 0 is infinite
        return value, metrics

    monkeypatch.setattr(Toy, "loss", loss)
    with pytest.raises(HwmError, match=rf"the .*{where} became nan at update 3\. The batch is in .*bad_batch_00000003"):
        made.run()
    saved = load_tensors(tmp_path / "run" / "bad_batch_00000003.safetensors")
    batch = made.data.batch(0, 3, 4)
    assert torch.equal(saved["latents"], batch.latents)
    assert torch.equal(saved["actions"], batch.actions)
    assert step_folders(tmp_path / "run")[-1].name == "step_00000002"
    assert all(p.isfinite().all() for p in made.module.parameters())


@pytest.mark.parametrize("began", ["float32", "bfloat16"])
def test_a_run_keeps_the_number_format_that_auto_found(data: Path, tmp_path: Path, monkeypatch, capsys, began) -> None:
    monkeypatch.setattr(devices, "faster_format", lambda device: began)
    make_trainer(data, tmp_path / "run", steps=1, dtype="auto").run()
    assert f"on cpu, {began}" in capsys.readouterr().out
    other = {"float32": "bfloat16", "bfloat16": "float32"}[began]
    monkeypatch.setattr(devices, "faster_format", lambda device: other)
    assert make_trainer(data, tmp_path / "run", steps=2, dtype="auto").runtime.format == began
    assert make_trainer(data, tmp_path / "run", steps=2, dtype=other).runtime.format == other


@pytest.mark.parametrize(
    ("mine", "others", "taken"),
    [
        ("bfloat16", "bfloat16", "bfloat16"), ("bfloat16", "float16", "float16"), ("float16", "bfloat16", "float16"),
        ("float32", "float16", "float32"), ("bfloat16", "float32", "float32"),
    ],
)  # fmt: skip
def test_devices_of_a_run_agree_on_a_format(data: Path, tmp_path: Path, monkeypatch, mine, others, taken) -> None:
    made = make_trainer(data, tmp_path / "run", steps=1)
    made.config = replace(made.config, dtype="auto")
    monkeypatch.setattr(devices, "faster_format", lambda device: mine)
    theirs = (others == "float32", others == "float16")
    monkeypatch.setattr(type(made.world), "any", lambda _, *flags: [a or b for a, b in zip(flags, theirs, strict=True)])
    assert made._format() == taken


def test_the_log_tells_what_happened(data: Path, tmp_path: Path) -> None:
    t = make_trainer(data, tmp_path / "run", steps=5, log_every=2, val_every=3, save_every=0, accumulate=2)
    t.run()
    lines = read_log(tmp_path / "run")
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 5]
    assert [line["step"] for line in lines if "val_loss" in line] == [3, 5]
    assert [p.name for p in step_folders(tmp_path / "run")] == ["step_00000005"]
    assert lines[0].keys() >= {
        "loss",
        "accuracy",
        "gradient_norm",
        "lr",
        "tokens_per_second",
        "memory_bytes",
        "utilisation",
    }
    assert lines[0]["lr"] == pytest.approx(1e-2)


def test_the_log_counts_the_time_of_updates_alone(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, now = make_trainer(data, tmp_path / "run", steps=6, val_every=2, save_every=3), [0.0]
    made.on_validate = lambda *given: later(200)  # pictures

    def later(seconds: float, real: Any = lambda: None) -> Any:
        now[0] += seconds
        return real()

    update, save = made.update, made.save
    monkeypatch.setattr(made, "update", lambda batches: later(2, lambda: update(batches)))
    monkeypatch.setattr(made, "save", lambda: later(100, save))
    monkeypatch.setattr("hwm.train.progress.time.perf_counter", lambda: now[0])
    made.run()
    assert [row["seconds"] for row in read_log(tmp_path / "run") if "seconds" in row] == [2.0] * 6


def test_memory_and_throughput_are_plausible(data: Path, tmp_path: Path) -> None:
    t = make_trainer(data, tmp_path / "run", steps=2, accumulate=2)
    t.run()
    line = read_log(tmp_path / "run")[0]
    assert line["tokens_per_second"] * line["seconds"] == pytest.approx(3 * 4 * 4 * 2, rel=1e-3)  # steps, cells, clips
    assert 5e7 < line["memory_bytes"] < 5e10
    flops = line["utilisation"] * 1e9 * line["seconds"]
    # two forward products of each weight a token, and twice as many back: the two hidden layers, roughly
    assert 6 * 64 * 2 * 4 * 8 < flops < 6 * 64 * 40 * 4 * 8 * 2


def test_counting_flops_leaves_no_trace(data: Path, tmp_path: Path) -> None:
    t = make_trainer(data, tmp_path / "run", steps=2)
    before = {k: v.clone() for k, v in t.module.state_dict().items()}
    assert t._meter().flops > 0
    assert all(torch.equal(v, before[k]) for k, v in t.module.state_dict().items())
    assert all(p.grad is None for p in t.module.parameters())


def test_a_compiled_model_is_compiled(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(module.torch, "compile", lambda m, real=torch.compile: real(m, backend=backend))
    make_trainer(data, tmp_path / "compiled", steps=2, compile=True).run()
    assert graphs
    assert "first update, with compilation: " in capsys.readouterr().out
    lines = [line for line in read_log(tmp_path / "compiled") if "loss" in line]
    assert ["tokens_per_second" in line for line in lines] == [False, True], "the first is not counted"
    torch._dynamo.reset()
    make_trainer(data, tmp_path / "eager", steps=2).run()
    assert_same_run(tmp_path / "compiled", tmp_path / "eager", 2)


def test_large_models_are_compiled_where_that_can_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    here: dict[str, Any] = {"triton": object(), "gcc": "/usr/bin/gcc"}
    monkeypatch.setattr(blocks, "find_spec", here.get)
    monkeypatch.setattr(blocks.shutil, "which", here.get)
    cuda = torch.device("cuda")
    with torch.device("meta"):
        small, large = (MaskedHWM.Config(dim=d, depth=2, heads=4).build(toy_spec()) for d in (32, 1024))
        tower = Toy.Config(dim=100_000).build(toy_spec(channels=None))
    assert blocks.worth_compiling(large, cuda)
    assert not blocks.worth_compiling(large, torch.device("cpu"))
    assert not blocks.worth_compiling(small, cuda)
    assert not blocks.worth_compiling(tower, cuda), "it has no blocks"
    for gone in here.copy():
        kept = here.pop(gone)
        assert not blocks.worth_compiling(large, cuda), gone
        here[gone] = kept


def test_validation_is_identical_when_repeated(data: Path, tmp_path: Path) -> None:
    t = make_trainer(data, tmp_path / "run", steps=3)
    t.run()
    torch.manual_seed(5)
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in t.module.state_dict().items()}
    first, again = t.validate(), t.validate()
    assert first == again
    assert first.keys() == {"val_loss", "val_accuracy"}
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in t.module.state_dict().items())


def test_validation_and_the_result_use_the_average(data: Path, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []
    t = make_trainer(data, tmp_path / "run", steps=3, val_every=0)
    t.on_validate = lambda step, m, run: seen.append(m.state_dict()["hidden.weight"].clone())
    result = t.run()
    assert t.average is not None
    want = t.average.weights["hidden.weight"]
    assert torch.equal(seen[0], want)
    assert torch.equal(result.state_dict()["hidden.weight"], want)
    assert torch.equal(load_model(tmp_path / "run").state_dict()["hidden.weight"], want)
    raw = files(tmp_path / "run", 3)["state/raw.safetensors"]["hidden.weight"]
    assert not torch.equal(raw, want)
    assert not result.training


def test_accumulation_is_a_larger_batch(data: Path, tmp_path: Path) -> None:
    made = []
    for name, options in (("one", {"batch_size": 8}), ("two", {"batch_size": 4, "accumulate": 2})):
        t = make_trainer(data, tmp_path / name, steps=1, warmup=0, model={"noise": 0.0}, **options)
        clips = [t.data.batch(0, step, 4) for step in range(2)]
        if name == "one":  # the same eight clips at once
            whole = type(clips[0])(*(torch.cat([getattr(c, f) for c in clips]) for f in ("latents", "actions")), "toy")
            t.update(iter([whole]))
        else:
            t.update(iter(clips))
        made.append(t.module.state_dict())
    assert all(torch.allclose(v, made[1][k], atol=1e-6) for k, v in made[0].items())


def test_the_learning_rate_of_each_update(data: Path, tmp_path: Path) -> None:
    make_trainer(data, tmp_path / "run", steps=4, warmup=2, lr=0.5, floor=0.2, optimizer="muon").run()
    rates = [line["lr"] for line in read_log(tmp_path / "run") if "lr" in line]
    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.5 * (0.2 + 0.8 * 0.5)])


def test_a_longer_run_goes_on_from_a_finished_one(data: Path, tmp_path: Path, capsys) -> None:
    make_trainer(data, tmp_path / "run", steps=2).run()
    before = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8")
    assert make_trainer(data, tmp_path / "run", steps=2).run() is not None  # nothing left to do
    assert (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8") == before
    t = make_trainer(data, tmp_path / "run", steps=4)
    assert t.step == 2
    assert f"resuming {tmp_path / 'run'} at update 2" in capsys.readouterr().out
    t.run()
    assert json.loads((tmp_path / "run" / "hwm.json").read_text(encoding="utf-8"))["notes"]["step"] == 4


def test_time_is_up_after_some_minutes(data: Path, tmp_path: Path, capsys) -> None:
    t = make_trainer(data, tmp_path / "run", steps=100_000, minutes=1e-6, save_every=0)
    t.run()
    assert t.step == 1
    assert "stopped at update 1; the same command goes on from there" in capsys.readouterr().out
    assert not (tmp_path / "run" / "hwm.json").exists()
    assert step_folders(tmp_path / "run")[-1].name == "step_00000001"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "train.steps must be at least 1, got 0"),
        ({"accumulate": 0}, "train.accumulate must be at least 1"),
        ({"lr": -1.0}, "train.lr must not be negative"),
        ({"seed": -1}, "train.seed must not be negative"),
        ({"ema": 1.0}, "train.ema is a decay between 0 and 1"),
    ],
)
def test_settings_without_sense_are_refused(change: dict, message: str) -> None:
    with pytest.raises(HwmError, match=message):
        TrainConfig(**change)


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    from hwm.train.distributed import start as begin

    assert begin("auto").device.type == begin("cpu").device.type == "cpu"
    with pytest.raises(HwmError, match=r"no CUDA; take cpu or auto"):
        begin("cuda")
    with pytest.raises(HwmError, match="there is no device called 'gpu'"):
        begin("gpu")


def test_held_out_data_of_another_kind_is_refused_at_once(data: Path, tmp_path: Path) -> None:
    made = mixture(data)
    for change in ({"tokenizer": "other"}, {"embodiment": "other"}, {"action_names": ("right", "left")}):
        name = str(next(iter(change)))
        other = mixture(make_store(tmp_path / name, **change).path)
        with pytest.raises(HwmError, match=r"held-out data (of 'other'|has actions of)"):
            Trainer(TrainConfig(), Toy.Config().build(made.spec), made, other, tmp_path / "run")


def test_a_recipe_is_recorded_and_read_again(tmp_path: Path) -> None:
    recipe = Recipe(model=Toy.Config(dim=4), train=TrainConfig(steps=7, optimizer="muon"))
    write_run(tmp_path / "run", recipe)
    assert from_json(Recipe, json.loads((tmp_path / "run" / "recipe.json").read_text(encoding="utf-8"))) == recipe


TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def test_two_processes_are_one(data: Path, tmp_path: Path) -> None:
    """The same global batches, so the same losses, gradients and weights; and one voice."""
    plain = {"model": {"noise": 0.0}, "steps": 4, "log_every": 1, "accumulate": 2, "optimizer": "muon", "lr": 1e-3}
    process = start(data, tmp_path / "two", TWO, batch_size=2, **plain)
    make_trainer(data, tmp_path / "one", batch_size=4, **plain).run()
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert output.count("update 4/4") == 1
    assert output.count("update 2: val_loss") == 1
    one, two = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two, strict=True):
        for key in ("loss", "accuracy", "gradient_norm", "lr"):
            if key in a:
                assert b[key] == pytest.approx(a[key], abs=1e-6, rel=1e-6), (a["step"], key)
    assert two[0]["tokens_per_second"] * two[0]["seconds"] == pytest.approx(3 * 4 * 4 * 2, rel=1e-3)
    for name, tensors in files(tmp_path / "one", 4).items():
        for k, v in files(tmp_path / "two", 4)[name].items():
            assert torch.allclose(v, tensors[k], atol=2e-5), (name, k)


def test_two_processes_stop_together(data: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches all processes, and torchrun passes it on again: saved once, said once."""
    run = tmp_path / "run"
    process = start(data, run, TWO, steps=1000, slow=0.1, save_every=0, val_every=0)
    wait_for(run, 2, process)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
    for pid in (*map(int, workers), process.pid):
        os.kill(pid, signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE)
    assert output.count("goes on from there") == 1
    done = int(step_folders(run)[-1].name.removeprefix("step_"))
    assert f"stopped at update {done}" in output
    assert max(line["step"] for line in read_log(run)) == done
