"""What ships inside the package: the mini data set, the tokenizer and a world model, found by name."""

from __future__ import annotations

from pathlib import Path

from hwm.errors import HwmError

ROOT = Path(__file__).parent
STORES = {"mini": ROOT / "mini_train", "mini_heldout": ROOT / "mini_heldout"}


def resolve_store(name: str | Path) -> Path:
    """The folder of a store: a shipped one by name, else a path."""
    path = STORES.get(str(name), Path(name))
    if not path.exists():
        shipped = ", ".join(STORES)
        raise HwmError(f"there is no store {name}: give a folder, or one that ships with the package ({shipped})")
    return path
