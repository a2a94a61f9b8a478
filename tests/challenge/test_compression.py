"""The compression track on folders of the real layout: what is asked, what is answered, how it is scored."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hwm.challenge import compression
from hwm.challenge.baselines import Baselines, copy_of
from hwm.challenge.compression import FromTest, HeldOut, answer, figures, open_blocks, questions, write_compression
from hwm.challenge.submission import validate
from hwm.challenge.topk import top_cross_entropy
from hwm.data.clips import Clips
from hwm.data.onex.specs import onex_v2
from hwm.data.onex.write import write_test
from hwm.errors import HwmError
from hwm.models.base import WorldModel
from hwm.models.masked_hwm import MaskedHWM
from hwm.models.next_block import NextBlock
from hwm.types import Batch
from tests.conftest import make_store
from tests.data.onex_toys import make_v2, states_of

K = 20


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """val: recordings of 51, 20 and 34 frames; train: one of 68; test: 4 samples."""
    folder = tmp_path_factory.mktemp("v2")
    make_v2(folder / "val", [[51, 20, 34]], flat=True)
    make_v2(folder / "train", [[68]], seed=1)
    rng = np.random.default_rng(2)
    states = np.stack([states_of(64, 100 * i) for i in range(4)])
    write_test(folder / "test", rng.integers(0, 64_000, (4, 3, 32, 32)), states, files=2)
    return folder


def v2_model(**changes: Any) -> NextBlock:
    torch.manual_seed(0)
    config = replace(NextBlock.tiny(), dim=16, depth=1, window_stride=3, clip_steps=3, factorized=True, **changes)
    model: NextBlock = config.build(onex_v2())
    return model.eval()


# ---------------------------------------------------------------------- what is asked
def test_held_out_samples_are_pairs_of_whole_clips_that_follow_one_another(folders: Path) -> None:
    asked = questions(folders / "val")
    assert isinstance(asked, HeldOut)
    tokens = np.fromfile(folders / "val" / "video_0.bin", "<i4").reshape(-1, 3, 32, 32)
    # clip 3 is the whole of a recording of its own, clip 4 spans two, the last clip is filled up
    shown = [asked.ask(i) for i in range(len(asked.names))]
    found = []
    for q in shown:
        assert q.truth is not None
        place = [
            next(i for i, clip in enumerate(tokens) if np.array_equal(clip, x.numpy()))
            for x in (q.batch.latents[0], q.truth)
        ]
        found.append(tuple(place))
    assert found == [(0, 1), (1, 2)]
    for q, (a, _) in zip(shown, found, strict=True):
        assert q.batch.latents.shape == (1, 3, 32, 32)
        assert q.batch.actions.shape == (1, 6, 8, 25)
        frames = q.batch.actions[0, :, :, 0].round().long().tolist()
        first = 17 * a
        assert frames[1] == list(range(first + 1, first + 9))
        assert frames[3] == [first + 17] * 8
        assert frames[5] == list(range(first + 26, first + 34))


def test_test_samples_have_actions_and_no_truth(folders: Path) -> None:
    asked = questions(folders / "test")
    assert isinstance(asked, FromTest)
    assert asked.names == ["0", "1", "2", "3"]
    question = asked.ask(2)
    assert question.truth is None
    assert question.batch.actions[0, 3:, -1, 0].round().tolist() == [217, 225, 233]
    assert questions(folders / "test", clips=2).names == ["0", "1"]


def test_samples_are_spread_over_the_data_and_keep_their_names(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", [40])
    every, some = questions(tmp_path / "s"), questions(tmp_path / "s", clips=3)
    assert len(every.names) == 35
    assert some.names == ["0", "17", "34"]
    assert torch.equal(some.ask(1).batch.latents, every.ask(17).batch.latents)
    assert store.path == some.store.path


def test_what_cannot_be_asked_is_an_error(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(HwmError, match="a test sample shows 3 steps, so the prompt is not 2"):
        questions(folders / "test", prompt=2)
    with pytest.raises(HwmError, match=r"12 steps ahead need 85 states a sample, .* has 64"):
        questions(folders / "test", horizon=12).ask(0)
    make_store(tmp_path / "video", [40], video=True, latent=None, tokenizer="")
    with pytest.raises(HwmError, match="holds no token ids"):
        questions(tmp_path / "video")
    with pytest.raises(HwmError, match="must be at least 1"):
        questions(folders / "val", clips=0)
    with pytest.raises(HwmError, match="there is no store"):
        questions(tmp_path / "absent")


# ---------------------------------------------------------------------- what is answered
def test_an_answer_is_the_top_of_the_models_distributions(folders: Path) -> None:
    model, question = v2_model(), questions(folders / "val").ask(0)
    found, full = answer(model, question.batch, question.truth)
    assert found.ids.shape == found.logp.shape == (3, 32, 32, 500)
    assert question.truth is not None
    assert full is not None
    whole = model.predict(question.batch, logits=True)
    expected = whole.cross_entropy(question.truth[None])
    assert expected is not None
    torch.testing.assert_close(-full.mean((1, 2)), expected)
    assert torch.equal(found.ids[..., 0].long(), whole.latents[0])  # greedy: the likeliest comes first
    assert answer(model, question.batch)[1] is None


def test_a_model_of_single_steps_is_rolled_out(tmp_path: Path) -> None:
    make_store(tmp_path / "s", [12])
    question = questions(tmp_path / "s").ask(0)
    torch.manual_seed(0)
    model = replace(MaskedHWM.tiny(), factorized=True).build(open_blocks(tmp_path / "s").data_spec()).eval()
    found, full = answer(model, question.batch, question.truth, K)
    rolled = model.rollout(question.batch, logits=True, generator=torch.Generator().manual_seed(0))
    assert question.truth is not None
    expected = rolled.cross_entropy(question.truth[None])
    assert expected is not None
    assert full is not None
    torch.testing.assert_close(-full.mean((1, 2)), expected)
    assert found.ids.shape == (3, 2, 2, K)


def test_a_model_in_pieces_and_whole_gives_the_same(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, question = v2_model(), questions(folders / "test").ask(0)
    pieces, _ = answer(model, question.batch, k=K)
    whole = model.predict(question.batch, logits=True)

    def at_once(*_: object) -> Iterator[compression.Piece]:
        assert whole.logits is not None
        yield compression.Piece(slice(None), slice(None), whole.logits[0].flatten(1, 2), whole.levels)

    monkeypatch.setattr(compression, "pieces", at_once)
    other, _ = answer(model, question.batch, k=K)
    assert torch.equal(pieces.ids, other.ids)
    torch.testing.assert_close(pieces.logp, other.logp)


def test_a_model_without_probabilities_has_no_part(tmp_path: Path) -> None:
    make_store(tmp_path / "s", [12])
    question = questions(tmp_path / "s").ask(0)
    torch.manual_seed(0)
    model = MaskedHWM.tiny().build(open_blocks(tmp_path / "s").data_spec()).eval()
    silent = model.predict
    model.predict = lambda *a, **k: replace(silent(*a, **k), logits=None)  # type: ignore[method-assign]
    with pytest.raises(HwmError, match="gives no probabilities of tokens"):
        answer(model, question.batch, k=K)


# ---------------------------------------------------------------------- how it is scored
def test_the_counted_frequencies_are_the_unigrams(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", [12, 9])
    beside = Baselines.of(Clips(store, 6), 3, K)
    assert store.latents is not None
    counts = np.bincount(np.asarray(store.latents[:]).ravel(), minlength=25) + 1
    truth = torch.tensor([[[0, 3], [7, 24]]])
    top, full = beside.unigram(truth)
    p = counts / counts.sum()
    np.testing.assert_allclose(full.exp().numpy(), p[truth.numpy()])
    nll, inside = top_cross_entropy(top, truth, 25)
    kept = np.sort(p)[::-1][:K]
    tail = (1 - kept.sum()) / 5
    for cell, told, there in zip(truth.flatten(), nll.flatten(), inside.flatten(), strict=True):
        assert told.item() == pytest.approx(-math.log(p[cell] if there else tail), abs=1e-5)


def test_copying_is_a_distribution(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", [12])
    beside = replace(Baselines.of(Clips(store, 6), 3, K), copied=0.3)
    before = torch.randint(25, (1, 2, 2), generator=torch.Generator().manual_seed(0))
    total = torch.zeros(1, 2, 2, dtype=torch.float64)
    for truth in range(25):
        top, full = beside.copy(before, torch.full_like(before, truth))
        total += full.exp()
        nll, inside = top_cross_entropy(top, torch.full_like(before, truth), 25)
        torch.testing.assert_close(nll[inside], -full[inside], atol=1e-5, rtol=0)
        assert all(len(set(cell.tolist())) == K for cell in top.ids.flatten(0, 2))
        assert inside[before == truth].all()
    torch.testing.assert_close(total, torch.ones_like(total))


def test_how_often_ids_are_repeated_is_measured_on_training_data(tmp_path: Path) -> None:
    store = make_store(tmp_path / "still", [12])
    ids = np.fromfile(tmp_path / "still" / "latents.bin", store.header.dtype).reshape(12, -1)
    shutil.copytree(tmp_path / "still", tmp_path / "moves")
    np.repeat(ids[:1], 12, 0).tofile(tmp_path / "still" / "latents.bin")
    still, moves = (Baselines.of(Clips(open_blocks(tmp_path / n), 6), 3, K) for n in ("still", "moves"))
    assert still.copied == pytest.approx(1, abs=1e-5)
    assert still.copied < 1
    assert moves.copied < 0.2


@pytest.mark.parametrize(
    ("past", "steps", "expected"), [(3, 3, [0, 1, 2]), (6, 3, [3, 4, 5]), (2, 3, [0, 0, 1]), (3, 1, [2])]
)
def test_a_copy_is_what_was_one_block_before(past: int, steps: int, expected: list[int]) -> None:
    shown = torch.arange(past).view(-1, 1, 1)
    assert copy_of(shown, steps).flatten().tolist() == expected


def test_figures_are_means_of_every_step(folders: Path) -> None:
    model, question = v2_model(), questions(folders / "val").ask(0)
    found, full = answer(model, question.batch, question.truth)
    assert question.truth is not None
    assert full is not None
    told = figures(found, full, question.truth, 64_000)
    nll, inside = top_cross_entropy(found, question.truth, 64_000)
    assert told["top_ce"] == pytest.approx(nll.mean((1, 2)).tolist())
    assert told["coverage"] == pytest.approx(inside.double().mean((1, 2)).tolist())
    sure = replace_first(found.ids, question.truth)
    assert figures(found._replace(ids=sure), full, question.truth, 64_000)["accuracy"] == [1.0, 1.0, 1.0]


def replace_first(ids: Tensor, truth: Tensor) -> Tensor:
    out = ids.clone()
    out[..., 0] = truth
    return out


# ---------------------------------------------------------------------- the whole of it
def write(folders: Path, out: Path, model: WorldModel, data: str = "val", **more: Any) -> Any:
    train = Clips(open_blocks(folders / "train"), 6)
    settings = {"model": "toy", "data": data}
    return write_compression(model, questions(folders / data), out, k=K, train=train, settings=settings, **more)


def test_a_submission_is_scored_by_what_its_files_say(folders: Path, tmp_path: Path) -> None:
    entry, scores = write(folders, tmp_path / "out", v2_model())
    assert [p.file for p in validate(tmp_path / "out")] == ["README.txt"]  # which the command writes
    asked = questions(folders / "val")
    by_hand = []
    for i, name in enumerate(asked.names):
        with np.load(entry.path(name)) as file:
            ids, logp = torch.from_numpy(file["indices"]), torch.from_numpy(file["values"])
        truth = asked.ask(i).truth
        assert truth is not None
        assert (logp[..., 1:] <= logp[..., :-1]).all()
        nll, _ = top_cross_entropy(compression.Top(ids.long(), logp), truth, 64_000)
        by_hand.append(nll.mean().item())
    assert scores.json()["model"]["top_ce"]["mean"] == pytest.approx(np.mean(by_hand))
    assert set(scores.of) == {"model", "copy", "unigram"}
    assert set(scores.of["unigram"]) == {"top_ce", "ce", "coverage", "accuracy"}
    assert scores.json()["uniform"] == pytest.approx(math.log(64_000))
    assert scores.of["model"]["ce"].shape == (len(asked.names), 3)


class Kill(Exception):  # noqa: N818
    """In place of a kill."""


def test_a_killed_run_goes_on_where_it_was_and_ends_the_same(folders: Path, tmp_path: Path) -> None:
    model = v2_model()
    _, whole = write(folders, tmp_path / "whole", model)
    calls, pieces = [], NextBlock.logit_pieces

    def limited(self: NextBlock, batch: Batch) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise Kill
        return pieces(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NextBlock, "logit_pieces", limited)
        with pytest.raises(Kill):
            write(folders, tmp_path / "parts", model)
        first = next((tmp_path / "parts").glob("*.npz"))
        written = first.stat().st_mtime_ns
        entry, scores = write(folders, tmp_path / "parts", model)
    assert len(calls) == 1 + len(entry.names)  # the killed one again, and the others once
    assert first.stat().st_mtime_ns == written
    assert scores.json() == whole.json()
    for name in entry.names:
        files = (tmp_path / run / f"{name}.npz" for run in ("whole", "parts"))
        (a, b), (c, d) = ((f["indices"], f["values"]) for f in map(np.load, files))
        assert np.array_equal(a, c)
        assert np.array_equal(b, d)


def test_a_model_of_other_data_is_an_error(folders: Path, tmp_path: Path) -> None:
    other = onex_v2()
    other = replace(other, latent=replace(other.latent, grid=(16, 16)))
    model = replace(NextBlock.tiny(), factorized=True).build(other).eval()
    with pytest.raises(HwmError, match=r"the model reads LatentSpec\(grid=\(16, 16\)"):
        write(folders, tmp_path / "out", model)
    strange = replace(onex_v2(), actions={"other_robot": onex_v2().actions["1x_eve"]})
    model = replace(NextBlock.tiny(), factorized=True).build(strange).eval()
    with pytest.raises(HwmError, match="the model knows the embodiments"):
        write(folders, tmp_path / "out", model)
    assert not (tmp_path / "out").exists()
