"""Arrays that are read when asked for give what arrays in memory give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwm.data.arrays import Lazy, Shards, moments, pieces


@given(n=st.integers(1, 30), data=st.data())
def test_rows_are_those_of_the_array(n: int, data: st.DataObject) -> None:
    whole = np.random.default_rng(n).integers(0, 100, (n, 2, 3))
    lazy = Lazy(whole.shape, lambda rows: whole[rows])
    keys = st.one_of(
        st.integers(-n, n - 1),
        st.slices(n),
        st.lists(st.integers(-n, n - 1), max_size=8).map(lambda x: np.array(x, np.int64)),
        st.lists(st.integers(0, n - 1), min_size=4, max_size=4).map(lambda x: np.array(x).reshape(2, 2)),
    )
    for key in data.draw(st.lists(keys, min_size=1, max_size=5)):
        assert np.array_equal(lazy[key], whole[key])
        assert lazy[key].shape == whole[key].shape
    assert (len(lazy), lazy.shape) == (n, whole.shape)


@pytest.mark.parametrize("key", [5, -6, [0, 5], np.array([True, False])])
def test_rows_that_are_not_there_are_errors(key: object) -> None:
    with pytest.raises(IndexError):
        Lazy((5,), lambda rows: rows)[key]


@given(rows=st.lists(st.integers(1, 9), min_size=1, max_size=5), data=st.data())
def test_files_are_one_array(tmp_path_factory, rows: list[int], data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("shards")
    whole = np.random.default_rng(len(rows)).normal(size=(sum(rows), 2)).astype(np.float32)
    files = [folder / f"{i}.bin" for i in range(len(rows))]
    for file, part in zip(files, np.split(whole, np.cumsum(rows)[:-1]), strict=True):
        file.write_bytes(part.tobytes())
    shards = Shards(files, rows, "float32", (2,))
    assert (len(shards), shards.shape) == (len(whole), whole.shape)
    assert not shards._maps  # nothing is opened before it is needed
    wanted = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=6, max_size=6))).reshape(2, 3)
    assert np.array_equal(shards.take(wanted), whole[wanted])
    assert shards.take(np.zeros(0, np.int64)).shape == (0, 2)
    assert np.array_equal(shards.part(len(rows) - 1), whole[len(whole) - rows[-1] :])


@given(n=st.integers(1, 40), k=st.integers(1, 3), rows=st.integers(1, 50))
def test_pieces_and_moments_are_those_of_the_whole(n: int, k: int, rows: int) -> None:
    actions = 1e4 + np.random.default_rng(n).normal(size=(n, k, 2))
    parts = list(pieces(actions, rows))
    assert np.array_equal(np.concatenate(parts), actions.reshape(-1, 2))
    assert max(map(len, parts)) <= max(rows, k)
    mean, std = moments(actions)
    assert np.allclose(mean, actions.mean((0, 1)), rtol=1e-12)
    assert np.allclose(std, actions.std((0, 1)), rtol=1e-6, atol=1e-9)
