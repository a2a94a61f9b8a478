"""Mixtures: the stream is a pure function of seed and step, however it is read."""

from __future__ import annotations

import multiprocessing
import signal
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hwm.data.clips import Clips
from hwm.data.mixture import DataConfig, Mixture, Stream, _leave_signals_to_parent, loader, split_names
from hwm.data.store import Store
from hwm.data.writer import Writer
from hwm.errors import HwmError
from hwm.types import Batch, LatentSpec
from tests.conftest import make_arrays, make_header, make_store


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> Mixture:
    """A large store and a small one of another embodiment."""
    root = tmp_path_factory.mktemp("mixture")
    large = make_store(root / "large", [40, 60])
    small = make_store(root / "small", [8], prefix="s", seed=9, embodiment="other", action_names=("a", "b", "c"))
    return Mixture([Clips(large, 3), Clips(small, 3)])


def same(a: Batch, b: Batch) -> bool:
    return a.embodiment == b.embodiment and torch.equal(a.latents, b.latents) and torch.equal(a.actions, b.actions)


@settings(max_examples=30)
@given(seed=st.integers(0, 1 << 32), step=st.integers(0, 1 << 40), part=st.integers(1, 3), world=st.integers(1, 4))
def test_ranks_partition_the_global_batch(mixture: Mixture, seed: int, step: int, part: int, world: int) -> None:
    size = part * world
    whole = mixture.batch(seed, step, size)
    assert same(whole, mixture.batch(seed, step, size))
    parts = [mixture.batch(seed, step, size, rank, world) for rank in range(world)]
    assert {p.embodiment for p in parts} == {whole.embodiment}
    assert torch.equal(torch.cat([p.latents for p in parts]), whole.latents)
    assert torch.equal(torch.cat([p.actions for p in parts]), whole.actions)


def test_seeds_and_steps_differ(mixture: Mixture) -> None:
    drawn = {(seed, step): mixture.draw(seed, step, 16) for seed in range(3) for step in range(3)}
    keys = {(which, *windows.tolist()) for which, windows in drawn.values()}
    assert len(keys) == len(drawn)


def test_a_batch_that_does_not_divide_is_refused(mixture: Mixture) -> None:
    with pytest.raises(HwmError, match="a batch of 5 does not divide among 2 processes"):
        mixture.batch(0, 0, 5, 0, 2)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_loader_from_step_n_is_the_tail_of_one_from_0(mixture: Mixture, workers: int) -> None:
    want = [mixture.batch(4, step, 4, 1, 2) for step in range(11)]
    options = {"seed": 4, "size": 4, "rank": 1, "world": 2, "workers": workers}
    whole = list(islice(loader(mixture, start=0, **options), 11))
    tail = list(islice(loader(mixture, start=5, **options), 6))
    assert all(map(same, whole, want))
    assert all(map(same, tail, want[5:]))


@pytest.mark.parametrize("exponent", [0.0, 1 / 3, 1.0])
def test_stores_are_drawn_by_a_power_of_their_windows(mixture: Mixture, exponent: float) -> None:
    m = Mixture(mixture.clips, exponent)
    sizes = np.array([38 + 58, 6]) ** exponent
    assert np.allclose(m.weights, sizes / sizes.sum())
    drawn = np.mean([m.draw(0, step, 1)[0] for step in range(4000)])
    assert drawn == pytest.approx(m.weights[1], abs=0.03)


def test_the_default_exponent_is_a_third(mixture: Mixture) -> None:
    assert mixture.weights[0] / mixture.weights[1] == pytest.approx(16 ** (1 / 3))


def test_windows_are_drawn_alike(mixture: Mixture) -> None:
    counts = np.zeros(96)
    for step in range(600):
        which, windows = mixture.draw(1, step, 32)
        if which == 0:
            np.add.at(counts, windows, 1)
    expected = counts.sum() / 96
    assert (np.abs(counts - expected) < 6 * np.sqrt(expected)).all()


def half_moving(path: Path) -> Store:
    """One still episode and one in which every cell changes at every step."""
    writer = Writer(path, make_header())
    for name, moving in (("moving", True), ("still", False)):
        actions, _ = make_arrays(writer.header, 22)
        ids = np.arange(22) if moving else np.zeros(22, int)
        writer.add(name, actions, np.broadcast_to(ids[:, None, None], (22, 2, 2)).copy())
    return writer.finish()


