"""The compression track: the likeliest ids of the three steps that follow three known ones.

Shape suffixes: B batch, T predicted step, H W grid, S = H*W cells, N = T*S, V vocabulary, K ids kept, L digits.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from hwm.challenge.baselines import Baselines, copy_of
from hwm.challenge.formats import TopFormat
from hwm.challenge.submission import Submission, summary
from hwm.challenge.topk import TOP, Top, in_rows, log_likelihood, top, top_cross_entropy
from hwm.data.clips import Clips
from hwm.data.onex.v2 import OneXTest, OneXV2, OneXV2Joined
from hwm.data.readers import open_store
from hwm.data.store import Store
from hwm.devices import Runtime, runtime_of
from hwm.errors import HwmError
from hwm.evaluate.camera import episode_of
from hwm.models.base import WorldModel
from hwm.progress import track
from hwm.types import Batch

PROMPT, HORIZON = 3, 3
"""Steps that are known and steps to predict: a clip of 17 frames each."""
UNKNOWN = (
    "the server's scoring code, so how an id outside the 500 counts (here: an even share of what is left over)",
    "whether `values` are logits, probabilities or their logarithms (here: natural logarithms of probabilities among "
    "all ids, which serve as logits too)",
    "the names of the files (here: the number of the sample in the order of the files)",
    "whether the ids of a cell have to be in order (here: likeliest first)",
    "how the 64 states of a test sample lie against its frames (here: from its first frame on)",
)


class Question(NamedTuple):
    """One sample.

    Attributes:
        name: of its file.
        batch: one clip: known steps, and actions of these and of the steps to predict.
        truth: (T, H, W) ids of the steps to predict; None where nobody knows.
    """

    name: str
    batch: Batch
    truth: Tensor | None


class Questions(Protocol):
    """The samples of a folder, made one at a time."""

    @property
    def names(self) -> list[str]: ...

    @property
    def episodes(self) -> list[str]:
        """The episode of each sample."""
        ...

    @property
    def store(self) -> Store: ...

    def ask(self, number: int) -> Question: ...


class HeldOut:
    """Windows of a store whose continuation is known. Of 1X's v2.0: pairs of whole clips that follow one another.

    Args:
        clips: at most so many, spread evenly; None is as many as there are test samples.
    """

    def __init__(self, store: Store, prompt: int, horizon: int, clips: int | None = None) -> None:
        self.windows, self.store, self.prompt = Clips(store, prompt + horizon), store, prompt
        self.chosen = self.windows.spread(clips or TopFormat.samples)
        self.names = [str(i) for i in self.chosen]
        self.episodes = [episode_of(self.windows, int(i)).id for i in self.chosen]

    def ask(self, number: int) -> Question:
        batch = self.windows.batch([int(self.chosen[number])])
        shown = batch.window(0, self.prompt, batch.actions.shape[1])
        return Question(self.names[number], shown, batch.latents[0, self.prompt :])


class FromTest:
    """The samples of `test_v2.0`."""

    def __init__(self, store: OneXTest, prompt: int, horizon: int, clips: int | None = None) -> None:
        if prompt != store.clip_steps:
            raise HwmError(f"{store.path}: a test sample shows {store.clip_steps} steps, so the prompt is not {prompt}")
        self.store, self.horizon = store, horizon
        self.names = [str(i) for i in range(len(store.episodes))][:clips]
        self.episodes = self.names

    def ask(self, number: int) -> Question:
        return Question(self.names[number], self.store.batch([number], self.horizon), None)


def questions(data: str | Path, prompt: int = PROMPT, horizon: int = HORIZON, clips: int | None = None) -> Questions:
    """The samples of a folder of test samples, or of any store of token ids.

    Raises:
        HwmError: there is no such folder, or it holds no ids or no window of that length.
    """
    if min(prompt, horizon) < 1 or (clips is not None and clips < 1):
        raise HwmError(f"prompt {prompt}, horizon {horizon} and clips {clips} must be at least 1")
    store = open_blocks(data)
    if store.header.latent is None or store.header.latent.vocab is None:
        raise HwmError(
            f"{store.path} holds no token ids: name a folder of tokens ({store.header.source or 'this one'} has to be "
            "encoded first: hwm encode)"
        )
    if isinstance(store, OneXTest):
        return FromTest(store, prompt, horizon, clips)
    return HeldOut(store, prompt, horizon, clips)


def open_blocks(data: str | Path) -> Store:
    """A store; one of 1X's v2.0 so that clips that follow one another are one episode."""
    store = open_store(data)
    return OneXV2Joined(store.path) if type(store) is OneXV2 else store


