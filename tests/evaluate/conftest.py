"""Stores of the panning world, recorded once a session."""

from __future__ import annotations

import pytest

from hwm.data.clips import Clips
from hwm.evaluate.evaluate import EvaluateConfig, evaluate
from tests.evaluate import pan_world


@pytest.fixture(scope="session")
def worlds(tmp_path_factory):
    """name -> (tokenizer, clips of 8 steps) for the stores with video."""
    root = tmp_path_factory.mktemp("worlds")
    tokenizers = {name: make() for name, make in pan_world.TOKENIZERS.items()}
    return {name: (t, Clips(pan_world.record(root / name, t), 8)) for name, t in tokenizers.items()}


@pytest.fixture(scope="session")
def oracle_results(worlds):
    """An evaluation of the oracle on token ids, in both scenarios."""
    tokenizer, clips = worlds["blocks"]
    model = pan_world.build(pan_world.Oracle, clips)
    names = ("autoregressive", "temporally_teacher_forced")
    return evaluate(
        model, tokenizer, clips, EvaluateConfig(clips=30, horizon=5, scenarios=names, batch_size=4, examples=3)
    )