@pytest.mark.parametrize(("power", "odds"), [(0.0, 1.0), (0.5, (1.05 / 0.05) ** 0.5), (1.0, 1.05 / 0.05)])
def test_moving_windows_are_preferred(tmp_path: Path, power: float, odds: float) -> None:
    m = Mixture([Clips(half_moving(tmp_path / "s"), 3)], motion=power)
    windows = np.concatenate([m.draw(0, step, 64)[1] for step in range(200)])
    assert windows.min() == 0
    assert windows.max() == 39
    moving = (windows < 20).mean()
    assert moving / (1 - moving) == pytest.approx(odds, rel=0.15)


@pytest.mark.parametrize(("size", "batches"), [(4, 3), (1, 1), (7, 5), (200, 2)])
def test_fixed_batches_are_of_one_size_even_of_few_windows(mixture: Mixture, size: int, batches: int) -> None:
    first, again = list(mixture.fixed(size, batches)), list(mixture.fixed(size, batches))
    assert [len(b.latents) for b in first] == [size] * batches * 2
    assert [b.embodiment for b in first] == ["toy"] * batches + ["other"] * batches
    assert all(map(same, first, again))


def test_fixed_batches_are_spread_over_the_data(mixture: Mixture) -> None:
    batches = list(mixture.fixed(8, 12))[:12]  # as many clips as the large store has windows: each comes once
    whole = mixture.clips[0].batch(range(96))
    assert torch.equal(torch.cat([b.latents for b in batches]), whole.latents)


def test_the_first_episodes_alone(tmp_path: Path) -> None:
    store, few = make_store(tmp_path / "s", [9, 8, 7, 12]), make_store(tmp_path / "few", [9, 8])
    config = DataConfig(stores=(str(store.path),), val_stores=(str(store.path),), steps=3, episodes=2)
    m, v = config.open(), config.open(validation=True)
    assert len(m.clips[0]) == 7 + 6
    assert len(v.clips[0]) == 7 + 5, "of held-out data every second episode, however many are trained on"
    assert m.describe() == "17 steps (0.0 minutes) in 1 stores, 13 windows"
    assert torch.equal(m.clips[0].batch(range(13)).actions, Clips(few, 3).batch(range(13)).actions)
    # nothing of the others is known: neither their actions' statistics
    found, wanted = m.spec.actions["toy"], few.data_spec().actions["toy"]
    assert found.mean == pytest.approx(wanted.mean)
    assert found.std == pytest.approx(wanted.std)
    assert found.mean != pytest.approx(v.spec.actions["toy"].mean)
    assert max(int(m.draw(0, step, 8)[1].max()) for step in range(50)) == 12
    with pytest.raises(HwmError, match="has 4 episodes, and the first 5 are wanted"):
        DataConfig(stores=(str(store.path),), episodes=5).open()
    with pytest.raises(HwmError, match="must not be negative"):
        DataConfig(stores=(str(store.path),), episodes=-1).open()


def test_robots_of_other_rates_meet_at_one(tmp_path: Path) -> None:
    rates = {"slow": 3.0, "even": 10.0, "odd": 5.0, "fast": 30.0, "slower": 1.0}
    stores = [make_store(tmp_path / n, [60], prefix=n, embodiment=n, fps=fps) for n, fps in rates.items()]
    m = DataConfig(stores=tuple(str(s.path) for s in stores), steps=3, rate=2.0).open()
    assert [c.stride for c in m.clips] == [1, 5, 2, 15, 1]
    assert [m.spec.actions[n].per_step for n in rates] == [2 * c.stride for c in m.clips]
    for step in range(12):
        batch = m.batch(0, step, 2)
        assert batch.actions.shape[2] == m.spec.actions[batch.embodiment].per_step
    for changes in ({"rate": 2.0, "stride": 3}, {"rate": -1.0}):
        with pytest.raises(HwmError, match="takes the place of stride"):
            DataConfig(stores=(str(stores[0].path),), steps=3, **changes).open()  # type: ignore[arg-type]


# ---------------------------------------------------------------------- splits
@pytest.mark.parametrize("count", [1, 5, 10, 20, 30, 40])
def test_splits_have_as_many_data_sets_as_they_say(count: int) -> None:
    names = split_names(f"openx_{count}")
    assert len(names) == len(set(names)) == count
    assert all(name.isidentifier() or name[0].isdigit() for name in names)
    if count != 30:  # the one that is no part of the forty
        assert set(names) <= set(split_names("openx_40"))


