from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import Tensor

from hwm.commands.rollouts import RolloutOptions
from hwm.errors import HwmError
from hwm.evaluate.evaluate import EvaluateConfig, evaluate
from hwm.evaluate.scenarios import SCENARIOS, autoregressive, fully_teacher_forced, temporally_teacher_forced
from hwm.models.base import WorldModel
from hwm.models.genie import Genie
from hwm.models.masked_hwm import MaskedHWM
from hwm.models.masked_hwm_shared import MaskedHWMShared
from hwm.types import Batch, Prediction
from tests.models.test_registry import FAMILIES
from tests.models.test_registry import build as build_family
from tests.models.toys import toy_batch, toy_spec

ROOMY = {  # windows in which a cache lives on for several steps
    "genie": replace(Genie.tiny(), past=6, window_stride=3),
    "masked_hwm": replace(MaskedHWM.tiny(), past=6, window_stride=3, learned_steps=1),
    "masked_hwm_split": replace(MaskedHWM.tiny(), past=5, window_stride=4, learned_steps=6, variant="split"),
    "masked_hwm_parallel": replace(
        MaskedHWM.tiny(), past=6, window_stride=3, learned_steps=1, parallel=True, reach=1, copy_previous=True,
        action_deltas=True, ordered_actions=True, factorized=True,
    ),
}  # fmt: skip


def models() -> dict[str, WorldModel]:
    torch.manual_seed(0)
    out = {name: build_family(name) for name in FAMILIES}
    return {k: v.eval() for k, v in (out | {f"{k} roomy": c.build(toy_spec()) for k, c in ROOMY.items()}).items()}


MODELS = models()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("prompt", [1, 2])
def test_a_cache_changes_no_token(name: str, prompt: int) -> None:
    model = MODELS[name]
    batch = toy_batch(model.spec, prompt + model.config.past + 5)
    fast, slow = (
        temporally_teacher_forced(
            model, batch, prompt, logits=True, use_cache=use, generator=torch.Generator().manual_seed(0)
        )
        for use in (True, False)
    )
    assert fast.latents.shape == batch.latents[:, prompt:].shape
    if model.spec.latent.vocab:
        assert torch.equal(fast.latents, slow.latents)
        torch.testing.assert_close(fast.logits, slow.logits, atol=1e-5, rtol=1e-4)
    else:
        torch.testing.assert_close(fast.latents, slow.latents, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_each_step_is_the_prediction_from_the_truth_before_it(name: str) -> None:
    model = MODELS[name]
    past = model.config.past
    batch = toy_batch(model.spec, past + 4)
    forced, rolled = (
        scenario(model, batch, past, generator=torch.Generator().manual_seed(3)).latents
        for scenario in (temporally_teacher_forced, autoregressive)
    )
    assert forced.shape == rolled.shape
    window = batch.window(0, past, past + 1)
    first = model.predict(window, generator=torch.Generator().manual_seed(3)).latents
    torch.testing.assert_close(forced[:, :1], first, atol=1e-4, rtol=1e-4)
    # a change of the truth of step t is seen after t, and nowhere else
    changed = Batch(batch.latents.clone(), batch.actions, batch.embodiment)
    changed.latents[:, past + 1] = changed.latents[:, past + 1].flip(0)
    other = temporally_teacher_forced(model, changed, past, logits=True, generator=torch.Generator().manual_seed(3))
    assert torch.equal(other.latents[:, :2], forced[:, :2])
    if other.logits is not None:
        again = temporally_teacher_forced(model, batch, past, logits=True, generator=torch.Generator().manual_seed(3))
        assert again.logits is not None
        assert not torch.equal(other.logits[:, 2], again.logits[:, 2])


class Diary(WorldModel):
    """Notes what it is shown and what it may reuse; its cache is the window that it has seen."""

    def predict(self, batch: Batch, *, sampler=None, logits=False, cache=None, generator=None) -> Prediction:
        self.seen.append((batch, cache))
        return Prediction(batch.latents[:, -1:].expand(-1, batch.missing, -1, -1) * 0, cache=batch.latents)


@pytest.mark.parametrize(("past", "window_stride", "times"), [(4, 1, 2), (4, 2, 7), (6, 3, 10), (9, 9, 12)])
def test_a_cache_is_of_true_steps_of_the_same_window(past: int, window_stride: int, times: int) -> None:
    model = Diary(WorldModel.Config(past=past, window_stride=window_stride), toy_spec())
    batch, model.seen, reused = toy_batch(model.spec, 16), [], 0
    out = temporally_teacher_forced(model, batch, 2)
    assert out.cache is None
    for t, (window, cache) in zip(range(2, 16), model.seen, strict=True):
        start = model.window_start(t)
        assert torch.equal(window.latents, batch.latents[:, start:t]), "nothing but the truth"
        assert window.actions.shape[1] == t - start + 1
        if t > 2 and model.window_start(t - 1) == start:
            assert torch.equal(cache, batch.latents[:, start : t - 1])
            reused += 1
        else:
            assert cache is None
    assert reused == times


def test_steps_that_are_predicted_together_are_asked_for_together() -> None:
    model = replace(MaskedHWMShared.tiny(), clip_factors=3, past=3, horizon=3).build(toy_spec()).eval()
    batch = toy_batch(model.spec, 9)
    assert temporally_teacher_forced(model, batch, 3, logits=True).logits.shape[:2] == (2, 6)
    with pytest.raises(HwmError, match="multiples of 3"):
        temporally_teacher_forced(model, batch.window(0, 8, 8), 3)


class NextToken(WorldModel):
    """Each token from the one before it, cell by cell and step by step: a table of logits."""

    @dataclass(frozen=True, kw_only=True)
    class Config(WorldModel.Config):
        sharp: float = 3.0

    def __init__(self, config: Config, spec) -> None:
        super().__init__(config, spec)
        vocab = spec.latent.vocab
        table = config.sharp * torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(0))
        self.register_buffer("table", table)

    def teacher_forced(self, batch: Batch, prompt: int) -> Prediction:
        before = batch.latents.flatten(1).roll(1, 1).view(batch.latents.shape)[:, prompt:]
        logits = self.table[before]
        return Prediction(logits.argmax(-1), logits)

    def predict(self, batch: Batch, *, sampler=None, logits=False, cache=None, generator=None) -> Prediction:
        raise AssertionError("a fully teacher-forced evaluation asks for nothing else")


