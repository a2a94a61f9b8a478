"""Work in parts that know nothing of one another, spread over machines by Ray (extra `ray`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from hwm.errors import HwmError
from hwm.progress import track

P = TypeVar("P")
TRIES = 4
"""How often a part is begun whose worker dies: killed for its memory, say, or with its machine."""


def on_ray(work: Callable[[P], Any], parts: Sequence[P], *, threads: int = 1, on_cards: bool = True) -> None:
    """Do each part in a task of its own; a part whose worker dies is done again.

    Ray itself is found as its client finds it: at `RAY_ADDRESS`, or running on this machine, or begun for this call.

    Args:
        work: a function of a module, which the workers import; what it returns is left with them.
        threads: CPUs that a part takes.
        on_cards: whether a part takes a GPU, where Ray has any.

    Raises:
        HwmError: Ray is not installed, a part failed with one, or its workers died again and again.
    """
    try:
        import ray
    except ImportError as error:
        raise HwmError("--on ray needs Ray: pip install 'humanoid-world-models[ray]'") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    begun = not ray.is_initialized()
    if begun:
        ray.init(log_to_driver=False)
    cards = 1 if on_cards and ray.cluster_resources().get("GPU") else 0
    task = ray.remote(num_cpus=max(1, threads), num_gpus=cards, max_retries=TRIES - 1)(_only(work))
    try:
        waiting = {task.remote(part): part for part in parts}
        for done in track(_as_they_end(ray, list(waiting)), len(parts), "parts on Ray", unit="parts"):
            ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, HwmError):
            raise error.cause from None
        raise
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise HwmError(
            f"a part was begun {TRIES} times, and its worker died each time ({error}): give it more memory or a "
            "smaller --batch. The same command goes on from here"
        ) from error
    finally:
        if begun:
            ray.shutdown()


def _only(work: Callable[[P], Any]) -> Callable[[P], None]:
    """The work without its result, which would have to travel."""

    def do(part: P) -> None:
        work(part)

    return do


def _as_they_end(ray: Any, waiting: list[Any]) -> Iterator[Any]:
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1)
        yield from done