@runtime_checkable
class InPieces(Protocol):
    """A model that gives the logits of all missing steps a few cells at a time: (B, T, cells, V)."""

    head: Any

    def logit_pieces(self, batch: Batch) -> Iterator[tuple[slice, Tensor]]: ...


class Piece(NamedTuple):
    """Logits (T, S, V) of some steps and cells, and where these lie among all."""

    steps: slice
    cells: slice
    logits: Tensor
    levels: tuple[int, ...]


def pieces(model: WorldModel, batch: Batch) -> Iterator[Piece]:
    """The logits of one clip's missing steps, no more of them at a time than the model makes at once.

    A model that predicts step by step is rolled out: each step's logits follow from its own prediction of the steps
    before. Its own sampler decides what that is, with a fixed seed.

    Raises:
        HwmError: the model has no probabilities of tokens.
    """
    if isinstance(model, InPieces) and batch.missing <= model.config.horizon:
        for cells, logits_BTSV in model.logit_pieces(batch):
            yield Piece(slice(None), cells, logits_BTSV[0], model.head.levels)
        return
    generator = torch.Generator(batch.latents.device).manual_seed(0)
    latents, known, total = batch.latents, batch.latents.shape[1], batch.actions.shape[1]
    done = known
    while done < total:
        start, stop = model.window_start(done), min(done + model.config.horizon, total)
        window = replace(batch, latents=latents).window(start, done, stop)
        part = model.predict(window, logits=True, generator=generator)
        if part.logits is None:
            raise HwmError(f"the model {model.name!r} gives no probabilities of tokens: it has no part in this track")
        yield Piece(slice(done - known, stop - known), slice(None), part.logits[0].flatten(1, 2), part.levels)
        latents, done = torch.cat([latents, part.latents], 1), stop


@torch.inference_mode()
def answer(
    model: WorldModel, batch: Batch, truth_THW: Tensor | None = None, k: int = TOP, *, runtime: Runtime | None = None
) -> tuple[Top, Tensor | None]:
    """The `k` likeliest ids of every missing cell of one clip, (T, H, W, K), and, of the truth where it is known, the
    log-probability under the full distribution, (T, H, W). Both are on the CPU.

    Args:
        runtime: where and in which number format the model computes; None: where it is, in what suits it there.
    """
    runtime = runtime or runtime_of(model)
    grid, vocab, steps = model.spec.latent.grid, model.spec.latent.vocab or 1, batch.missing
    cells = math.prod(grid)
    ids, logp = torch.empty(steps, cells, k, dtype=torch.int32), torch.empty(steps, cells, k)
    full = None if truth_THW is None else torch.empty(steps, cells)
    truth_TS = None if truth_THW is None else truth_THW.flatten(1)
    number = torch.arange(steps * cells).view(steps, cells)
    with runtime.autocast():  # which holds for what happens between pieces too, where nothing is multiplied
        for piece in pieces(model, batch.to(runtime.device)):
            where_N = number[piece.steps, piece.cells].flatten()
            for rows, logits_NV in in_rows(piece.logits.flatten(0, 1), vocab):
                found, where = top(logits_NV, piece.levels, k), where_N[rows]
                ids.view(-1, k)[where] = found.ids.to("cpu", torch.int32)
                logp.view(-1, k)[where] = found.logp.cpu()
                if full is not None and truth_TS is not None:
                    own = truth_TS.flatten()[where].to(logits_NV.device)
                    full.view(-1)[where] = log_likelihood(logits_NV, own, piece.levels).cpu()
    shape = (steps, *grid)
    return Top(ids.view(*shape, k), logp.view(*shape, k)), None if full is None else full.view(shape)


def figures(found: Top, full_THW: Tensor, truth_THW: Tensor, vocab: int) -> dict[str, list[float]]:
    """Top-k cross-entropy, full cross-entropy, coverage and accuracy of one clip, each a mean for every step."""
    nll, inside = top_cross_entropy(found, truth_THW, vocab)
    likeliest = found.ids.gather(-1, found.logp.argmax(-1, keepdim=True))[..., 0]
    parts = {
        "top_ce": nll,
        "ce": -full_THW.double(),
        "coverage": inside.double(),
        "accuracy": (likeliest == truth_THW).double(),
    }
    return {name: part.mean((-2, -1)).tolist() for name, part in parts.items()}


