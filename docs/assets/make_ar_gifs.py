"""Make the GIFs of docs/cosmos_ar.md with a run of `cosmos_ar_tiny`.

python docs/assets/make_ar_gifs.py runs/ar

`ar_opposite.gif`: rollouts from one true start of the held-out rooms, told to turn left and told to turn right.
`ar_truth.gif`: a rollout beside the truth. Starts are spread over the held-out rooms, and no score plays a part in
choosing them. Of the prompt the last steps are shown.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import hwm
from hwm.assets import resolve_store
from hwm.data.clips import Clips
from hwm.data.readers import open_store
from hwm.evaluate.evaluate import EvaluateConfig, evaluate
from hwm.evaluate.obey import Obedience, obey
from hwm.evaluate.show import pair
from hwm.objectives.next_token import NextTokenSampler
from hwm.pictures.files import save_gif
from hwm.pictures.panels import compose

HERE = Path(__file__).parent
TURNS = {"told to turn left": {"ANGULAR_VELOCITY": 1.0}, "told to turn right": {"ANGULAR_VELOCITY": -1.0}}
SAMPLER = NextTokenSampler(temperature=0.7, top_p=0.8)
STEPS, SHOWN = 12, 2
MOST_BYTES = 300_000


def opposite(found: Obedience, start: int) -> list[np.ndarray]:
    """One start under each command, side by side."""
    lines = [f"prompt {i + 1} of {found.context}" for i in range(found.context)]
    lines += [f"{(i + 1) / found.steps_per_second:+.1f} s" for i in range(STEPS)]
    panels = {command: videos[start] for command, videos in found.videos.items()}
    return list(compose(panels, lines, context=found.context, context_names=dict.fromkeys(panels, "prompt"), scale=1))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model")
    p.add_argument("--start", type=int, default=1, help="which of the starts is shown")
    p.add_argument("--out", type=Path, default=HERE)
    a = p.parse_args()
    model, tokenizer, store = hwm.load(a.model), hwm.load_tokenizer("tiny"), open_store(resolve_store("mini_heldout"))
    past = model.config.past
    found = obey(model, tokenizer, Clips(store, past + STEPS), TURNS, starts=4, steps=STEPS, sampler=SAMPLER)
    fps = found.steps_per_second
    paths = [save_gif(a.out / "ar_opposite.gif", opposite(found, a.start)[past - SHOWN :], fps)]
    for command in TURNS:
        shift, expected = found.mean(command), found.expected
        camera = "" if expected is None else f", the camera's {expected[command][0]:+.1f}"
        print(f"{command}: the picture shifts by {shift[0]:+.2f} +- {shift[1]:.2f} pixels a step{camera}")
    print("response", found.response("shift"))
    results = evaluate(
        model, tokenizer, Clips(store, past + STEPS), EvaluateConfig(clips=4, horizon=STEPS, swaps=(), sampler=SAMPLER)
    )
    paths.append(
        save_gif(a.out / "ar_truth.gif", pair(results.examples[a.start], results, scale=1)[past - SHOWN :], fps)
    )
    for path in paths:
        if path.stat().st_size > MOST_BYTES:
            raise SystemExit(f"{path} has {path.stat().st_size:,} bytes, more than {MOST_BYTES:,}")
        print(path, f"{path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
