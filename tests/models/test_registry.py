"""What every registered world model must do: a new family is tested by being imported in `hwm.models`."""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from hwm.config import config_from_json, registered, to_json
from hwm.devices import Runtime
from hwm.errors import HwmError
from hwm.models.base import WorldModel
from hwm.plugins import own
from hwm.train.blocks import arithmetic, compile_blocks, recompute
from hwm.train.checkpoint import load_model, save_model
from hwm.train.config import TrainConfig
from hwm.train.trainer import Trainer
from hwm.types import Batch
from tests.models.toys import is_aligned, toy_batch, toy_spec

# what ends a branch begins at zero (AdaLN-Zero, last convolutions): nothing passes before the first update
GATED = {"diffusion", "flow_hwm", "flow_hwm_uvit"}
FAMILIES = sorted(entry.name for entry in own("hwm.models"))


def tiny_config(name: str):
    """Each class says itself what a config that tests can run is."""
    return registered(name).tiny()


def build(name: str) -> WorldModel:
    config = tiny_config(name)
    try:
        return config.build(toy_spec())
    except HwmError:
        return config.build(toy_spec(channels=4))


def opened(model: WorldModel) -> WorldModel:
    """The model with gates that let pass."""
    for parameter in model.parameters():
        if model.name in GATED and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def clip(model: WorldModel) -> Batch:
    return toy_batch(model.spec, model.config.past + model.config.horizon)


def window(model: WorldModel, missing: int | None = None) -> Batch:
    batch, past = clip(model), model.config.past
    return batch.window(0, past, past + (missing or model.config.horizon))


@pytest.mark.parametrize("name", FAMILIES)
def test_windows_it_was_not_made_for_are_refused(name):
    model = build(name)
    past, horizon = model.config.past, model.config.horizon
    full = toy_batch(model.spec, past + horizon + 2)
    for given, missing in ((past + 1, 1), (past, horizon + 1), (0, 1), (past, 0)):
        with pytest.raises(HwmError, match=f"{name} predicts 1 to {horizon} steps from 1 to {past}"):
            model.predict(full.window(0, given, given + missing))
    for window_stride in (0, past + 1):
        with pytest.raises(HwmError, match=f"window_stride={window_stride}"):
            replace(model.config, window_stride=window_stride).build(model.spec)


