"""Means of several predictions, and Frechet distances, within an evaluation."""

from __future__ import annotations

import numpy as np
import pytest
from torch import Tensor

from hwm import cli
from hwm.errors import HwmError
from hwm.evaluate.evaluate import EvaluateConfig, evaluate
from tests.evaluate import pan_world

QUICK = dict(clips=6, horizon=3, swaps=(), batch_size=4, progress=False)


def test_the_mean_of_several_draws_is_judged(worlds) -> None:
    tokenizer, clips = worlds["pixels"]
    model = pan_world.build(pan_world.Noisy, clips)
    found = {n: evaluate(model, tokenizer, clips, EvaluateConfig(draws=n, **QUICK)) for n in (1, 2, 16)}
    again = evaluate(model, tokenizer, clips, EvaluateConfig(**QUICK))

    def noise(draws: int) -> float:
        pictures = [(e.prediction.astype(float), e.context) for e in found[draws].examples]
        return float(np.mean([(p[context:] - p[context - 1]) ** 2 for p, context in pictures]))

    assert np.array_equal(found[1].figures["autoregressive"]["psnr"], again.figures["autoregressive"]["psnr"])
    psnr = [found[n].overall("psnr").mean for n in (1, 2, 16)]
    assert psnr == sorted(psnr)
    assert psnr[2] > psnr[0] + 0.5
    # the model repeats the last picture, plus noise of which a mean of n keeps 1 / n of the variance
    assert noise(1) / noise(16) == pytest.approx(16, rel=0.3)
    assert [found[n].json()["draws"] for n in (1, 2, 16)] == [1, 2, 16]
    with pytest.raises(HwmError, match="draws"):
        evaluate(model, tokenizer, clips, EvaluateConfig(draws=0, **QUICK))


def colours(video: Tensor) -> Tensor:
    """Features of pictures: means of their columns' brightness."""
    return video.flatten(0, 1).mean((-3, -2))[:, ::12]


def test_frechet_distances_of_all_clips_are_taken_beside_copies_and_the_ceiling(worlds) -> None:
    tokenizer, clips = worlds["pixels"]
    names = ("autoregressive", "temporally_teacher_forced")
    oracle = evaluate(
        pan_world.build(pan_world.Oracle, clips),
        tokenizer,
        clips,
        EvaluateConfig(features={"fid": colours}, scenarios=names, **QUICK),
    )
    copy = evaluate(
        pan_world.build(pan_world.CopyLast, clips), tokenizer, clips, EvaluateConfig(features={"fid": colours}, **QUICK)
    )
    assert set(oracle.distances) == set(names)
    ours, theirs = oracle.distances["autoregressive"], copy.distances["autoregressive"]
    assert ours["fid_examples"] == 6 * 3
    assert ours["fid"] < 0.1 * ours["fid_copy"]
    assert theirs["fid"] == pytest.approx(theirs["fid_copy_reconstruction"], rel=1e-3)
    assert ours["fid_copy"] == pytest.approx(theirs["fid_copy"])
    assert oracle.json()["distances"]["autoregressive"] == ours
    assert not evaluate(pan_world.build(pan_world.CopyLast, clips), tokenizer, clips, EvaluateConfig(**QUICK)).distances


def test_a_network_that_is_not_there_is_named_before_anything_is_computed(capsys) -> None:
    for metric, known in (("fid", "inception-2015-12-05.pt"), ("fvd", "i3d_torchscript.pt")):
        assert cli.main(["evaluate", f"--{metric}", "/nowhere/network.pt"]) != 0
        said = "".join(capsys.readouterr())
        assert metric.upper() in said
        assert known in said
