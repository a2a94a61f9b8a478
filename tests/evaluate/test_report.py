from __future__ import annotations

import base64
import dataclasses
import re
from html.parser import HTMLParser

import numpy as np

from hwm.evaluate.evaluate import EvaluateConfig, evaluate
from hwm.evaluate.obey import obey
from hwm.evaluate.report import write_report
from hwm.evaluate.words import findings, verdict
from hwm.pictures.video import read_video
from tests.evaluate.pan_world import CopyLast, Oracle, build

VOID = {"meta", "br", "img", "hr", "link", "input", "source"}


class Checker(HTMLParser):
    """Balanced tags, known text, and where things come from."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.headings: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href", "xlink:href", "data", "action", "srcset")]

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)


def read(path) -> tuple[str, Checker]:
    text, checker = path.read_text(encoding="utf-8"), Checker()
    checker.feed(text)
    checker.close()
    assert not checker.open
    assert text.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]+", "", text)), "nothing is fetched"
    assert "script" not in checker.tags
    assert all(s.startswith(("data:", "#")) for s in checker.sources)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    return text, checker


def test_report(worlds, oracle_results, tmp_path) -> None:
    tokenizer, clips = worlds["blocks"]
    commands = {"turn <left>": {"TURN": 4.0}, "turn right": {"TURN": -4.0}}
    obedience = obey(build(Oracle, clips), tokenizer, clips, commands, starts=2, steps=4)
    training = [(i * 100, 5 / (i + 1), 6 / (i + 1) if i % 2 == 0 else None) for i in range(9)]
    oracle_results.command = "hwm evaluate --model <x> & more"
    path = write_report(
        tmp_path / "out" / "report.html",
        oracle_results,
        title="A & B",
        obedience=obedience,
        training=training,
        notes=["a <note>"],
        data="wallpapers",
    )
    text, checker = read(path)
    wanted = (
        "A & B", "In short", "Watch", "Prediction against its baselines", "Does it listen to its actions?",
        "Told what to do", "Training", "All figures", "What was evaluated", "To be fair",
    )  # fmt: skip
    joined = "".join(checker.headings)
    assert all(w in joined for w in wanted)
    assert all(w in text for w in ("a &lt;note&gt;", "wallpapers", "turn &lt;left&gt;", "--model &lt;x&gt; &amp; more"))
    assert all(w in text for w in ("2.13", "blocks", "20 dB", "seed", "30 held-out clips"))
    assert text.count("<video") == 3 + 2
    assert text.count("autoplay loop muted playsinline controls") == 5
    assert checker.tags.count("svg") == 7
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    first = base64.b64decode(re.search(r"data:video/mp4;base64,([^\"]+)", text).group(1))
    (tmp_path / "v.mp4").write_bytes(first)
    assert len(list(read_video(tmp_path / "v.mp4"))) == 7 + 6, "the clip, and the last frame for 0.6 s"


def test_a_bare_report(worlds, tmp_path) -> None:
    tokenizer, clips = worlds["pixels"]
    results = evaluate(
        build(CopyLast, clips), tokenizer, clips, EvaluateConfig(clips=3, horizon=2, swaps=(), examples=0)
    )
    text, checker = read(write_report(tmp_path / "r.html", results))
    assert "Watch" not in checker.headings
    assert "Training" not in checker.headings
    assert "Only 3 clips" in text
    assert "CopyLast" in checker.headings


def test_failures_are_said(worlds) -> None:
    tokenizer, clips = worlds["blocks"]
    results = evaluate(build(CopyLast, clips), tokenizer, clips, EvaluateConfig(clips=12, horizon=4))
    said = " ".join(f.text for f in findings(results))
    assert "worse than" in said or "within chance of" in said
    assert "it does not show that the model listens" in said
    assert verdict(results).tone != "good"
    worse = dataclasses.replace(results, figures={"autoregressive": dict(results.figures["autoregressive"])})
    noise = np.random.default_rng(0).normal(0, 0.1, (results.clips, 4))
    worse.figures["autoregressive"]["gain_copy"] = noise - 2.0
    worse.figures["autoregressive"]["gain_copy_reconstruction"] = noise - 2.0
    worse.figures["autoregressive"]["delta_psnr"] = noise - 1.0
    assert verdict(worse).tone == "bad"
    assert verdict(worse).text.startswith("Worse than repeating the last frame")
    said = findings(worse)
    assert "behind the stronger one at every step" in said[0].text
    assert any(f.tone == "bad" and "amiss" in f.text for f in said)


def test_a_blurring_tokenizer_makes_no_model_of_a_copy(oracle_results) -> None:
    """Where the reconstruction scores above the camera's frame, it is what a model has to beat."""
    figures = dict(oracle_results.figures["autoregressive"])
    noise = np.random.default_rng(0).normal(0, 0.01, figures["psnr"].shape)
    figures["psnr_copy"] = figures["psnr"] - 1 + noise
    figures["psnr_copy_reconstruction"] = figures["psnr"] + noise
    for name in ("copy", "copy_reconstruction"):
        figures[f"gain_{name}"] = figures["psnr"] - figures[f"psnr_{name}"]
    results = dataclasses.replace(oracle_results, figures={"autoregressive": figures})
    assert results.rival() == results.rival(moving=True) == "copy_reconstruction"
    assert verdict(results).text.startswith("Not clearly better or worse")
    assert findings(results)[0].tone == "even"


def test_successes_are_said(worlds) -> None:
    tokenizer, clips = worlds["pixels"]
    results = evaluate(build(Oracle, clips), tokenizer, clips, EvaluateConfig(clips=20, horizon=4))
    assert verdict(results).tone == "good"
    said = {f.tone for f in findings(results)}
    assert "good" in said
    assert "bad" not in said
