"""Packages outside this one: put on the path as if they were installed, and forgotten afterwards."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hwm.config import REGISTRY
from hwm.convert import families
from hwm.data.sources import SOURCES
from hwm.evaluate.metrics import METRICS
from hwm.evaluate.scenarios import SCENARIOS
from hwm.evaluate.swaps import SWAPS
from hwm.recipes import RECIPES
from hwm.tokenizers import TOKENIZERS

# (the converters' own families register as they are imported, which `families` sees to)
TABLES = (REGISTRY, RECIPES, SOURCES, TOKENIZERS, METRICS, SWAPS, SCENARIOS, families())


@contextmanager
def forgotten(folder: Path) -> Iterator[None]:
    """What is imported from below a folder within, and what stands in a table since, is gone afterwards."""
    kept, loaded, path = [dict(t) for t in TABLES], set(sys.modules), list(sys.path)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        for table, old in zip(TABLES, kept, strict=True):
            table.clear()
            table.update(old)  # type: ignore[arg-type]
        for new in set(sys.modules) - loaded:
            spec = getattr(sys.modules[new], "__spec__", None)
            places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
            if any(place and Path(place).is_relative_to(folder) for place in places):
                del sys.modules[new]


def install(folder: Path, package: str, entry_points: Mapping[str, Mapping[str, str]]) -> None:
    """Give a folder that is on the path what an installed package leaves there beside its modules."""
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
    lines = []
    for group, parts in entry_points.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in parts.items())]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
