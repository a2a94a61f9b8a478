"""Put what `make weights` made into a folder as it ships: the tokenizer, the model, and some held-out takes.

python docs/assets/ship_home.py --weights weights --out hwm/assets
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import tyro

from hwm.config import Trainable
from hwm.data.store import Store
from hwm.data.writer import Writer
from hwm.loading import weights_fingerprint
from hwm.train.checkpoint import find, load_model, read_meta, save_model

MODEL, TOKENIZER, TAKES = "diffusion_home", "home", "home_heldout"


def save_half(module: Trainable, out: Path, notes: Mapping[str, Any]) -> None:
    """A checkpoint in half precision, as fingerprints are taken of."""
    half = {name: x.to(torch.float16) if x.is_floating_point() else x for name, x in module.state_dict().items()}
    save_model(out, module, half, **notes)


def copy_takes(store: Store, tokenizer: str, count: int, out: Path) -> None:
    """The first takes of a store, as latents of the tokenizer by the name under which it ships."""
    shutil.rmtree(out, ignore_errors=True)
    writer = Writer(out, replace(store.header, tokenizer=tokenizer))
    with tempfile.TemporaryDirectory() as folder:
        for episode in store.episodes[:count]:
            rows, video = slice(episode.start, episode.stop), Path(folder) / f"{episode.id}.mp4"
            store.copy_video(episode, video)
            latents = None if store.latents is None else store.latents[rows]
            writer.add(episode.id, store.actions[rows], latents, video, episode.info)
    writer.finish(store.statistics)


def main(weights: Path = Path("weights"), out: Path = Path("hwm/assets"), takes: int = 6) -> None:
    """Write the three folders.

    Args:
        weights: the folder that `make weights` wrote.
        out: where to.
        takes: how many held-out takes to keep.
    """
    tokenizer, model = load_model(weights / "tokenizer"), load_model(weights / "model")
    name = f"{TOKENIZER}@{weights_fingerprint(tokenizer)}"
    model.spec = replace(model.spec, tokenizer=name)
    for module, part, to in ((tokenizer, "tokenizer", TOKENIZER), (model, "model", MODEL)):
        save_half(module, out / to, read_meta(find(weights / part)).get("notes", {}))
    copy_takes(Store(weights / "cells_heldout"), name, takes, out / TAKES)


if __name__ == "__main__":
    tyro.cli(main)
