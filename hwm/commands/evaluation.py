"""What `hwm evaluate` and `hwm generate` do: parse options, call the library, show the result."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from hwm.errors import HwmError

if TYPE_CHECKING:
    from hwm.data.clips import Clips
    from hwm.data.store import Header, Store
    from hwm.models.base import WorldModel

SHIPPED = "masked_hwm_mini"


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """Which model predicts which clips, and how.

    Attributes:
        checkpoint: a shipped model, a checkpoint folder or a run; without one the shipped model.
        model: the same by name.
        store: an encoded store, best with video, or a folder of 1X's.
        tokenizer: whose latents the store holds; by default the one that the store names.
        clips: how many clips, spread evenly over the store.
        prompt: steps of context; by default all that the model looks back on.
        horizon: steps to predict.
        stride: distance between the steps of a clip (15 for 1X v1.1, which has 30 a second).
        rate: in its place, the longest that leaves so many steps a second, as `--data.rate` of training.
        split: of a held-out store, the part that training does not see (`test`: the second episode, the fourth and so
            on), that which its validation sees (`validation`), or all.
        filter_overlaps: choose among clips of which none shares a step with another, as 1X's evaluation does.
        scenario: autoregressive (the model sees its own predictions), temporally_teacher_forced (it sees the true
            steps before) or fully_teacher_forced (each token sees the true tokens before it; not for masked models).
        swaps: also predict under wrong actions, which takes three further predictions.
        draws: predictions whose mean is judged and shown: the mean of samples scores higher than any of them.
        sampler: changes to the model's sampler as NAME=VALUE, such as steps=4 temperature=0.9 pick=sample.
        int8: keep the weights of linear layers as 8-bit integers (needs torchao).
        text: a file with an encoded text, for models that read one.
        batch_size: clips at once.
        seed: of action swaps and sampling.
        threads: CPU threads; 0 leaves torch's choice.
    """

    checkpoint: tyro.conf.Positional[str | None] = None
    model: str | None = None
    store: Annotated[str, tyro.conf.arg(aliases=("--data",))] = "mini_heldout"
    tokenizer: str | None = None
    clips: int = 96
    prompt: Annotated[int | None, tyro.conf.arg(aliases=("--context-steps",))] = None
    horizon: int = 8
    stride: int = 1
    rate: float = 0.0
    split: Literal["test", "validation", "all"] = "test"
    filter_overlaps: bool = False
    scenario: tuple[Literal["autoregressive", "temporally_teacher_forced", "fully_teacher_forced"], ...] = (
        "autoregressive",
    )
    swaps: bool = True
    draws: int = 1
    sampler: tuple[str, ...] = ()
    int8: bool = False
    text: Path | None = None
    batch_size: int = 16
    seed: int = 0
    threads: int = 0

    @property
    def weights(self) -> str:
        """The model that was named, in one way or the other."""
        if self.checkpoint and self.model:
            raise HwmError(f"name one model: {self.checkpoint} or --model {self.model}")
        return self.checkpoint or self.model or SHIPPED

    def windows(self, store: Store, prompt: int) -> Clips:
        """The clips to choose from."""
        from hwm.data.clips import Clips
        from hwm.data.mixture import stride_of

        stride = stride_of(store, self.stride, self.rate)
        if self.split == "test" and len(store.episodes) < 2:
            raise HwmError(
                f"{store.path} has one episode, which is for validation, and none for test: hold more out, or evaluate "
                "on it with --split all"
            )
        return Clips(store, prompt + self.horizon, stride=stride, filter_overlaps=self.filter_overlaps, part=self.split)

    def model_for(self, header: Header) -> WorldModel:
        """The model that is named, as wanted, for a store's data."""
        from hwm.loading import load

        return load(self.weights, device(), int8=self.int8, text=self.text)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(RolloutOptions):
    """Measure a model on held-out clips: without arguments the shipped model on the shipped held-out rooms.

    Attributes:
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


def evaluate(args: list[str]) -> None:
    """`hwm evaluate [CHECKPOINT] [--data S] [--scenario S ...] [--json] [--out FILE] [--report FILE]`.

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
    extra: dict[str, Any] = {name: METRICS.find(name) for name in o.metrics}
    if o.lpips or o.lpips_weights:
        from hwm.evaluate.metrics import Metric
        from hwm.networks.lpips import load_lpips

        extra["lpips"] = Metric(load_lpips(o.lpips_weights, device()), lower_is_better=True, title="LPIPS")
    features: dict[str, Any] = {}
    if o.fid or o.fvd:
        from hwm.networks.features import i3d, inception

        features |= {"fid": inception(o.fid, device())} if o.fid else {}
        features |= {"fvd": i3d(o.fvd, device())} if o.fvd else {}
    command = "hwm evaluate " + " ".join(args)
    results = [
        run_evaluation(replace(o, store=store), command, progress=not o.json, extra_metrics=extra, features=features)
        for store in (o.store, *o.also)
    ]
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


def run_evaluation(
    o: RolloutOptions,
    command: str,
    examples: int = 4,
    progress: bool = True,
    extra_metrics: Any = None,
    features: Any = None,
) -> Any:
    """Load what the options name, and evaluate."""
    import torch

    from hwm.data.readers import open_store
    from hwm.evaluate.evaluate import EvaluateConfig
    from hwm.evaluate.evaluate import evaluate as run
    from hwm.evaluate.swaps import SWAPS
    from hwm.loading import load_tokenizer

    if o.threads:
        torch.set_num_threads(o.threads)
    store = open_store(o.store)
    model = o.model_for(store.header)
    tokenizer = load_tokenizer(o.tokenizer or store.header.tokenizer, device())
    prompt = o.prompt or model.config.past
    clips = o.windows(store, prompt)
    how = EvaluateConfig(
        clips=o.clips, prompt=prompt, horizon=o.horizon, scenarios=o.scenario,
        swaps=tuple(SWAPS) if o.swaps and o.clips > 1 else (), batch_size=o.batch_size, seed=o.seed,
        sampler=model.sampler_with(o.sampler),
        metrics=extra_metrics or {}, features=features or {}, draws=o.draws, checkpoint=o.weights, command=command,
        progress=progress, examples=examples,
    )  # fmt: skip
    return run(model, tokenizer, clips, how)


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


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

    results = run_evaluation(o, "hwm generate " + " ".join(args), examples=o.clips)
    o.out.mkdir(parents=True, exist_ok=True)
    for path in save_examples(o.out, results):
        print(path)
    for path in save_gifs(o.out, results):
        print(path)
    print(save_png(o.out / "comic.png", comic_strip(results)))
    print(save_png(o.out / "contact_sheet.png", contact_sheet(results)))
    print(results.save(o.out / "figures.json"))
