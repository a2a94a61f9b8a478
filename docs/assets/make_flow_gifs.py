"""Make the GIFs of docs/flow_hwm.md with runs of the tiny recipes.

python docs/assets/make_flow_gifs.py runs/flow_base runs/flow_modality runs/flow_full runs/flow_split

`flow_draws.gif`: one held-out clip beside the mean of eight draws of each run; `flow_one.gif`: beside one draw of each.
The clip is one of four that are spread over the held-out rooms, and no score plays a part in choosing it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import hwm
from hwm.data.clips import Clips
from hwm.data.readers import open_store
from hwm.evaluate.evaluate import EvaluateConfig, evaluate
from hwm.evaluate.results import Example
from hwm.evaluate.show import frames_per_second
from hwm.pictures.files import save_gif
from hwm.pictures.panels import compose

HERE = Path(__file__).parent
HORIZON = 4
MOST_BYTES = 300_000


def panels(examples: dict[str, Example], fps: float) -> list[np.ndarray]:
    """The camera's pictures and each run's, side by side."""
    first = next(iter(examples.values()))
    shown = {"camera": first.truth, **{name: e.prediction for name, e in examples.items()}}
    lines = [f"prompt {i + 1} of {first.context}" for i in range(first.context)]
    lines += [f"{(i + 1) / fps:+.1f} s" for i in range(len(first.truth) - first.context)]
    return list(compose(shown, lines, context=first.context, columns=3, scale=1))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("runs", nargs="+", type=Path)
    p.add_argument("--data", default="data/flow_heldout")
    p.add_argument("--example", type=int, default=1, help="which of the four clips")
    p.add_argument("--out", type=Path, default=HERE)
    a = p.parse_args()
    store = open_store(a.data)
    tokenizer = hwm.load_tokenizer(store.header.tokenizer)
    for file, draws in (("flow_draws.gif", 8), ("flow_one.gif", 1)):
        examples, fps = dict[str, Example](), 0.0
        for run in a.runs:
            model = hwm.load(run)
            clips = Clips(store, model.config.past + HORIZON)
            found = evaluate(model, tokenizer, clips, EvaluateConfig(clips=4, horizon=HORIZON, swaps=(), draws=draws))
            examples[run.name.removeprefix("flow_")], fps = found.examples[a.example], frames_per_second(found)
        path = save_gif(a.out / file, panels(examples, fps), fps)
        if path.stat().st_size > MOST_BYTES:
            raise SystemExit(f"{path} has {path.stat().st_size:,} bytes, more than {MOST_BYTES:,}")
        print(path, f"{path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
