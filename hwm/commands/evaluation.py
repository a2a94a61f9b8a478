"""What `hwm evaluate` and `hwm generate` do: parse options, call the library, show the result."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from hwm.commands.rollouts import Loaded, RolloutOptions, run_evaluation

if TYPE_CHECKING:
    from hwm.evaluate.results import Further


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(RolloutOptions):
    """Measure a model on held-out clips: without arguments the shipped model on the shipped held-out rooms.

    Attributes:
        long: also roll out for up to half a minute under the recorded commands, and judge the pictures after 0.1, 0.5,
            1, 3, 10 and 30 seconds: perceptual distance, sharpness, liveliness and drift, beside baselines.
        seconds: the same, with these horizons.
        long_clips: how many clips to roll out for so long.
        judge: also judge dreams by the true simulator, of its recordings (extra `sim`): how far they have drifted, what
            is left of a view after looking away, how far turning and driving are obeyed; and how often the true plan
            is told from others, which takes no simulator.
        judge_clips: how many starts each of these has.
        metrics: also take these metrics of pictures, of packages that are installed or imported.
        lpips: also measure LPIPS (AlexNet); its published weights are downloaded once, 244 MB.
        lpips_weights: the same with weights from files: torchvision's AlexNet and the channels of the package lpips.
        fid: also measure FID, by this TorchScript file of Inception v3 (StyleGAN3's inception-2015-12-05.pt).
        fvd: also measure FVD, by this TorchScript file of I3D (StyleGAN-V's i3d_torchscript.pt).
        json: print one JSON object instead of tables.
        out: also write that object to this file.
        leaderboard: also add a row for each scenario to this table, .csv or .md.
        report: also write a self-contained HTML report here.
        also: further stores, such as of other robots: the same is measured of each, and a table sets them side by side.
        controllability: also draw PSNR under the true actions and under random ones, step by step, into this SVG file.
    """

    long: bool = False
    seconds: tuple[float, ...] = ()
    long_clips: int = 16
    judge: bool = False
    judge_clips: int = 8
    metrics: tuple[str, ...] = ()
    lpips: bool = False
    lpips_weights: tuple[Path, ...] = ()
    fid: Path | None = None
    fvd: Path | None = None
    json: bool = False
    out: Path | None = None
    leaderboard: Path | None = None
    report: Path | None = None
    also: tuple[str, ...] = ()
    controllability: Path | None = None


def _endurance(o: EvaluateOptions, loaded: Loaded) -> Further | None:
    """Long rollouts, where they are asked for."""
    from hwm.data.mixture import stride_of
    from hwm.evaluate.endure import SECONDS, EnduranceConfig, endure, windows_for
    from hwm.evaluate.moments import eyes

    seconds = o.seconds or (SECONDS if o.long else ())
    if not seconds:
        return None
    stride = stride_of(loaded.store, o.stride, o.rate)
    clips = windows_for(loaded.store, loaded.prompt, seconds, stride=stride, part=o.split)
    how = EnduranceConfig(
        clips=o.long_clips, prompt=loaded.prompt, seconds=seconds, batch_size=o.batch_size, seed=o.seed,
        sampler=loaded.sampler, progress=loaded.progress, dtype=o.dtype,
        eyes=eyes(loaded.runtime.device, loaded.metrics),
    )  # fmt: skip
    return endure(loaded.model, loaded.tokenizer, clips, how)


def _judge(o: EvaluateOptions, loaded: Loaded) -> Further | None:
    """The true simulator's judgement, where it is asked for."""
    if not o.judge:
        return None
    from hwm.data.mixture import stride_of
    from hwm.evaluate.trial import TrialConfig, eyes, trial

    how = TrialConfig(
        clips=o.judge_clips, prompt=loaded.prompt, stride=stride_of(loaded.store, o.stride, o.rate), part=o.split,
        seed=o.seed, sampler=loaded.sampler, progress=loaded.progress, dtype=o.dtype, **eyes(loaded.runtime.device),
    )  # fmt: skip
    return trial(loaded.model, loaded.tokenizer, loaded.store, how)


FURTHER: dict[str, Callable[[EvaluateOptions, Loaded], Further | None]] = {"endurance": _endurance, "judge": _judge}
"""What `hwm evaluate` measures besides, by its key in the JSON; what is not asked for gives None."""


def evaluate(args: list[str]) -> None:
    """`hwm evaluate [CHECKPOINT] [--data S] [--long] [--judge] [--scenario S ...] [--json] [--out F] [--report F]`.

    `hwm evaluate cosmos-ar CHECKPOINT` does as was published for those models.
    """
    if args[:1] == ["cosmos-ar"]:
        from hwm.commands.next_token import evaluate_next_token

        return evaluate_next_token(args[1:])
    o = tyro.cli(EvaluateOptions, args=args, prog="hwm evaluate")
    from hwm.evaluate import robots
    from hwm.evaluate.metrics import METRICS
    from hwm.pictures.plot import need_matplotlib

    if o.report or o.controllability:
        need_matplotlib()
    runtime = o.start()
    extra: dict[str, Any] = {name: METRICS.find(name) for name in o.metrics}
    if o.lpips or o.lpips_weights:
        from hwm.evaluate.metrics import Metric
        from hwm.networks.lpips import load_lpips

        extra["lpips"] = Metric(load_lpips(o.lpips_weights, runtime.device), lower_is_better=True, title="LPIPS")
    features: dict[str, Any] = {}
    if o.fid or o.fvd:
        from hwm.networks.features import i3d, inception

        features |= {"fid": inception(o.fid, runtime.device)} if o.fid else {}
        features |= {"fvd": i3d(o.fvd, runtime.device)} if o.fvd else {}
    command = "hwm evaluate " + " ".join(args)
    further = {name: partial(measure, o) for name, measure in FURTHER.items()}
    how: dict[str, Any] = {"progress": not o.json, "extra_metrics": extra, "features": features, "further": further}
    results = [run_evaluation(replace(o, store=store), runtime, command, **how) for store in (o.store, *o.also)]
    if o.json:
        print(json.dumps(robots.summary(results), indent=1))
    else:
        from rich.console import Console

        Console().print(*(r.table() for r in results), *([robots.table(results)] if o.also else []))
    written = [robots.save(o.out, results)] if o.out else []
    if o.leaderboard:
        from hwm.evaluate.leaderboard import add_rows

        written += [add_rows(o.leaderboard, r) for r in results][-1:]
    if o.report:
        from hwm.evaluate.report import write_report

        paths = [o.report, *(o.report.with_stem(f"{o.report.stem}_{r.store}") for r in results[1:])]
        written += [write_report(path, r) for path, r in zip(paths, results, strict=True)]
    if o.controllability:
        written.append(robots.controllability(o.controllability, results))
    if not o.json:
        for path in written:
            print(path)


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(RolloutOptions):
    """Show rollouts beside the truth: a video and a GIF of each clip, a comic strip and a contact sheet of all.

    Attributes:
        out: folder for the pictures.
    """

    out: Path = Path("generated")
    clips: int = 8
    horizon: int = 16


def generate(args: list[str]) -> None:
    """`hwm generate [CHECKPOINT] [--data S] [--out DIR]`."""
    o = tyro.cli(GenerateOptions, args=args, prog="hwm generate")
    from hwm.evaluate.comic import comic_strip
    from hwm.evaluate.show import contact_sheet, save_examples, save_gifs
    from hwm.pictures.files import save_png

    results = run_evaluation(o, o.start(), "hwm generate " + " ".join(args), examples=o.clips)
    o.out.mkdir(parents=True, exist_ok=True)
    for path in save_examples(o.out, results):
        print(path)
    for path in save_gifs(o.out, results):
        print(path)
    print(save_png(o.out / "comic.png", comic_strip(results)))
    print(save_png(o.out / "contact_sheet.png", contact_sheet(results)))
    print(results.save(o.out / "figures.json"))
