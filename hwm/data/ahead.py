"""Work done ahead: the next items are made in a thread while the last one is used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
END = object()


def ahead(items: Iterable[T], count: int = 2) -> Generator[T, None, None]:
    """Pass items through, up to `count` of them made before they are asked for.

    The order is kept, an error arrives where the item would have, and a consumer that stops early stops the thread.
    Decoding video and computing latents both leave Python to others, so that they run at the same time.
    """
    made: queue.Queue[Any] = queue.Queue(count)
    stop = threading.Event()

    def give(value: Any) -> None:
        while not stop.is_set():
            try:
                made.put(value, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                give((item, None))
                if stop.is_set():
                    return
            give((END, None))
        except BaseException as error:  # handed to the consumer, who raises it
            give((END, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is END:
                return
            yield item
    finally:
        stop.set()
        thread.join()
