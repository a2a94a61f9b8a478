"""The simulator as judge: what is perfect is found to be perfect, and what does not listen is found out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hwm.errors import HwmError
from hwm.evaluate import drift as drifts
from hwm.evaluate import judge as judges
from hwm.evaluate.away import look_away
from hwm.evaluate.drift import drift
from hwm.evaluate.judge import judge, starts_of
from hwm.evaluate.obey import MOTIONS
from hwm.evaluate.places import apart
from hwm.evaluate.plans import place, which_plan
from hwm.evaluate.response import respond
from hwm.evaluate.scripts import Base, trapezoid
from hwm.tokenizers.pixels import Pixels
from hwm.types import Batch
from tests.evaluate import pan_world, ring_world
from tests.evaluate.pan_world import CopyLast, Oracle
from tests.evaluate.ring_world import SIZE, Knowing, RingTwin, view

PIXELS = Pixels((SIZE, SIZE))


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    return ring_world.record(tmp_path_factory.mktemp("ring") / "store")


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
    monkeypatch.setattr(judges, "Twin", RingTwin)
    RingTwin.open = 0
    yield
    assert RingTwin.open == 0


def knowing(clips, starts, **how):
    model = ring_world.build(Knowing, clips)
    model.starts = starts_of(clips, starts, 2)
    for name, value in how.items():
        setattr(model, name, value)
    return model


# ---------------------------------------------------------------------- judge
def test_both_go_through_the_same(ring) -> None:
    model = knowing(ring, 3)
    commands = model.starts.context.actions[:, -1:].repeat(1, 4, 1, 1) * 0
    commands[..., 2] = 0.5
    found = judge(model, PIXELS, model.starts, commands)
    assert found.dream.shape == found.truth.shape == (3, 5, 3, SIZE, SIZE)
    assert torch.equal(found.dream, found.truth), "step 0 is the last of the context for both"
    assert np.allclose(found.poses[:, -1] - found.poses[:, 0], [0, 0, 4 * 0.5 / 10], atol=1e-6)
    still = judge(ring_world.build(CopyLast, ring), PIXELS, model.starts, commands)
    assert torch.equal(still.dream, found.truth[:, :1].expand_as(still.dream))


def test_rows_that_differ_in_commands_alone_have_the_same_random_numbers(ring) -> None:
    class Noisy(CopyLast):
        def predict(self, batch, *, generator=None, **more):
            latents = super().predict(batch).latents
            noise = [torch.randn(x.shape, generator=g) for x, g in zip(latents, generator, strict=True)]
            return pan_world.Prediction(latents + 0.1 * torch.stack(noise))

    model, begin = ring_world.build(Noisy, ring), starts_of(ring, 1, 2)
    context = begin.context
    twice = Batch(context.latents.repeat(2, 1, 1, 1, 1), context.actions.repeat(2, 1, 1, 1), context.embodiment)
    made = [judges.dream(model, PIXELS, twice, twice.actions, batch_size=size) for size in (1, 2)]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0][0], made[0][1])
    first = judges.dream(model, PIXELS, begin.context, begin.context.actions)
    assert torch.equal(made[0][0], first[0])


def test_a_store_of_no_simulator_has_no_judge(worlds) -> None:
    _, clips = worlds["pixels"]
    with pytest.raises(HwmError, match="no recording of the simulated humanoid"):
        starts_of(clips, 2, 2)
    with pytest.raises(HwmError, match="LINEAR_VELOCITY"):
        Base.of(clips)
    with pytest.raises(HwmError, match="squares"):
        judges.side_of(worlds["pixels"][0])


# ---------------------------------------------------------------------- commands
@pytest.mark.parametrize(("degrees", "rate"), [(90, 1.0), (-180, 0.7), (3, 1.0)])
def test_a_turn_adds_up_and_never_jumps(degrees: float, rate: float) -> None:
    rates = trapezoid(np.radians(degrees), rate, 0.3, 1 / 30)
    assert np.degrees(rates.sum() / 30) == pytest.approx(degrees)
    assert np.abs(np.diff(np.r_[0, rates, 0])).max() <= 0.3 + 1e-9
    assert np.abs(rates).max() <= rate + 1e-9


def test_scripts_come_to_rest_and_keep_the_arms(ring) -> None:
    base, context = Base.of(ring), starts_of(ring, 3, 2).context.actions
    stop = base.stop(context)
    turns, ends = base.turned(stop, (90, -90), 0.8)
    slots = torch.cat([context[:, -1:], stop, turns], 1).flatten(1, 2)[:, 2:]
    assert (slots.diff(dim=1).abs() <= base.limit + 1e-6).all()
    assert torch.equal(slots[..., 0], slots[:, :1, 0].expand_as(slots[..., 0]))
    assert (stop[:, -2:, :, 1:] == 0).all()
    assert turns.shape[1] == ends[-1] == 2 * ends[0]
    assert (turns[:, : ends[0], :, 2].sum((1, 2)) / 30).rad2deg().tolist() == pytest.approx([90] * 3, rel=1e-4)
    assert (turns[..., 2].sum((1, 2))).tolist() == pytest.approx([0] * 3, abs=1e-4)


# ---------------------------------------------------------------------- look away
def test_who_knows_the_world_finds_it_again(ring) -> None:
    model = knowing(ring, 2)
    found = look_away(model, PIXELS, ring, starts=2, angles=(90, 360))
    for angle in (90, 360):
        psnr = found.values[angle]["psnr"]
        assert (psnr["prediction"] == 100).all()
        assert (psnr["reconstruction"] == 100).all()
        assert (psnr["copy"] < 30).all(), "what is seen at the turning point is another view"
    frozen = look_away(ring_world.build(CopyLast, ring), PIXELS, ring, starts=2, angles=(90,), rate=9.0)
    assert frozen.rate < 2, "no faster than in the data"
    out = json.loads(json.dumps(found.json(), allow_nan=False))
    assert out["by_degrees"]["90"]["psnr"]["prediction"] == 100
    assert out["by_degrees"]["360"]["seconds"] > 2 * np.pi


# ---------------------------------------------------------------------- obedience
def responses(model, ring):
    return respond(
        model, PIXELS, ring, starts=2, seconds=(0.1, 0.5), commands={"shift": (-0.6, 0.6), "expansion": (0.5,)}
    )


def test_response_and_cross_talk(ring, monkeypatch) -> None:
    monkeypatch.setattr("hwm.evaluate.response.STILL", 0.05)
    perfect = responses(knowing(ring, 2), ring)
    for motion in MOTIONS:
        assert perfect.response(motion, 1).mean == pytest.approx(1)
        assert perfect.cross_talk(motion, 1) == 0
    deaf = responses(ring_world.build(CopyLast, ring), ring)
    assert deaf.response("shift", 1).mean == deaf.response("expansion", 1).mean == 0
    half = responses(knowing(ring, 2, obeyed=0.5), ring)
    assert half.response("shift", 1).mean == pytest.approx(0.5, abs=0.1)
    twisted = responses(knowing(ring, 2, twist=1.0), ring)
    assert twisted.cross_talk("expansion", 1) > 0.3
    assert twisted.cross_talk("shift", 1) == 0
    out = json.loads(json.dumps(perfect.json(), allow_nan=False))
    assert out["seconds"] == [0.1, 0.5]
    assert out["commands"] == {"shift": [-0.6, 0.6], "expansion": [0.5]}


def test_no_response_where_nothing_should_move(ring) -> None:
    found = respond(
        knowing(ring, 2), PIXELS, ring, starts=2, seconds=(0.2,), commands={"shift": (0.001,), "expansion": (0.001,)}
    )
    assert found.response("shift", 0) is None
    assert found.cross_talk("shift", 0) is None


# ---------------------------------------------------------------------- plans
def test_the_oracle_finds_the_plan_and_the_deaf_guess(worlds) -> None:
    tokenizer, clips = worlds["pixels"]
    how = dict(count=3, plans=4, seconds=(0.2, 0.6))
    oracle = which_plan(pan_world.build(Oracle, clips), tokenizer, clips, **how)
    assert oracle.found("psnr", 1).mean == 1
    assert oracle.rank["psnr"][:, 1].tolist() == [0, 0, 0]
    deaf = which_plan(pan_world.build(CopyLast, clips), tokenizer, clips, **how)
    assert deaf.found("psnr", 1).mean == deaf.chance == 0.25
    assert deaf.rank["psnr"].mean() == deaf.json()["chance_rank"] == 1.5
    json.dumps(oracle.json(), allow_nan=False)
    with pytest.raises(HwmError, match="two and more"):
        which_plan(pan_world.build(Oracle, clips), tokenizer, clips, plans=1, count=1)
    with pytest.raises(HwmError, match="two and more"):
        which_plan(pan_world.build(Oracle, clips), tokenizer, clips, seconds=(9.0,))


@pytest.mark.parametrize(
    ("far", "first", "rank"),
    [([1, 2, 3], 1, 0), ([2, 1, 3], 0, 1), ([1, 1, 3, 3], 0.5, 0.5), ([1, 1 + 1e-9, 1, 1], 0.25, 1.5)],
)
def test_place_among_plans(far: list[float], first: float, rank: float) -> None:
    assert place(np.array(far, float)) == (first, rank)


# ---------------------------------------------------------------------- drift
class Finder:
    """In the place of `Locator`: compares with all poses on the way, a degree apart."""

    def __init__(self, twin: RingTwin, *_: object) -> None:
        self.poses = [np.array([twin.at[0], 0, np.radians(d)]) for d in range(-90, 91, 6)] + [twin.pose()]
        self.seen = np.stack([view(twin.seed, pose) for pose in self.poses]).astype(float)

    def find(self, picture: torch.Tensor) -> np.ndarray:
        wanted = picture.permute(1, 2, 0).numpy() * 255
        return self.poses[int(((self.seen - wanted) ** 2).mean((1, 2, 3)).argmin())]


def test_drift_of_the_perfect_and_of_the_frozen(ring, monkeypatch) -> None:
    monkeypatch.setattr(drifts, "Locator", Finder)
    how = dict(starts=2, seconds=(0.5, 2.0, 60.0))
    perfect = drift(knowing(ring, 2), PIXELS, ring, **how)
    assert perfect.seconds == [0.5, 2.0]
    assert perfect.notes == ["60 s are longer than the clips"]
    for source in ("prediction", "camera", "reconstruction"):
        assert perfect.degrees[source].max() == 0, source
        assert perfect.near(source).tolist() == [1, 1]
    frozen = drift(ring_world.build(CopyLast, ring), PIXELS, ring, **how)
    assert frozen.degrees["prediction"] == pytest.approx(frozen.degrees["copy"], abs=4)
    assert frozen.degrees["copy"][:, 1].max() > 10
    ride = frozen.rides[0]
    assert ride.path.shape == (21, 3)
    assert ride.found.shape == (2, 3)
    free = np.argwhere(ride.floor) * drifts.FLOOR + ride.corner
    assert free.min() == pytest.approx(-1.9, abs=0.11), "the toy's floor goes from -2 to 2"
    assert free.max() == pytest.approx(1.9, abs=0.11)
    json.dumps(perfect.json(), allow_nan=False)
    with pytest.raises(HwmError, match="end before the first horizon"):
        drift(knowing(ring, 2), PIXELS, ring, seconds=(60.0,))


def test_angles_are_apart_the_short_way_round() -> None:
    metres, degrees = apart(np.array([3.0, 0.0, np.pi - 0.1]), np.array([0.0, 4.0, -np.pi + 0.1 + 4 * np.pi]))
    assert metres == pytest.approx(5)
    assert degrees == pytest.approx(np.degrees(0.2))
