from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from hwm.data.clips import Clips
from hwm.errors import HwmError
from hwm.evaluate import camera
from hwm.evaluate.camera import camera_video, decode, frame_numbers
from hwm.evaluate.evaluate import SWAPPED, EvaluateConfig, evaluate
from hwm.evaluate.metrics import Metric
from hwm.evaluate.results import shown_steps
from hwm.evaluate.scenarios import SCENARIOS
from hwm.evaluate.swaps import SWAPS
from hwm.types import Batch, Prediction
from tests.evaluate import pan_world
from tests.evaluate.pan_world import CopyLast, Noisy, Oracle, build


@pytest.mark.parametrize("world", ["pixels", "blocks"])
def test_an_oracle_beats_the_copy_and_listens(worlds, world: str) -> None:
    tokenizer, clips = worlds[world]
    r = evaluate(build(Oracle, clips), tokenizer, clips, EvaluateConfig(clips=10, horizon=5, batch_size=4)).json()
    assert all(a > b + 3 for a, b in zip(r["psnr"], r["psnr_copy_reconstruction"], strict=True))
    assert np.allclose(r["psnr"], r["psnr_reconstruction"], atol=1.5), "only the tokenizer stands between"
    assert min(r["delta_psnr"]) > 1
    assert min(r["delta_psnr_random"]) > 1
    assert min(r["delta_psnr_other_clip"]) > 1
    assert r["moving"]["win_rate_copy"][-1] == 1
    assert np.allclose(np.subtract(r["psnr"], r["psnr_swapped_actions"]), r["delta_psnr"], atol=1e-3)


@pytest.mark.parametrize("world", ["pixels", "blocks", "pairs"])
def test_copying_gains_nothing(worlds, world: str) -> None:
    tokenizer, clips = worlds[world]
    model = build(CopyLast, clips)
    r = evaluate(model, tokenizer, clips, EvaluateConfig(clips=9, horizon=4, batch_size=4)).json()
    assert r["delta_psnr"] == r["delta_psnr_random"] == r["delta_psnr_other_clip"] == [0.0] * 4
    if tokenizer.latent.stride == 1:
        assert np.allclose(r["psnr"], r["psnr_copy_reconstruction"], atol=1e-4)
        assert r["win_rate_copy_reconstruction"] == [0.0] * 4
    assert r["ce"] is None
    assert (r["accuracy"] is None) == (world != "blocks")
    assert r["accuracy"] == r["accuracy_copy"]


def test_camera_frames_are_those_of_the_steps(worlds) -> None:
    """Lossless latents and the video show the same pictures, also with two frames a latent step."""
    for world in ("pixels", "pairs"):
        tokenizer, clips = worlds[world]
        indices = np.array([0, 5, len(clips) - 1])
        camera = camera_video(clips, indices, 6, tokenizer.size)
        shown = decode(tokenizer, clips.batch(indices).window(0, 6, 6).latents)
        assert camera.shape == shown.shape == (3, tokenizer.latent.frames(6), 3, *pan_world.SIZE)
        error = [(camera[:, 2:-2] - shown[:, 2 + d : shown.shape[1] - 2 + d]).abs().mean() for d in (-2, -1, 0, 1, 2)]
        assert min(error) == error[2] < 0.05 < min(error[1], error[3]), "compression is all that differs"
        r = evaluate(build(CopyLast, clips), tokenizer, clips, EvaluateConfig(clips=6, horizon=4, examples=0))
        assert min(r.mean("psnr_reconstruction")) > 26