def test_a_split_is_its_stores_and_those_named_besides(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("# two robots\none\n\ntwo  # and its remark\n", encoding="utf-8")
    for name in ("one", "two", "three", "two_heldout"):
        make_store(tmp_path / name, prefix=name)
    split, root = str(tmp_path / "mine.txt"), str(tmp_path)
    config = DataConfig(split=split, root=root, stores=(str(tmp_path / "three"),), steps=2)
    assert [c.store.path.name for c in config.open().clips] == ["three", "one", "two"]
    assert [c.store.path.name for c in config.open(validation=True).clips] == ["two_heldout"]
    (tmp_path / "two").rename(tmp_path / "elsewhere")
    with pytest.raises(HwmError, match=r"1 of the 2 data sets of .*: two\. Encode them there"):
        config.open()


def test_missing_data_sets_are_all_named() -> None:
    with pytest.raises(HwmError, match="5 of the 5 data sets of 'openx_5' are not in nowhere: bridge_data_v2, frac"):
        DataConfig(split="openx_5", root="nowhere").open()
    assert DataConfig(split="openx_5", root="nowhere").paths(validation=True) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [("a\nb\na\n", "names a twice"), ("# nothing\n", "names no data set"), (None, "no split called")],
)
def test_splits_that_are_none_are_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "split.txt"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(HwmError, match=message):
        split_names(str(path))


@pytest.mark.parametrize(
    "text",
    [
        "# HMA's\ndomains: >\n  one_robot, two,\n\n  droid,\n",
        "domains: [one_robot, two, droid]\nmore: 1\n",
        "domains:\n  - one_robot  # the first\n  - 'two'\n  - droid\n",
        "{domains: 'one_robot,two,droid'}",
    ],
)
def test_splits_in_yaml(tmp_path: Path, text: str) -> None:
    for name in ("split.yaml", "split.yml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert split_names(str(tmp_path / name)) == ("one_robot", "two", "droid")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("domains: >\n  a, b, a\n", "names a twice"),
        ("domains: []\n", "names no data set"),
        ("a, b\n", "has no `domains`"),
        ("names: [a]\n", "has no `domains`"),
        ("domains: [a, 2]\n", "has no `domains`"),
        ("domains: [a\n", "is no YAML"),
        ("!!python/object/apply:os.getcwd []\n", "is no YAML"),
    ],
)
def test_yaml_that_is_no_split(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "split.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(HwmError, match=message):
        split_names(str(tmp_path / "split.yaml"))


# ---------------------------------------------------------------------- few and many
def test_one_window_is_enough(tmp_path: Path) -> None:
    m = Mixture([Clips(make_store(tmp_path / "s", [3]), 3)])
    assert m.batch(0, 0, 4).latents.shape[0] == 4
    assert [len(b.latents) for b in m.fixed(4, 2)] == [4, 4]


def test_stores_of_other_latents_do_not_mix(tmp_path: Path) -> None:
    a = Clips(make_store(tmp_path / "a"), 2)
    with pytest.raises(HwmError, match="one model reads one tokenizer"):
        Mixture([a, Clips(make_store(tmp_path / "b", tokenizer="other"), 2)])
    with pytest.raises(HwmError, match="one model reads one tokenizer"):
        Mixture([a, Clips(make_store(tmp_path / "c", latent=LatentSpec((2, 2), 26)), 2)])
    with pytest.raises(HwmError, match="embodiment 'toy' has other actions"):
        Mixture([a, Clips(make_store(tmp_path / "d", action_names=("right", "left")), 2)])
    with pytest.raises(HwmError, match="embodiment 'toy' has other actions"):
        Mixture([a, Clips(a.store, 2, stride=2)])
    with pytest.raises(HwmError, match="no stores"):
        Mixture([])


def test_forty_robots_take_turns(tmp_path: Path) -> None:
    """One embodiment a batch, and each as often as the cube root of its windows."""
    stores = [make_store(tmp_path / f"s{i}", [3 + i], prefix=f"{i}_", embodiment=f"robot{i}") for i in range(40)]
    m = Mixture([Clips(s, 3) for s in stores])
    assert sorted(m.spec.actions) == sorted(f"robot{i}" for i in range(40))
    drawn = np.bincount([m.draw(7, step, 2)[0] for step in range(8000)], minlength=40)
    expected = np.arange(1, 41) ** (1 / 3)
    expected *= 8000 / expected.sum()
    assert (np.abs(drawn - expected) < 5 * np.sqrt(expected)).all()
    assert m.batch(7, 0, 2).embodiment == f"robot{m.draw(7, 0, 2)[0]}"


def test_the_spec_is_of_all_embodiments(mixture: Mixture) -> None:
    assert sorted(mixture.spec.actions) == ["other", "toy"]
    assert mixture.spec.actions["other"].dim == 3
    assert mixture.describe() == "108 steps (0.2 minutes) in 2 stores, 102 windows"


def test_a_data_config_opens_stores(tmp_path: Path) -> None:
    train, held = make_store(tmp_path / "t"), make_store(tmp_path / "h", [9])
    config = DataConfig(
        stores=(str(train.path),), val_stores=(str(held.path),), steps=4, stride=2, motion=0.5, workers=2
    )
    m, v = config.open(), config.open(validation=True)
    assert (m.clips[0].length, m.clips[0].stride, m.workers) == (4, 2, 2)
    assert m.cumulative[0] is not None
    assert v.cumulative[0] is None  # every held-out window counts alike
    assert v.clips[0].store.path == held.path
    with pytest.raises(HwmError, match=r"no stores given: --data.stores"):
        DataConfig().open()
    with pytest.raises(HwmError, match=r"no held-out stores given: --data.val-stores"):
        DataConfig(stores=("x",)).open(validation=True)
    with pytest.raises(HwmError, match="there is no store nowhere"):
        DataConfig(stores=("nowhere",)).open()


# ---------------------------------------------------------------------- workers
@pytest.mark.parametrize(("worker", "steps"), [(None, [3, 4, 5]), ((0, 2), [3, 5, 7]), ((1, 3), [4, 7, 10])])
def test_workers_take_turns(mixture: Mixture, worker: tuple[int, int] | None, steps: list[int], monkeypatch) -> None:
    info = SimpleNamespace(id=worker[0], num_workers=worker[1]) if worker else None
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: info)
    found = islice(Stream(mixture, seed=9, start=3, size=4, rank=1, world=2), 3)
    assert all(same(batch, mixture.batch(9, step, 4, 1, 2)) for batch, step in zip(found, steps, strict=True))


