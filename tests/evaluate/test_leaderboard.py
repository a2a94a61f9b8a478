from __future__ import annotations

import csv
from pathlib import Path

import pytest

from hwm.errors import HwmError
from hwm.evaluate.evaluate import EvaluateConfig, evaluate
from hwm.evaluate.leaderboard import COLUMNS, add_rows, rows
from hwm.evaluate.metrics import Metric
from tests.evaluate.pan_world import CopyLast, Oracle, build


def test_rows_hold_the_figures_of_each_scenario(oracle_results) -> None:
    oracle_results.checkpoint = "runs/oracle"
    table = [dict(zip(COLUMNS, row, strict=True)) for row in rows(oracle_results)]
    oracle_results.checkpoint = ""
    assert [row["scenario"] for row in table] == ["autoregressive", "temporally_teacher_forced"]
    want = oracle_results.json()["by_scenario"]
    for row in table:
        figures = want[row["scenario"]]
        assert row["model"] == "runs/oracle"
        said = [row[name] for name in ("data", "prompt", "horizon", "clips", "batch")]
        assert said == ["blocks", "2", "5", "30", "4"]
        assert float(row["cross-entropy"]) == pytest.approx(figures["ce"], abs=1e-4)
        assert float(row["perplexity"]) == pytest.approx(figures["perplexity"], abs=0.06)
        assert float(row["accuracy"]) > float(row["accuracy of copy"])
        assert float(row["PSNR"]) == pytest.approx(sum(figures["psnr"]) / 5, abs=0.01)
        copies = [sum(figures[f"psnr_{name}"]) / 5 for name in ("copy", "copy_reconstruction")]
        assert float(row["PSNR of copy"]) == pytest.approx(max(copies), abs=0.01)
        assert row["LPIPS"] == row["LPIPS of copy"] == "", "not measured"
        assert float(row["s/frame"]) == pytest.approx(figures["seconds_per_frame"], rel=0.01, abs=2e-5)


@pytest.mark.parametrize("name", ["board.csv", "board.md"])
def test_a_table_grows(name: str, worlds, oracle_results, tmp_path: Path) -> None:
    tokenizer, clips = worlds["pixels"]
    other = evaluate(build(CopyLast, clips), tokenizer, clips, EvaluateConfig(clips=3, horizon=2))
    path = add_rows(tmp_path / "sub" / name, oracle_results)
    path.write_text(path.read_text(encoding="utf-8").rstrip("\n"), encoding="utf-8")  # as an editor may leave it
    add_rows(path, other)
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix == ".csv":
        table = list(csv.DictReader(lines))
    else:
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        assert set(cells[1]) == {"---"}
        table = [dict(zip(cells[0], row, strict=True)) for row in (cells[0], *cells[2:])][1:]
    assert [row["model"] for row in table] == ["Oracle", "Oracle", "CopyLast"]
    assert all(list(row) == list(COLUMNS) for row in table)
    assert table[2]["cross-entropy"] == table[2]["perplexity"] == table[2]["accuracy"] == "", "no tokens, no figures"
    assert float(table[2]["PSNR"]) <= float(table[2]["PSNR of copy"]), "the copy that is harder to beat"
    assert [p.name for p in path.parent.iterdir()] == [name]


def test_other_files_are_left_alone(oracle_results, tmp_path: Path) -> None:
    for text in ("# my notes\n", "model,score\n"):
        for name in ("notes.md", "notes.csv"):
            (tmp_path / name).write_text(text, encoding="utf-8")
            with pytest.raises(HwmError, match="does not begin with"):
                add_rows(tmp_path / name, oracle_results)
            assert (tmp_path / name).read_text(encoding="utf-8") == text


def test_lpips_is_of_the_decoded_truth(worlds) -> None:
    """Any metric of pictures of that name; against the camera, or against the decoded truth, it is another figure."""
    tokenizer, clips = worlds["blocks"]

    def apart(pictures, truth):
        return (pictures - truth).abs().mean((-3, -2, -1))

    r = evaluate(
        build(Oracle, clips),
        tokenizer,
        clips,
        EvaluateConfig(clips=4, horizon=3, swaps=(), metrics={"lpips": Metric(apart, lower_is_better=True)}),
    )
    row = dict(zip(COLUMNS, rows(r)[0], strict=True))
    assert float(row["LPIPS"]) == pytest.approx(r.overall("lpips_reconstruction_reference").mean, abs=1e-4)
    assert float(row["LPIPS"]) < 0.01 < r.overall("lpips").mean, "an oracle differs from the camera by its tokenizer"
    assert float(row["LPIPS of copy"]) > 0.01