def test_stretches_that_no_window_shows_are_not_read(worlds, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, clips = worlds["pixels"]
    indices = np.array([0, 1, 14, 16, 20])  # of the first episode, but for the last, which is alone in the second
    whole = camera_video(clips, indices, 3, tokenizer.size)
    read, frames = [], clips.store.frames

    def noting(episode, start, stop):
        read.append((episode.id, start, stop))
        return frames(episode, start=start, stop=stop)

    monkeypatch.setattr(camera, "WORTH_A_JUMP", 6)
    monkeypatch.setattr(clips.store, "frames", noting)
    assert torch.equal(camera_video(clips, indices, 3, tokenizer.size), whole)
    assert read == [("episode_0", 0, 7), ("episode_0", 28, 37), ("episode_1", 6, 11)]


def test_frame_numbers(worlds) -> None:
    _, clips = worlds["pixels"]
    per_episode = 24 - 8 + 1
    assert frame_numbers(clips, 3, 4).tolist() == [6, 8, 10, 12]
    assert frame_numbers(clips, per_episode + 2, 2).tolist() == [4, 6], "counted from the start of the episode"
    wide = Clips(clips.store, 4, stride=3)
    assert frame_numbers(wide, 1, 3).tolist() == [2, 8, 14]
    _, pairs = worlds["pairs"]
    assert frame_numbers(pairs, 3, 3).tolist() == [6, 7, 8, 9, 10]
    with pytest.raises(HwmError, match="stride 1"):
        frame_numbers(Clips(pairs.store, 4, stride=2), 0, 3)


class Noting(CopyLast):
    """Remembers what it is asked."""

    def predict(self, batch: Batch, **how) -> Prediction:
        self.asked.append(batch)
        return super().predict(batch, **how)


@pytest.mark.parametrize("length", [5, 8])
def test_actions_that_follow_are_told_and_swapped_along(worlds, length: int) -> None:
    """Whether the windows hold them or the recording alone."""
    tokenizer, clips = worlds["pixels"][0], Clips(worlds["pixels"][1].store, length)
    model = build(Noting, clips)
    model.asked = []
    evaluate(model, tokenizer, clips, EvaluateConfig(clips=4, prompt=2, horizon=3, swaps=("other_clip",), examples=0))
    told, true, _, wrong = (model.asked[i] for i in (1, 2, 4, 5))
    assert torch.equal(told.following, true.actions[:, -1])
    rows = np.linspace(0, len(clips) - 1, 4).round().astype(int)
    ahead = Clips(clips.store, 5).batch(clips_at(clips, rows)).actions_ahead
    assert torch.equal(true.actions_ahead[:, -2:], ahead[:, -2:])
    donor = [int((ahead[:, -2] == x).flatten(1).all(1).nonzero()[0]) for x in wrong.actions[:, -1]]
    assert all(i != d for i, d in enumerate(donor))
    assert torch.equal(wrong.actions_ahead[:, -1], ahead[donor, -1])


def clips_at(clips: Clips, rows: np.ndarray) -> np.ndarray:
    """Windows of five steps that begin where these of other clips do."""
    of_five = Clips(clips.store, 5).starts
    return np.searchsorted(of_five[np.arange(len(of_five))], clips.starts[rows])


def test_windows_with_a_stride(worlds) -> None:
    tokenizer, clips = worlds["pixels"]
    wide = Clips(clips.store, 5, stride=3)
    r = evaluate(build(Oracle, wide), tokenizer, wide, EvaluateConfig(clips=6, horizon=3, swaps=()))
    assert min(r.mean("psnr")) > 26
    assert r.steps_per_second == pytest.approx(10 / 3)
    assert "delta_psnr" not in r.json()


def test_scenarios_agree_on_the_first_step_only(worlds, oracle_results) -> None:
    _, clips = worlds["pixels"]
    model, batch = build(Noisy, clips), clips.batch([0, 9])
    for horizon in (1, 4):
        part = batch.window(0, 2 + horizon, 2 + horizon)
        one, other = (
            SCENARIOS[name](model, part, 2, generator=torch.Generator().manual_seed(1)).latents
            for name in ("autoregressive", "temporally_teacher_forced")
        )
        assert one.shape == other.shape == part.latents[:, 2:].shape
        assert torch.equal(one[:, 0], other[:, 0])
        assert horizon == 1 or not torch.equal(one, other)
    r = oracle_results
    assert r.mean("psnr")[0] == r.mean("psnr", scenario="temporally_teacher_forced")[0]


def test_tokens_of_an_oracle(oracle_results) -> None:
    r = oracle_results.json()
    assert r["accuracy"] > 0.99
    assert r["accuracy"] > r["accuracy_copy"] + 0.2
    assert 0 < r["ce"] < 0.2
    assert len(r["ce_by_step"]) == 5


def test_deterministic_whatever_the_batch_size(worlds) -> None:
    tokenizer, clips = worlds["pixels"]
    model = build(Oracle, clips)
    a, b, c = (
        evaluate(model, tokenizer, clips, EvaluateConfig(clips=9, horizon=3, batch_size=size, seed=seed))
        for size, seed in ((2, 0), (9, 0), (9, 1))
    )
    for name, values in a.figures["autoregressive"].items():
        if values is not None:
            assert np.allclose(values, b.figures["autoregressive"][name], atol=1e-3), name
    assert [e.start for e in a.examples] == [e.start for e in b.examples]
    assert a.mean("psnr_random_actions") != c.mean("psnr_random_actions")
    noisy = build(Noisy, clips)
    twice = [evaluate(noisy, tokenizer, clips, EvaluateConfig(clips=4, horizon=3, seed=3)).json() for _ in range(2)]
    for r in twice:
        for part in (r, *r["by_scenario"].values()):
            del part["seconds_per_step"], part["seconds_per_frame"]
        del r["date"]
    assert twice[0] == twice[1]
    assert twice[0]["delta_psnr"] == [0.0] * 3, "the same noise for right and wrong actions"


def test_json_has_the_promised_keys(oracle_results, tmp_path) -> None:
    r = json.loads(oracle_results.save(tmp_path / "sub" / "r.json").read_text(encoding="utf-8"))
    lists = (
        "psnr", "psnr_copy", "psnr_reconstruction", "psnr_copy_reconstruction", "psnr_swapped_actions", "delta_psnr",
        "delta_psnr_random", "delta_psnr_other_clip", "ssim", "ssim_copy", "psnr_reconstruction_reference",
        "ssim_reconstruction_reference", "win_rate_copy", "ce_by_step", "accuracy_by_step",
    )  # fmt: skip
    for part in (r, r["moving"], *r["by_scenario"].values()):
        assert all(len(part[name]) == 5 for name in lists)
        assert all(isinstance(part[name], float) for name in ("ce", "accuracy"))
    assert r["clips"] == 30
    assert 0 < r["clips_moving"] <= 30
    assert r["share_moving"] == pytest.approx(r["clips_moving"] / 30, abs=1e-4)
    assert r["model"] == "Oracle"
    assert r["parameters"] == 0
    assert r["tokenizer"] == "blocks"
    assert r["scenarios"] == ["autoregressive", "temporally_teacher_forced"]
    assert r["reference"] == "camera"
    assert "20 dB" in r["moving_rule"]
    assert r["torch"] == torch.__version__
    assert set(r["swap_distance"]) == set(SWAPS) == set(SWAPPED)
    assert not [p for p in (tmp_path / "sub").iterdir() if p.name != "r.json"]


def test_few_clips_are_one_small_batch(worlds) -> None:
    tokenizer, clips = worlds["pixels"]
    r = evaluate(build(CopyLast, clips), tokenizer, clips, EvaluateConfig(clips=3, horizon=2, batch_size=16, swaps=()))
    assert r.batch_size == 3, "seconds are those of so many clips at once"


def test_seconds_of_a_frame_and_of_a_step(worlds) -> None:
    tokenizer, clips = worlds["pairs"]
    r = evaluate(build(CopyLast, clips), tokenizer, clips, EvaluateConfig(clips=3, horizon=2, swaps=()))
    assert r.seconds_per_frame() == r.seconds_per_step["autoregressive"] / 2, "two frames a step"
    assert 0 < r.seconds_per_frame() < 1


def test_metrics_are_taken_of_prediction_and_baselines(worlds) -> None:
    """Against the camera, and against the reconstruction of the truth; each beside its copy."""
    tokenizer, clips = worlds["blocks"]

    def apart(pictures: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return (pictures - truth).abs().mean((-3, -2, -1))

    r = evaluate(
        build(CopyLast, clips),
        tokenizer,
        clips,
        EvaluateConfig(clips=5, horizon=3, swaps=(), metrics={"apart": Metric(apart, lower_is_better=True)}),
    )
    figures = r.figures["autoregressive"]
    assert np.allclose(figures["apart"], figures["apart_copy_reconstruction"], atol=1e-6), "this model is the copy"
    against = figures["apart_reconstruction_reference"]
    assert np.allclose(against, figures["apart_copy_reconstruction_reference"], atol=1e-6)
    assert not np.allclose(against, figures["apart"], atol=1e-3)
    for metric in ("psnr", "ssim"):
        assert np.allclose(
            figures[f"{metric}_reconstruction_reference"], figures[f"{metric}_copy_reconstruction_reference"], atol=1e-4
        )
    assert (figures["apart_copy"] != figures["apart_copy_reconstruction"]).any()
    assert (figures["apart_reconstruction"] > 0).all()


def test_moving_is_the_recordings_affair(worlds, oracle_results) -> None:
    tokenizer, clips = worlds["blocks"]
    copied = evaluate(build(CopyLast, clips), tokenizer, clips, EvaluateConfig(clips=30, horizon=5))
    assert copied.moving.tolist() == oracle_results.moving.tolist()
    still = oracle_results.mean("psnr_copy", moving=True)
    assert still[-1] < 20


def test_nothing_moves(worlds) -> None:
    tokenizer, clips = worlds["pixels"]
    r = evaluate(build(CopyLast, clips), tokenizer, clips, EvaluateConfig(clips=4, horizon=3))
    r.moving[:] = False
    out = r.json()
    assert out["share_moving"] == 0
    assert out["moving"]["psnr"] is None
    json.dumps(out, allow_nan=False)


def test_store_without_video(tmp_path) -> None:
    tokenizer = pan_world.Blocks()
    clips = Clips(pan_world.record(tmp_path / "silent", tokenizer, episodes=2, steps=10, video=False), 6)
    r = evaluate(build(Oracle, clips), tokenizer, clips, EvaluateConfig(clips=5, horizon=4))
    assert r.reference == "reconstruction"
    assert r.json()["psnr_reconstruction"] == pytest.approx([100.0] * 4)
    assert r.mean("psnr_copy") == r.mean("psnr_copy_reconstruction")
    console = Console(width=90, file=io.StringIO())
    console.print(r.table())
    assert "The store has no video" in console.file.getvalue()


def test_table_shows_baselines_and_marks_the_best(oracle_results) -> None:
    console = Console(width=80, file=io.StringIO())
    console.print(oracle_results.table())
    text = console.file.getvalue()
    for row in ("prediction", "last camera frame repeated", "tokenizer alone (ceiling)", "jump-free swap", "*"):
        assert row in text
    assert "repeated, against it" in text, "the copy beside the prediction, against the reconstruction too"
    assert "ms a step and clip at batch 4" in text
    assert shown_steps(5) == [0, 1, 2, 3, 4]
    assert shown_steps(100)[0] == 0
    assert shown_steps(100)[-1] == 99
    assert len(shown_steps(100)) == 8


def test_mistakes_are_named(worlds) -> None:
    tokenizer, clips = worlds["blocks"]
    model = build(Oracle, clips)
    cases = [
        ({"horizon": 7}, "too short"),
        ({"horizon": 0}, "at least 1"),
        ({"scenarios": ("autoregresive",)}, "did you mean autoregressive"),
        ({"swaps": ("jump_fre",)}, "jump_free"),
        ({"scenarios": ()}, "at least one scenario"),
    ]
    for wrong, message in cases:
        with pytest.raises(HwmError, match=message):
            evaluate(model, tokenizer, clips, EvaluateConfig(**{"clips": 2, "horizon": 3, **wrong}))
    with pytest.raises(HwmError, match="makes"):
        evaluate(model, worlds["pixels"][0], clips, EvaluateConfig(clips=2, horizon=3))
    other = pan_world.Blocks()
    other.id = "blocks@other"
    with pytest.raises(HwmError, match=r"not with 'blocks@other'"):
        evaluate(model, other, clips, EvaluateConfig(clips=2, horizon=3))


class Echoing(pan_world.Blocks):
    """Shows a tenth of the step before in each step: decoding needs the context."""

    def decode(self, latents):
        sharp = super().decode(latents)
        return torch.cat([sharp[:, :1], 0.9 * sharp[:, 1:] + 0.1 * sharp[:, :-1]], 1)


def test_the_context_is_decoded_where_it_matters(worlds) -> None:
    _, clips = worlds["blocks"]
    r = evaluate(build(Oracle, clips), Echoing(), clips, EvaluateConfig(clips=6, horizon=3))
    assert np.allclose(r.mean("psnr"), r.mean("psnr_reconstruction"), atol=1e-3)


def test_training_mode_is_restored(worlds) -> None:
    tokenizer, clips = worlds["blocks"]
    model = build(CopyLast, clips).train()
    evaluate(model, tokenizer, clips, EvaluateConfig(clips=2, horizon=2))
    assert model.training
