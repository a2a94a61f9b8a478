"""Long rollouts: horizons, pictures around them, baselines, frozen dreams, JSON and the report."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from hwm.data.clips import Clips
from hwm.errors import HwmError
from hwm.evaluate.camera import camera_video, episode_of
from hwm.evaluate.endure import EnduranceConfig, endure, horizons, windows_for
from hwm.evaluate.evaluate import EvaluateConfig, evaluate
from hwm.evaluate.footage import Shots, footage, footage_of_clips
from hwm.evaluate.moments import FIGURES, FRAMES, Eyes, Figure, Moment
from hwm.evaluate.report import write_report
from hwm.evaluate.rollout import clip_windows, rollout_clips
from hwm.models.base import WorldModel
from hwm.objectives.draws import uniform_like
from hwm.types import ActionSpec, Batch, DataSpec, Prediction
from tests.evaluate import pan_world
from tests.evaluate.pan_world import CopyLast, Oracle, build
from tests.evaluate.test_report import read
from tests.evaluate.test_rollout import Causal, Steady

PLAIN = Eyes()
"""Figures that take no network."""


class Tiring(Oracle):
    """Knows the world, and after so many predictions shows its last picture for ever."""

    left = 5

    def predict(self, batch: Batch, **how: object) -> Prediction:
        self.left -= 1
        return super().predict(batch) if self.left >= 0 else CopyLast.predict(self, batch)  # type: ignore[arg-type]


class Noisy(CopyLast):
    """Adds noise of the generators that it is given, one a row."""

    def predict(self, batch: Batch, *, sampler=None, logits=False, cache=None, generator=None) -> Prediction:
        latents = super().predict(batch).latents
        return Prediction(latents + 0.1 * uniform_like(latents, generator))


@pytest.fixture(scope="module")
def world(worlds):
    """A tokenizer of pixels, and windows of two steps and the two seconds after them."""
    tokenizer, clips = worlds["pixels"]
    return tokenizer, windows_for(clips.store, 2, (0.1, 0.5, 1, 2), part="all")


def judged(model: type[WorldModel], world, **how):
    tokenizer, clips = world
    config = EnduranceConfig(**{"seconds": (0.1, 0.5, 1, 2), "clips": 6, "eyes": PLAIN, "films": 0, **how})
    return endure(build(model, clips), tokenizer, clips, config)


def test_horizons_that_do_not_fit_are_left_out_with_a_note() -> None:
    steps, notes = horizons((30, 0.1, 0.25, 1), fps=4.0, most=20)
    assert steps == [1, 4]
    assert len(notes) == 2
    assert "0.1 s is less than a step of 0.25 s" in notes[0]
    assert "30 s is left out: no clip" in notes[1]


def test_a_model_that_knows_the_world_lives_as_long_as_one_looks(world) -> None:
    found = judged(Oracle, world)
    assert found.steps == [1, 5, 10, 20]
    assert found.seconds == [0.1, 0.5, 1.0, 2.0]
    for name in ("sharpness", "liveliness"):
        for mine, ceiling in zip(found.mean(name), found.mean(name, "reconstruction"), strict=True):
            assert mine == pytest.approx(ceiling, rel=0.02)
            assert mine == pytest.approx(1, rel=0.1), "but for the camera's codec"
    assert found.mean("sharpness_reconstruction_reference") == pytest.approx([1] * 4, rel=0.02)
    assert min(found.mean("psnr_reconstruction_reference")) > 40
    assert all(found.beaten("psnr", h) for h in range(4))
    assert found.frozen_share == [0] * 4
    assert found.beaten("liveliness", 0) is None


def test_baselines_are_those_of_a_short_evaluation(world) -> None:
    tokenizer, clips = world
    short = evaluate(
        build(CopyLast, clips), tokenizer, clips, EvaluateConfig(clips=6, horizon=20, swaps=(), examples=0)
    )
    found = judged(Oracle, world, batch_size=4)
    for source in ("copy", "copy_reconstruction", "reconstruction"):
        by_step = short.by_step(f"psnr_{source}")
        assert by_step is not None
        for estimate, step in zip(found.by_horizon("psnr", source), found.steps, strict=True):
            assert estimate == pytest.approx(by_step[step - 1], rel=1e-6)
    assert judged(CopyLast, world).mean("psnr") == pytest.approx(found.mean("psnr", "copy_reconstruction"))


def test_random_moments_are_of_the_same_episode_and_the_same_whatever_else_is_asked(world) -> None:
    tokenizer, clips = world
    seen: dict[tuple[int, int], torch.Tensor] = {}

    def look(moment: Moment, source: str) -> torch.Tensor:
        for index, video in zip(moment.indices, moment.frames["random"], strict=True):
            seen[int(index), moment.step] = video
        return torch.zeros(len(moment.indices))

    watching = Eyes({**FIGURES, "look": Figure(look, "look", sources=("random",))})
    judged(Oracle, world, eyes=watching)
    first = dict(seen)
    assert len(first) == 24
    for (index, step), video in first.items():
        episode = episode_of(clips, index)
        whole = Clips(clips.store, episode.steps)
        (own,) = (i for i in range(len(whole)) if episode_of(whole, i).id == episode.id)
        frames = camera_video(whole, np.array([own]), episode.steps, tokenizer.size)[0]
        places = torch.stack([(frames - frame).abs().mean((1, 2, 3)).argmin() for frame in video])
        assert torch.equal(frames[places], video)
        assert len(video) == min(FRAMES, step + 1)
        assert (places.diff() >= 0).all(), "neighbours, in their order"
        end = int(clips.starts[index]) - episode.start + 1 + step
        places = [p for p, frame in enumerate(frames) if torch.equal(frame, video[-1])]
        assert max(abs(p - end) for p in places) >= FRAMES, "not the true moment itself"
    assert len({tuple(video[-1].flatten()[:9].tolist()) for video in first.values()}) > 12
    judged(Oracle, world, eyes=watching, seconds=(1,), batch_size=2)
    assert all(torch.equal(seen[key], video) for key, video in first.items() if key[1] == 10)


def test_a_frozen_dream_is_flagged_where_it_has_frozen(world) -> None:
    tired = judged(Tiring, world, clips=3)
    assert tired.frozen_share[:2] == [0, 0]
    assert tired.frozen_share[3] == 1
    assert tired.json()["frozen"] == [False, False, False, True], "frames of 0.3 to 1 s still show how it stopped"
    assert tired.mean("liveliness")[3] == 0
    assert judged(CopyLast, world).frozen_share == [1] * 4


def test_who_stands_still_with_the_camera_has_not_frozen(world) -> None:
    found = judged(CopyLast, world)
    still = {**found.values["liveliness"], "camera": found.values["liveliness"]["camera"] * 0}
    found = replace(found, values={**found.values, "liveliness": still})
    assert not found.frozen.any()
    assert found.frozen_share == [None] * 4
    assert found.json()["figures"]["liveliness"]["prediction"] == [None] * 4, "a share of nothing"
    assert found.json()["frozen"] == [False] * 4


def test_several_steps_at_once_are_the_same_dream(world) -> None:
    tokenizer, clips = world
    model = Oracle(WorldModel.Config(past=2, horizon=3), clips.spec())
    config = EnduranceConfig(seconds=(0.1, 0.5, 1, 2), clips=6, eyes=PLAIN, films=0)
    assert endure(model, tokenizer, clips, config).mean("psnr") == pytest.approx(judged(Oracle, world).mean("psnr"))


def test_the_seed_decides_clip_by_clip(world) -> None:
    one, other = judged(Noisy, world, batch_size=4), judged(Noisy, world, batch_size=1)
    np.testing.assert_allclose(one.values["psnr"]["prediction"], other.values["psnr"]["prediction"], rtol=1e-5)
    assert abs(one.values["psnr"]["prediction"] - judged(Noisy, world, seed=1).values["psnr"]["prediction"]).min() > 0


def test_a_share_has_the_error_of_a_ratio_of_means(world) -> None:
    found = judged(Oracle, world)
    x, y = np.array([1.0, 2.0, 6.0]), np.array([2.0, 2.0, 4.0])
    values = {"sharpness": {"prediction": x[:, None], "camera": y[:, None]}}
    (estimate,) = replace(found, steps=[1], values=values, episodes=np.array(["a", "b", "c"])).by_horizon("sharpness")
    assert estimate.mean == 9 / 8
    residual = x - 9 / 8 * y
    assert estimate.error == pytest.approx(np.sqrt((residual**2).sum() / 2 / 3) / (8 / 3))


def test_frames_around_a_moment_are_those_of_the_whole_clip() -> None:
    tokenizer = Causal()
    tokenizer.lookback = 99
    latents = tokenizer.encode(torch.rand(2, 13, 3, 2, 2, generator=torch.Generator().manual_seed(0)))
    whole = tokenizer.decode(latents)[:, 2 * 2 :]  # context of three steps, its last frame is number 0
    shots = Shots([range(0, 1), range(0, 3), range(1, 9)], films=[1])
    found = footage(tokenizer, latents, 3, shots)
    for numbers, frames in zip(shots.moments, found.moments, strict=True):
        torch.testing.assert_close(frames, whole[:, numbers])
    assert found.films[1].shape == (9, 2, 2, 3)
    np.testing.assert_allclose(found.films[1] / 255, whole[1].movedim(1, -1), atol=0.51 / 255)


def test_frames_of_a_window_that_is_encoded_anew() -> None:
    spec = DataSpec(Causal.latent, {"arm": ActionSpec(2, ("rise",), (0.0,), (1.0,))})
    model, tokenizer = Steady.Config(horizon=2).build(spec), Causal()
    g = torch.Generator().manual_seed(0)
    batch = Batch(tokenizer.encode(torch.rand(2, 5, 3, 2, 2, generator=g)), torch.randn(2, 9, 2, 1, generator=g), "arm")
    whole = torch.cat([tokenizer.decode(batch.latents)[:, -1:], rollout_clips(model, tokenizer, batch)[1]], 1)
    shots = Shots([range(0, 1), range(0, 3), range(5, 13)], films=[0])
    found = footage_of_clips(tokenizer, batch.latents, clip_windows(model, tokenizer, batch), shots)
    for numbers, frames in zip(shots.moments, found.moments, strict=True):
        torch.testing.assert_close(frames, whole[:, numbers])
    assert found.films[0].shape == (13, 2, 2, 3)


def test_a_tokenizer_with_a_stride(worlds) -> None:
    tokenizer, clips = worlds["pairs"]
    long = windows_for(clips.store, 2, (0.1, 1), part="all")
    config = EnduranceConfig(seconds=(0.1, 1), clips=4, eyes=PLAIN, films=1)
    found = endure(build(CopyLast, long), tokenizer, long, config)
    assert found.steps == [1, 10]
    (film,) = found.films
    assert film.dream.shape == film.truth.shape == (21, *pan_world.SIZE, 3)
    assert (film.dream[2::2] == film.dream[0]).all()
    apart = np.abs(film.truth.astype(float) - film.dream[0]).mean((1, 2, 3))
    assert apart.argmin() == 0, "the truth begins with the frame that the model saw last"


def test_what_cannot_be_judged_is_refused(worlds, world, tmp_path) -> None:
    tokenizer, _ = world
    with pytest.raises(HwmError, match=r"100 s is left out.*other horizons"):
        judged(Oracle, world, seconds=(100,))
    with pytest.raises(HwmError, match="above 0"):
        EnduranceConfig(seconds=(0,))
    with pytest.raises(HwmError, match="clips must be at least 1"):
        EnduranceConfig(clips=0)
    blind = Clips(pan_world.record(tmp_path / "blind", tokenizer, episodes=2, video=False), 12)
    with pytest.raises(HwmError, match="no video"):
        endure(build(Oracle, blind), tokenizer, blind, EnduranceConfig(seconds=(1,)))


def test_it_stands_in_the_report_and_in_the_json(world, tmp_path) -> None:
    tokenizer, clips = world
    results = evaluate(
        build(CopyLast, clips), tokenizer, clips, EvaluateConfig(clips=2, horizon=2, swaps=(), examples=0)
    )
    network = Figure(lambda m, s: m.frames[s].mean((1, 2, 3, 4)), "mean & light", lower_is_better=True)
    seen = Eyes({**FIGURES, "light": network}, {"frames": lambda v: v.flatten(0, 1)[:, 0, 0, ::8]}, {"gone": "gone"})
    found = judged(Tiring, world, films=2, eyes=seen)
    results.further["endurance"] = found
    text, checker = read(write_report(tmp_path / "r.html", results))
    assert "How long does the dream live?" in checker.headings
    assert text.count("<video") == 2
    assert text.count("data:image/jpeg") == 1
    assert "mean &amp; light" in text
    assert "of the dreams have frozen" in text
    plain = json.loads(json.dumps(results.json(), allow_nan=False))["endurance"]
    assert plain["figures"]["gone"] is None
    assert plain["figures"]["psnr"]["copy"] == pytest.approx(found.mean("psnr", "copy"), abs=1e-4)
    assert len(plain["figures"]["liveliness"]["prediction_stderr"]) == len(plain["seconds"]) == 4
    assert plain["distances"]["frames"]["examples"] == 6 * (2 + 6 + 8 + 8)
    assert plain["distances"]["frames"]["reconstruction"] < plain["distances"]["frames"]["copy"]