def file_of(found: Top) -> bytes:
    """The file of a sample: indices int32 and values float32."""
    out = io.BytesIO()
    np.savez(out, indices=found.ids.numpy().astype(np.int32), values=found.logp.numpy().astype(np.float32))
    return out.getvalue()


@dataclass(frozen=True)
class Scores:
    """Figures of all clips whose truth is known.

    Attributes:
        of: who -> figure -> (clips, T); empty where no truth is known.
        episodes: (clips,) which episode each clip is from.
        vocab: how many ids there are.
    """

    of: dict[str, dict[str, np.ndarray]]
    episodes: list[str]
    vocab: int

    def json(self) -> dict[str, Any]:
        """Who -> figure -> its summary over clips, and the mean of every step; and the score of a uniform guess."""
        found: dict[str, Any] = {
            who: {name: summary(v.mean(1), self.episodes) | {"steps": v.mean(0).tolist()} for name, v in all_of.items()}
            for who, all_of in self.of.items()
        }
        return {"uniform": math.log(self.vocab), **found}


def write_compression(
    model: WorldModel,
    asked: Questions,
    out: Path,
    *,
    k: int = TOP,
    train: Clips | None = None,
    settings: dict[str, Any] | None = None,
    dtype: str | torch.dtype = "auto",
) -> tuple[Submission, Scores]:
    """Write the files of all samples, and score those whose truth is known; goes on where it stopped.

    Args:
        train: training windows, which baselines are made of; without them only copying ids is compared with.
        settings: what else the files depend on: recorded, and compared when the work is resumed.
        dtype: number format of the model's matrix products, as of `hwm.evaluate.evaluate.EvaluateConfig`.

    Raises:
        HwmError: a model of other data, or a folder that was begun with other settings.
    """
    first, vocab = asked.ask(0), model.spec.latent.vocab
    if vocab is None:
        raise HwmError(f"the model {model.name!r} predicts no token ids: it has no part in this track")
    theirs = asked.store.header.latent
    if theirs is None or (theirs.grid, theirs.vocab) != (model.spec.latent.grid, vocab):
        raise HwmError(f"the model reads {model.spec.latent}, {asked.store.path} holds {theirs}")
    model.check(first.batch)
    steps = first.batch.missing
    form = TopFormat((steps, *model.spec.latent.grid, k), vocab)
    entry = Submission(out, "compression", form, asked.names, settings or {})
    scored = first.truth is not None
    todo = entry.todo(scored)
    entry.check_room(len(todo) * form.size)
    number = {name: i for i, name in enumerate(asked.names)}
    baselines = Baselines.of(train, first.batch.latents.shape[1], k) if todo and scored and train else None
    training, runtime = model.training, runtime_of(model, dtype)
    model.eval()
    try:
        for name in track(todo, len(todo), "predicting", unit="clips"):
            question = asked.ask(number[name])
            found, full = answer(model, question.batch, question.truth, k, runtime=runtime)
            marks: dict[str, Any] | None = None
            if question.truth is not None and full is not None:
                marks = {"model": figures(found, full, question.truth, vocab)}
                marks |= _beside(question, baselines, vocab)
            entry.add(name, file_of(found), marks)
    finally:
        model.train(training)
    return entry, _gather(entry.scores() if scored else {}, asked, vocab)


def _beside(question: Question, baselines: Baselines | None, vocab: int) -> dict[str, dict[str, list[float]]]:
    """The figures of the baselines for one clip."""
    truth = question.truth
    assert truth is not None
    before = copy_of(question.batch.latents[0], len(truth))
    if baselines is None:
        return {"copy": {"accuracy": (before == truth).double().mean((-2, -1)).tolist()}}
    return {
        "copy": figures(*baselines.copy(before, truth), truth, vocab),
        "unigram": figures(*baselines.unigram(truth), truth, vocab),
    }


def _gather(scores: dict[str, Any], asked: Questions, vocab: int) -> Scores:
    found: dict[str, dict[str, list[Any]]] = {}
    for name in asked.names:
        for who, all_of in scores.get(name, {}).items():
            for figure, values in all_of.items():
                found.setdefault(who, {}).setdefault(figure, []).append(values)
    episodes = [episode for name, episode in zip(asked.names, asked.episodes, strict=True) if name in scores]
    return Scores({w: {f: np.array(v) for f, v in a.items()} for w, a in found.items()}, episodes, vocab)
