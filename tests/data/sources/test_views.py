"""Sources seen differently: actions stay with the frames that they lead to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwm.data.sources import SourceOptions, open_source
from hwm.data.sources.base import Episode, Source
from hwm.data.sources.views import Cropped, Resampled, Selected, Split, middle
from hwm.data.store import Header
from hwm.encode.episodes import thin_actions
from hwm.errors import HwmError
from tests.conftest import make_store

NAMES = ("left_arm", "left_hand", "right_arm", "base")


class Toy(Source):
    """Frame i of an episode is i everywhere; action a that leads to frame i is i + a / 10."""

    def __init__(self, lengths: tuple[int, ...] = (9, 4), fps: float = 30.0, per_step: int = 1) -> None:
        self.path, self.lengths = Path("toy"), lengths
        self.ids = [f"e{i}" for i in range(len(lengths))]
        self.steps = sum(lengths)
        self.header = Header(embodiment="toy", action_names=NAMES, actions_per_step=per_step, fps=fps)
        self.times: dict[int, np.ndarray] = {}

    def read(self, number: int) -> Episode:
        n, k = self.lengths[number], self.header.actions_per_step
        actions = np.arange(n * k).reshape(n, k, 1) + np.arange(4) / 10

        def frames(every: int = 1, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
            return (np.full((6, 8, 3), i, np.uint8) for i in range(n)[start:stop:every])

        return Episode(
            id=self.ids[number], frames=frames, actions=actions.astype(np.float32), embodiment="toy",
            fps=self.header.fps, times=self.times.get(number), text="go",
        )  # fmt: skip


def shown(episode: Episode, *args: int) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in episode.frames(*args)]


@given(st.integers(2, 40), st.integers(1, 5), st.integers(1, 3))
def test_a_rate_that_divides_is_every_nth_step(steps: int, every: int, per_step: int) -> None:
    source = Toy((steps,), per_step=per_step)
    episode, got = source[0], Resampled(source, 30 / every)[0]
    assert np.array_equal(got.actions[1:], thin_actions(episode.actions, every)[1:])
    assert shown(got) == list(range(0, steps, every))
    assert Resampled(source, 30 / every).header.actions_per_step == per_step * every
    assert got.fps == 30 / every


@given(st.integers(2, 60), st.floats(1.0, 30.0), st.integers(0, 3))
def test_other_rates_show_the_nearest_frame_and_the_actions_in_force(steps: int, fps: float, start: int) -> None:
    source = Toy((steps,))
    view = Resampled(source, fps)
    got, every = view[0], 30 / fps
    count = 1 + int((steps - 1) / every + 0.01 * fps / 30 + 1e-9)
    assert abs(got.steps - count) <= 1
    numbers = np.array(shown(got))
    assert len(numbers) == got.steps
    assert (abs(numbers - np.arange(got.steps) * every) <= 0.5 + 0.02).all()
    rows = got.actions[..., 0]
    assert rows.shape[1] == view.header.actions_per_step == max(1, round(every))
    assert (np.diff(rows.ravel()) >= 0).all(), "time does not run back"
    # the last action of a step is the one in force when it is shown: that of the next frame, or of this one
    ends = np.arange(got.steps) * every
    assert (rows[:, -1] >= np.minimum(ends, steps - 1) - 0.02).all()
    assert (rows[:, -1] <= np.minimum(np.ceil(ends - 0.011), steps - 1) + 0.02).all()
    assert shown(got, 2, start, start + 5) == numbers[start : start + 5 : 2].tolist()


def test_time_stamps_decide_and_not_numbers() -> None:
    source = Toy((7,), fps=10.0)
    source.times[0] = np.array([0, 0.1, 0.2, 0.3, 0.7, 0.8, 0.9]) + 5  # three frames were dropped
    got = Resampled(source, 5)[0]
    assert shown(got) == [0, 2, 3, 4, 5]  # those nearest to 0, 0.2, 0.4, 0.6 and 0.8 s
    assert got.actions[:, :, 0].tolist() == [[0, 0], [1, 2], [3, 4], [4, 4], [4, 5]]


def test_more_steps_than_there_are_cannot_be_made() -> None:
    with pytest.raises(HwmError, match="30 steps a second: 31 cannot be made of them"):
        Resampled(Toy(), 31)


def test_actions_by_name_in_the_order_of_the_patterns() -> None:
    view = Selected(Toy(), ("base", "left_*"), "arm")
    assert view.header.action_names == ("base", "left_arm", "left_hand")
    assert view.header.embodiment == view[0].embodiment == "arm"
    assert np.allclose(view[0].actions[3, 0], [3.3, 3.0, 3.1])
    renamed = Selected(Toy(), (), "other")
    assert (renamed.header.action_names, renamed.header.embodiment) == (NAMES, "other")


def test_a_part_of_the_actions_is_another_robot() -> None:
    with pytest.raises(HwmError, match="2 of the 4 actions of 'toy' are another embodiment: name it with --embodiment"):
        Selected(Toy(), ("left_*",))
    with pytest.raises(HwmError, match=r"no action of toy is called 'leg_\*'; there are: left_arm, .*, base"):
        Selected(Toy(), ("leg_*",), "legs")


@pytest.mark.parametrize(
    ("bounds", "want"),
    [("[:3]", [0, 1, 2]), ("[80%:]", [8, 9]), ("[2:50%]", [2, 3, 4]), ("[-1:]", [9]), ("[:]", list(range(10)))],
)
def test_parts_of_a_split(bounds: str, want: list[int]) -> None:
    view = Split(Toy((3,) * 10), bounds)
    assert [e.id for e in view] == list(view.ids) == [f"e{i}" for i in want]
    assert view.steps == 3 * len(want)


@pytest.mark.parametrize("bounds", ["[3]", "[a:b]", "[10:]", "[5:5]"])
def test_parts_that_are_none(bounds: str) -> None:
    with pytest.raises(HwmError, match=r"no part of a split|are none"):
        Split(Toy((3,) * 10), bounds)


@pytest.mark.parametrize(("size", "want"), [((4, 4), (6, 6)), ((1, 2), (4, 8)), ((3, 4), (6, 8)), ((5, 1), (6, 1))])
def test_the_middle_of_a_picture(size: tuple[int, int], want: tuple[int, int]) -> None:
    frame = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    got = middle(frame, size)
    assert got.shape[:2] == want
    top, left = (6 - want[0]) // 2, (8 - want[1]) // 2
    assert np.array_equal(got, frame[top : top + want[0], left : left + want[1]])
    assert next(iter(Cropped(Toy(), size)[0].frames())).shape[:2] == want


def test_views_combine(tmp_path: Path) -> None:
    names = ("LEFT_A", "LEFT_B", "BASE")
    recording = make_store(
        tmp_path / "r", [12, 9], latent=None, tokenizer="", video=True, action_names=names, actions_per_step=1, fps=30.0
    )
    options = SourceOptions(actions=("LEFT_*",), embodiment="arm", fps=10.0, split="[1:]")
    source = open_source(recording.path, options)
    assert source.header == replace(
        recording.header, embodiment="arm", action_names=names[:2], actions_per_step=3, fps=10.0
    )
    episode = source[0]
    raw = np.asarray(recording.actions[12:21])
    assert np.array_equal(episode.actions[1:], thin_actions(raw, 3)[1:, :, :2])
    want = list(recording.frames(recording.episodes[1], 3))
    assert np.array_equal(np.stack(list(episode.frames())), np.stack(want))


@pytest.mark.parametrize("name", ["fps", "source_fps"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_rates_that_are_none(name: str, value: float) -> None:
    with pytest.raises(HwmError, match="positive number"):
        SourceOptions(**{name: value})  # type: ignore[arg-type]
