"""Work done ahead: in order, no further than asked, and errors where the item would have been."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from hwm.data.ahead import ahead


def test_items_pass_in_order() -> None:
    assert list(ahead(range(100))) == list(range(100))
    assert list(ahead([])) == []


def test_an_error_arrives_after_what_came_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise KeyError("third")

    stream = ahead(items())
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(KeyError, match="third"):
        next(stream)


def test_no_more_is_made_than_was_asked_for() -> None:
    made: list[int] = []
    stream = ahead((made.append(i) or i for i in range(50)), 2)  # type: ignore[func-returns-value]
    assert next(stream) == 0
    time.sleep(0.3)
    assert len(made) <= 4, "one is used, two wait, one is at the door"
    stream.close()
    assert len(made) <= 5


def test_whoever_stops_early_stops_the_thread() -> None:
    before = threading.active_count()
    stream = ahead(iter(int, 1))  # without an end
    next(stream)
    stream.close()
    assert threading.active_count() == before