def by_hand(ids: Tensor, table: Tensor, prompt: int) -> float:
    """Mean nats a token of clips (N, T, H, W), token by token."""
    total, count, logp = 0.0, 0, table.double().log_softmax(-1)
    for clip in ids:
        flat, start = clip.flatten().tolist(), prompt * clip[0].numel()
        total -= sum(logp[a, b].item() for a, b in zip(flat[start - 1 :], flat[start:], strict=False))
        count += len(flat) - start
    return total / count


@pytest.mark.parametrize("sharp", [0.0, 3.0])
def test_fully_teacher_forced_cross_entropy_and_perplexity(worlds, sharp: float) -> None:
    tokenizer, clips = worlds["blocks"]
    model = NextToken(NextToken.Config(past=2, sharp=sharp), clips.spec())
    r = evaluate(
        model, tokenizer, clips, EvaluateConfig(clips=7, horizon=3, scenarios=("fully_teacher_forced",), batch_size=3)
    )
    indices = np.unique(np.linspace(0, len(clips) - 1, 7).round().astype(int))
    want = by_hand(clips.batch(indices).latents[:, :5], model.table, 2)
    out = r.json()
    assert out["ce"] == pytest.approx(want, abs=2e-5)
    assert out["perplexity"] == pytest.approx(math.exp(want), rel=1e-4)
    assert out["perplexity_by_step"] == pytest.approx([math.exp(x) for x in out["ce_by_step"]], rel=1e-4)
    if sharp == 0:
        assert out["perplexity"] == pytest.approx(64), "as unsure as among all 64 tokens"
    assert out["scenario"] == "fully_teacher_forced"
    assert out["seconds_per_frame"] == pytest.approx(out["seconds_per_step"], rel=1e-4)
    assert r.mean("perplexity", moving=True) is not None


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_teacher_forced_in_full_or_says_what_it_has(name: str) -> None:
    model = MODELS[name]
    prompt = model.config.past
    batch = toy_batch(model.spec, prompt + 2 * model.config.horizon)
    if type(model).teacher_forced is WorldModel.teacher_forced:
        with pytest.raises(HwmError, match="autoregressive and temporally_teacher_forced"):
            fully_teacher_forced(model, batch, prompt)
        return
    out = fully_teacher_forced(model, batch, prompt)
    assert out.logits is not None
    assert out.latents.shape == batch.latents[:, prompt:].shape == out.logits.shape[:-1]
    # no token tells of itself or of those before it
    changed = Batch(batch.latents.clone(), batch.actions, batch.embodiment)
    changed.latents[:, -1, -1, -1] = (changed.latents[:, -1, -1, -1] + 1) % model.spec.latent.vocab
    assert torch.equal(fully_teacher_forced(model, changed, prompt).logits, out.logits)
    changed.latents[:, 0] = changed.latents[:, 0].flip(0)
    assert not torch.equal(fully_teacher_forced(model, changed, prompt).logits, out.logits)


def test_masked_models_refuse_full_teacher_forcing(worlds) -> None:
    tokenizer, clips = worlds["blocks"]
    model = replace(Genie.tiny(), past=2).build(clips.spec())
    with pytest.raises(HwmError, match=r"genie fills in .* temporally_teacher_forced"):
        evaluate(
            model, tokenizer, clips, EvaluateConfig(clips=2, horizon=2, scenarios=("fully_teacher_forced",), swaps=())
        )


def test_the_command_line_knows_all_scenarios() -> None:
    hint = get_type_hints(RolloutOptions)["scenario"]
    assert get_args(get_args(hint)[0]) == tuple(SCENARIOS)