def test_a_loader_reads_ahead_with_as_many_processes_as_asked_and_by_default_with_none(mixture: Mixture) -> None:
    for options, count in (({}, 0), ({"workers": 2}, 2)):
        before = len(multiprocessing.active_children())
        batches = loader(mixture, seed=4, start=2, size=4, **options)
        assert same(next(batches), mixture.batch(4, 2, 4)), "of one process, by default"
        assert len(multiprocessing.active_children()) - before == count
        del batches


def test_workers_leave_the_signals_of_a_stop_to_the_trainer() -> None:
    numbers = (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        _leave_signals_to_parent(0)
        assert [signal.getsignal(n) for n in numbers] == [signal.SIG_IGN, signal.SIG_IGN, before[signal.SIGTERM]]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_windows_of_a_config_need_not_overlap(tmp_path: Path) -> None:
    path = str(make_store(tmp_path / "s", [12]).path)
    counts = {f: len(DataConfig(stores=(path,), steps=4, filter_overlaps=f).open().clips[0]) for f in (False, True)}
    assert counts == {False: 9, True: 3}


def test_a_mixture_warns_of_each_store_that_a_spec_does_not_suit(mixture: Mixture) -> None:
    assert mixture.warnings(mixture.spec) == []
    action = mixture.spec.actions["toy"]
    far = replace(mixture.spec, actions={"toy": replace(action, mean=(1e3, 1e3))})
    (found,) = mixture.warnings(far)  # and nothing of the robot that the spec does not know
    assert str(mixture.clips[0].store.path) in found
    narrow = replace(mixture.spec, actions={"toy": replace(action, std=(1e-3, 1e-3))})
    assert len(mixture.warnings(narrow)) == 1


def test_a_split_that_is_meant_is_suggested() -> None:
    with pytest.raises(HwmError, match="did you mean openx_5"):
        split_names("openx5")
