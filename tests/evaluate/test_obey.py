from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hwm.data.clips import Clips
from hwm.errors import HwmError
from hwm.evaluate.obey import horizontal_shift, motion_by_step, obey, ramp_to, usual_changes
from hwm.evaluate.swaps import action_bounds
from tests.evaluate import pan_world
from tests.evaluate.pan_world import CopyLast, Oracle, build, pan, wallpaper

COMMANDS = {"left": {"TURN": 2.0}, "right": {"TURN": -2.0}, "still": {"TURN": 0.0}}


@pytest.mark.parametrize("moved", [0.0, 1.0, -3.0, 5.5, -10.25])
def test_shift_of_a_crop(moved: float) -> None:
    """New content comes in at one side, as in a real pan; blur does not matter."""
    rough = torch.rand(1, 1, 64, 192, generator=torch.Generator().manual_seed(0))
    big = torch.nn.functional.avg_pool2d(rough, 5, 1, 2)[0]
    before, after = big[:, :, 40:104], pan(big, torch.tensor([moved]))[:, :, 40:104]
    blurred = torch.nn.functional.avg_pool2d(after[None], 5, 1, 2)[0]
    assert horizontal_shift(before, after).item() == pytest.approx(moved, abs=0.5)
    assert horizontal_shift(before, blurred).item() == pytest.approx(moved, abs=0.5)


def test_shift_of_nothing() -> None:
    flat = torch.full((2, 16, 24), 0.3)
    assert horizontal_shift(flat, flat).tolist() == [0, 0]
    assert horizontal_shift(flat, flat + 0.2).tolist() == [0, 0]


def test_expansion() -> None:
    picture = wallpaper(np.random.default_rng(1))
    grid = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 48), indexing="ij")[::-1], -1)
    zoomed = torch.nn.functional.grid_sample(picture, grid[None] / 1.15, align_corners=True)
    shift, expansion = motion_by_step(torch.stack([picture, zoomed], 1), 1)[0, 0].tolist()
    assert abs(shift) < 1
    assert expansion > 1
    _, inwards = motion_by_step(torch.stack([zoomed, picture], 1), 1)[0, 0].tolist()
    assert inwards < -1


def test_ramp_reaches_the_target_without_jumps() -> None:
    start = torch.zeros(2, 3, 2, 2)
    out = ramp_to(start, torch.tensor([[1.0, -1.0], [0.0, 5.0]]), torch.tensor([0.3, 0.5]), 4)
    assert out.shape == (2, 4, 2, 2)
    slots = torch.cat([start[:, -1, -1:], out.flatten(1, 2)], 1)
    assert (slots.diff(dim=1).abs() <= torch.tensor([0.3, 0.5]) + 1e-6).all()
    assert out[0, -1, -1].tolist() == pytest.approx([1, -1])
    assert out[1, -1, -1].tolist() == pytest.approx([0, 4.0])


def test_an_oracle_obeys(worlds) -> None:
    tokenizer, clips = worlds["pixels"]
    o = obey(build(Oracle, clips), tokenizer, clips, COMMANDS, starts=3, steps=6)
    assert o.starts == 3
    assert o.by_step("left")[-1] == pytest.approx(4, abs=0.5)
    assert o.by_step("right")[-1] == pytest.approx(-4, abs=0.5)
    assert o.by_step("still")[-1] == pytest.approx(0, abs=0.25)
    difference = o.contrast("left", "right")
    assert difference.episodes == 3
    assert difference.mean > 4 * difference.error
    assert o.expected["left"][0] == pytest.approx(4, abs=0.8), "the camera moves two pixels a slot, two slots a step"
    share = o.response("shift").mean
    assert 0.6 < share < 1.2
    assert o.response("expansion") is None, "none of these commands should make the picture expand"
    assert all(v.shape == (3, 8, *pan_world.SIZE, 3) for v in o.videos.values())
    assert all((v[:, :2] == o.videos["still"][:, :2]).all() for v in o.videos.values()), "one context for all"
    json.dumps(o.json(), allow_nan=False)


def test_a_copy_does_not_obey(worlds) -> None:
    tokenizer, clips = worlds["pairs"]
    o = obey(build(CopyLast, clips), tokenizer, clips, COMMANDS, starts=2, steps=4)
    assert o.context == 3
    assert o.response("shift").mean == pytest.approx(0, abs=1e-6)
    assert o.contrast("left", "right").mean == 0


def test_nothing_recorded_follows_on_commands_that_nobody_recorded(worlds) -> None:
    """A model that is told what is done after a step is not told of the recording after the last one."""
    tokenizer, clips = worlds["pixels"]
    ahead = []

    class Spy(CopyLast):
        def predict(self, batch, **more):
            ahead.append(batch.actions_ahead[:, -2:, -1, 0])
            return super().predict(batch, **more)

    obey(build(Spy, clips), tokenizer, clips, {"left": {"TURN": 2.0}}, starts=2, steps=5, reference=0)
    assert (ahead[-1] == 2).all()


def test_commands_stay_within_the_data(worlds) -> None:
    tokenizer, clips = worlds["pixels"]
    o = obey(build(Oracle, clips), tokenizer, clips, {"wild": {"TURN": 1e6}}, starts=1, steps=1, reference=0)
    assert o.asked["wild"]["TURN"] == 1e6
    assert o.told["wild"]["TURN"] == pytest.approx(float(action_bounds(clips.store).high[0]))
    assert o.expected is None
    assert o.response() is None
    limit = usual_changes(clips.store)
    real = np.abs(np.diff(clips.store.actions[:24].reshape(-1, 2), axis=0))
    assert (limit.numpy() <= real.max(0) * 1.5).all()
    assert (limit > 0).all()


def test_mistakes_are_named(worlds, tmp_path) -> None:
    tokenizer, clips = worlds["pixels"]
    model = build(Oracle, clips)
    with pytest.raises(HwmError, match="did you mean TURN"):
        obey(model, tokenizer, clips, {"left": {"TRUN": 1.0}})
    with pytest.raises(HwmError, match="at least one command"):
        obey(model, tokenizer, clips, {})
    with pytest.raises(HwmError, match="too short"):
        obey(model, tokenizer, Clips(clips.store, 1), COMMANDS)
