"""In an evaluation the model alone computes in the number format; tokenizer and metrics stay in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hwm.data.clips import Clips
from hwm.evaluate.evaluate import EvaluateConfig, evaluate
from hwm.evaluate.metrics import Metric, psnr
from hwm.evaluate.obey import obey
from hwm.types import Batch, Prediction, Tokenizer
from tests.evaluate.pan_world import CopyLast, Pairs, build, record

Seen = dict[str, set[bool]]


def narrow() -> bool:
    return torch.is_autocast_enabled("cpu")


@pytest.fixture
def world(tmp_path) -> tuple[CopyLast, Tokenizer, Clips, Seen]:
    """A model and a tokenizer that note whether products are cast where they are asked."""
    seen: Seen = {"model": set(), "tokenizer": set(), "metric": set()}

    class Model(CopyLast):
        def predict(self, batch: Batch, **how: Any) -> Prediction:
            seen["model"].add(narrow())
            return super().predict(batch)

    class Pictures(Pairs):
        def encode(self, video_BFCHW: Tensor) -> Tensor:
            seen["tokenizer"].add(narrow())
            return super().encode(video_BFCHW)

        def decode(self, latents: Tensor) -> Tensor:
            seen["tokenizer"].add(narrow())
            return super().decode(latents)

    store = record(tmp_path / "store", Pairs(), episodes=2)
    clips = Clips(store, 9)
    return build(Model, clips), Pictures(), clips, seen


def noted(seen: Seen) -> Callable[[Tensor, Tensor], Tensor]:
    def metric(pictures: Tensor, truth: Tensor) -> Tensor:
        seen["metric"].add(narrow())
        return psnr(pictures, truth)

    return metric


@pytest.mark.parametrize("horizon", [1, 6], ids=["within the window", "beyond it, clip by clip"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_evaluation(world, dtype: str, horizon: int) -> None:
    model, tokenizer, clips, seen = world
    how = EvaluateConfig(
        clips=2, prompt=2, horizon=horizon, swaps=(), dtype=dtype, metrics={"noted": Metric(noted(seen))}
    )
    assert evaluate(model, tokenizer, clips, how).dtype == dtype
    assert seen == {"model": {dtype == "bfloat16"}, "tokenizer": {False}, "metric": {False}}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_commands(world, dtype: str) -> None:
    model, tokenizer, clips, seen = world
    obey(model, tokenizer, clips, {"turn": {"TURN": 1.0}}, starts=2, steps=2, dtype=dtype)
    assert seen == {"model": {dtype == "bfloat16"}, "tokenizer": {False}, "metric": set()}
