"""What ships inside the package: the mini data set, the tokenizer and a world model, found by name."""

from __future__ import annotations

from pathlib import Path

from hwm import far
from hwm.errors import HwmError

ROOT = Path(__file__).parent
STORES = {"mini": ROOT / "mini_train", "mini_heldout": ROOT / "mini_heldout"}


def resolve_store(name: str | Path) -> Path:
    """The folder of a store: a shipped one by name, else a path or an address.

    Of what is far away (`hwm.far`) stores are read where they are, and folders of other layouts fetched whole.
    """
    path = STORES.get(str(name)) or far.located(name)
    if far.is_far(path):
        return path if far.is_file(path / "meta.json") else far.copy(path)
    if not path.exists():
        shipped = ", ".join(STORES)
        raise HwmError(f"there is no store {name}: give a folder, or one that ships with the package ({shipped})")
    return path