@pytest.mark.parametrize("name", ["genie", "hma_discrete", "masked_hwm_shared"])
def test_options_that_a_family_cannot_heed_are_not_its_own_and_load_where_they_were_off(name):
    config = tiny_config(name)
    assert not hasattr(config, "own_past")
    assert config_from_json({**to_json(config), "own_past": 0.0}) == config
    with pytest.raises(HwmError, match="own_past"):
        config_from_json({**to_json(config), "own_past": 0.5})
    assert config_from_json({**to_json(tiny_config("masked_hwm")), "own_past": 0.5}).own_past == 0.5


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_is_finite_and_falls_on_one_batch(name):
    model = build(name)
    batch, optimizer, losses = clip(model), None, []
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(30):
        loss, metrics = model(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        assert loss.isfinite()
        assert not any(m.requires_grad for m in metrics.values())
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("name", FAMILIES)
def test_future_actions_reach_the_loss(name):
    model = build(name)
    batch = clip(model)
    batch.actions.requires_grad_()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for update in range(2):
        batch.actions.grad = None
        model(batch)[0].backward()
        if update or name not in GATED:
            assert batch.actions.grad[:, -1].abs().sum() > 0
        optimizer.step()


@pytest.mark.parametrize("name", FAMILIES)
def test_prediction_is_as_many_steps_as_asked_for(name):
    model = build(name).eval()
    batch = window(model)
    out = model.predict(batch)
    assert out.latents.shape == (2, batch.missing, *batch.latents.shape[2:])
    assert out.latents.dtype == batch.latents.dtype
    if model.spec.latent.vocab:
        assert 0 <= out.latents.min() <= out.latents.max() < model.spec.latent.vocab


@pytest.mark.parametrize("name", FAMILIES)
def test_actions_that_follow_are_nothing_to_a_model_that_is_not_told_them(name):
    """Neither what is predicted nor the loss depends on them: they drive no step of the clip."""
    model = opened(build(name)).eval()
    for batch in (window(model), clip(model)):
        found = []
        for following in (None, torch.randn_like(batch.actions[:, 0]) * 9):
            torch.manual_seed(0)
            given = replace(batch, following=following)
            found.append(model.predict(given).latents if batch.missing else model.loss(given)[0])
        assert torch.equal(*found)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_rollout_of_one_prediction_is_that_prediction(name):
    model = build(name).eval()
    batch = window(model)
    one, other = (f(batch, generator=torch.Generator().manual_seed(0)) for f in (model.predict, model.rollout))
    torch.testing.assert_close(one.latents, other.latents)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_rollout_goes_on_past_the_window(name):
    model = build(name).eval()
    horizon, past = model.config.horizon, model.config.past
    full = toy_batch(model.spec, past + 3 * horizon)
    out = model.rollout(Batch(full.latents[:, :past], full.actions, full.embodiment))
    assert out.latents.shape[1] == 3 * horizon


@pytest.mark.parametrize("name", FAMILIES)
def test_config_survives_json(name):
    config = tiny_config(name)
    assert config_from_json(to_json(config)) == config


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_make_the_model(name):
    model, other = build(name).eval(), build(name).eval()
    other.load_state_dict(model.state_dict())
    batch = window(model)
    one, two = (m.predict(batch, generator=torch.Generator().manual_seed(0)) for m in (model, other))
    torch.testing.assert_close(one.latents, two.latents)


@pytest.mark.parametrize("name", FAMILIES)
def test_prediction_leaves_the_batch_and_the_model_as_they_were(name):
    model = build(name).eval()
    batch, state = window(model), {k: v.clone() for k, v in model.state_dict().items()}
    latents, actions = batch.latents.clone(), batch.actions.clone()
    model.predict(batch)
    assert torch.equal(batch.latents, latents)
    assert torch.equal(batch.actions, actions)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_two_processes_under_fsdp2_give_the_loss_of_one():
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.models.sharded"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=900, cwd=root, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in FAMILIES:
        assert f"{name}: sharded like whole" in done.stdout
        assert f"{name}: own steps in halves" in done.stdout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("name", FAMILIES)
def test_recomputing_activations_changes_nothing(name, mode, dtype):
    model = build(name)
    assert list(model.units()), "a family names its repeated parts, or it cannot be sharded"
    gradients = []
    for again in ("none", mode):
        recompute(model, again)
        model.zero_grad()
        torch.manual_seed(0)
        with arithmetic(Runtime(torch.device("cpu"), dtype), mode):
            loss = model(clip(model))[0]
        loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("name", FAMILIES)
def test_compiled_units_have_the_same_gradients(name, mode, monkeypatch):
    """Compiled whole: with `fullgraph`, what torch cannot trace is an error."""
    torch.compiler.reset()
    traced, gradients = [], []
    aot = torch._dynamo.lookup_backend("aot_eager")

    def backend(graph, given):
        traced.append(graph)
        return aot(graph, given)

    whole = partial(torch.compile, backend=backend, fullgraph=True)
    monkeypatch.setattr(torch, "compile", whole)
    model = opened(build(name))
    for compiled in (False, True):
        if compiled:
            recompute(model, mode)
            compile_blocks(model)
        model.zero_grad()
        torch.manual_seed(0)
        model(clip(model))[0].backward()
        gradients.append({k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None})
    once = len(traced)
    assert once
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    model.eval().predict(window(model))
    assert len(traced) == once, "sampling is not compiled"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_gives_the_same_predictions(name, tmp_path):
    model = build(name).eval()
    save_model(tmp_path, model)
    again = load_model(tmp_path)
    pairs = [m.rollout(window(m), generator=torch.Generator().manual_seed(0)).latents for m in (model, again)]
    assert torch.equal(*pairs)


@pytest.mark.parametrize("name", FAMILIES)
def test_loaded_weights_are_aligned(name, tmp_path):
    """In a file they are not; and products of others may differ from the saved model's in their last bit."""
    save_model(tmp_path, build(name))
    assert [k for k, v in load_model(tmp_path).state_dict().items() if not is_aligned(v)] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_a_resumed_run_of_every_family_is_the_uninterrupted_one(name, tmp_path):
    def train(run, steps):
        torch.manual_seed(0)
        model = build(name)
        data = OneClip(clip(model), model.spec)
        config = TrainConfig(
            steps=4, batch_size=2, warmup=1, lr=1e-3, ema=0.9, log_every=1, save_every=steps, threads=1
        )
        trainer = Trainer(config, model, data, None, tmp_path / run)
        while trainer.step < steps:
            trainer.update(batches := trainer._batches())
            del batches
            trainer.step += 1
        trainer.save()
        return trainer

    whole = train("whole", 4)
    train("parts", 2)
    parts = train("parts", 4)
    for (key, a), b in zip(whole.module.state_dict().items(), parts.module.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


class OneClip:
    """A mixture that draws the same clip for ever."""

    workers, far = 0, False

    def __init__(self, batch, spec):
        self.only, self.spec = batch, spec

    def batch(self, seed, step, size, rank=0, world=1):
        return self.only
