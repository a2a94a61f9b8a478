"""Weights of 8 bits: near what they were, and a fraction of the size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hwm.errors import HwmError
from hwm.loading import load
from hwm.models.base import WorldModel
from hwm.nn.int8 import with_int8_weights
from hwm.train.checkpoint import save_model
from tests.models.test_cosmos_ar import GREEDY, TEXT
from tests.models.test_cosmos_ar import build as build_cosmos
from tests.models.test_registry import FAMILIES, build, window
from tests.models.toys import toy_batch, toy_spec

WITHOUT = "torchao is not installed"


def stored(x: Tensor) -> int:
    """Bytes that a tensor takes, a quantised one by its parts."""
    parts = x.__tensor_flatten__()[0] if hasattr(x, "__tensor_flatten__") else []
    return sum(stored(getattr(x, name)) for name in parts) if parts else x.nbytes


def bytes_of(module: nn.Module) -> int:
    return sum(stored(p.data) for p in module.parameters())


@pytest.mark.parametrize("changes", [{}, {"factorized": True}, TEXT, {"dtype": "bfloat16"}])
def test_predictions_stay_near_and_weights_become_small(changes: dict[str, Any]) -> None:
    pytest.importorskip("torchao", reason=WITHOUT)
    model, batch = build_cosmos(**changes, dim=96, mlp_dim=192, head_dim=24), toy_batch(toy_spec(), 3)
    wide, exact = bytes_of(model.layers), model.teacher_forced(batch, 1).logits
    assert exact is not None
    small = with_int8_weights(model)
    near = small.teacher_forced(batch, 1).logits
    assert near is not None
    assert 0 < (near - exact).abs().max() < 0.05 * exact.abs().max()
    share = bytes_of(small.layers) / wide
    assert share < (0.56 if changes.get("dtype") else 0.28), "a half or a quarter, and the scales"
    made = small.predict(batch.window(0, 2, 3), sampler=GREEDY)
    assert made.latents.shape == (2, 1, 4, 4)


@pytest.mark.parametrize("name", FAMILIES)
def test_models_of_every_family_predict_with_them(name: str) -> None:
    pytest.importorskip("torchao", reason=WITHOUT)
    torch.manual_seed(0)
    model = with_int8_weights(build(name).eval())
    batch = window(model)
    made = model.predict(batch, generator=torch.Generator().manual_seed(0)).latents
    assert made.shape == (2, batch.missing, *batch.latents.shape[2:])
    assert made.isfinite().all()


def test_they_are_asked_for_when_a_model_is_loaded(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason=WITHOUT)
    save_model(tmp_path, build_cosmos())
    models: list[WorldModel] = [load(tmp_path), load(tmp_path, int8=True)]
    assert bytes_of(models[1]) < 0.7 * bytes_of(models[0])
    assert not any(p.requires_grad for p in models[1].parameters())
    batch = toy_batch(toy_spec(), 3)
    one, two = (m.teacher_forced(batch, 1).logits for m in models)
    assert one is not None
    assert two is not None
    assert 0 < (one - two).abs().max() < 0.05 * one.abs().max()


def test_without_the_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(HwmError, match=r"need torchao: pip install 'humanoid-world-models\[int8\]'"):
        with_int8_weights(nn.Linear(2, 2))
