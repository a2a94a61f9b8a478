"""Results without an evaluation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hwm.evaluate.results import Results


def results(clips: int = 6, steps: int = 3, **changes: object) -> Results:
    """Random figures of the model `toy`, each clip of another episode."""
    rng = np.random.default_rng(clips)
    names = (
        "psnr", "psnr_copy", "psnr_copy_reconstruction", "psnr_random_actions", "ssim", "accuracy", "ce", "delta_psnr",
        "delta_psnr_random", "gain_copy", "gain_copy_reconstruction",
    )  # fmt: skip
    figures: dict[str, np.ndarray | None] = {name: rng.random((clips, steps)) for name in names}
    made = Results(
        model="toy", config={}, parameters=1, embodiment="arm", store="arms", source="", split="test", tokenizer="t",
        prompt=2, horizon=steps, seed=0, batch_size=2, sampler=None, device="cpu", dtype="float32", torch="", date="",
        reference="camera", steps_per_second=10.0, frames_per_step=1,
        moving=np.ones(clips, bool), episodes=np.arange(clips).astype(str),
        figures={"autoregressive": figures},
        seconds_per_step={"autoregressive": 0.1},
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]
