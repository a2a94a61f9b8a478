"""Tables of a terminal of 80 columns, and of narrower ones: no figure is cut, and nothing is left out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

import hwm
from hwm.catalogue import Listed
from hwm.cli import main
from hwm.commands import challenge, listing
from hwm.evaluate import robots
from hwm.evaluate.endurance import Endurance
from hwm.evaluate.metrics import METRICS, Metric, psnr
from hwm.evaluate.moments import Figure
from hwm.evaluate.trial import Trial
from hwm.evaluate.trial_page import Grid
from hwm.interact import presets
from hwm.interact.comparison import Comparison
from hwm.tables import Figures
from tests.conftest import make_store
from tests.evaluate.toy_results import results

WIDE = 1234567.891


def shown(table: Any, width: int = 80) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def whole(text: str, figures: int | None = None, width: int = 80) -> list[str]:
    """The figures of a text that is not cut."""
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    found = re.findall(r"1,?234,?567\.\d+", text)
    assert figures is None or len(found) == figures
    return found


# ---------------------------------------------------------------------- the one way to print them
names = st.text(st.sampled_from("abcdefgh _"), min_size=1, max_size=40)


@given(
    rows=st.lists(names, min_size=1, max_size=4),
    digits=st.lists(st.integers(1, 14), max_size=12),
    width=st.integers(28, 120),
)
def test_every_figure_stands_whole_in_its_row(rows: list[str], digits: list[int], width: int) -> None:
    table = Figures("what", *(f"h{i}" for i in range(len(digits))), title="a title")
    cells = {(r, i): f"{r}{i:02d}".ljust(n, "9") + "." for r in range(len(rows)) for i, n in enumerate(digits)}
    for r, name in enumerate(rows):
        table.add(name, *(cells[r, i] for i in range(len(digits))))
    text = shown(table, width)
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines)
    for cell in cells.values():
        assert sum(cell in line.split() for line in lines) == 1
    for i in range(len(digits)):
        assert sum(f"h{i}" in line.split() for line in lines) == 1
    parts = text.count("what")
    for letter in "abcdefgh":  # each part has all the words
        assert text.count(letter) == parts * (sum(name.count(letter) for name in rows) + "what".count(letter)) + (
            "a title".count(letter) + letter.count("h") * len(digits)
        )


def test_columns_are_stacked_in_parts_of_like_size() -> None:
    table = Figures("step", *(str(i) for i in range(10, 18)))
    table.add("a", *["1234.567"] * 8)
    assert [line.split() for line in shown(table).splitlines() if line.startswith("step")] == [
        ["step", "10", "11", "12", "13"],
        ["step", "14", "15", "16", "17"],
    ]
    assert shown(table, 120).count("step") == 1


def test_what_is_wider_than_the_terminal_is_folded() -> None:
    table = Figures("", "figure")
    table.add("LEFT_SHOULDER_PITCH", "9" * 50)
    text = shown(table, 30)
    assert text.count("9") == 50
    assert "LEFT_SHOULDER_PITCH" in "".join(line[:8].strip() for line in text.splitlines())


def test_words_are_no_markup() -> None:
    table = Figures("a [b] c", words=1)
    table.add("/tmp/[red]x", style="dim")
    table.add(Text("plain [i]"))
    assert [line.strip() for line in shown(table).splitlines()][0::1][0] == "a [b] c"
    assert "/tmp/[red]x" in shown(table)


def test_nobody_else_makes_tables() -> None:
    root = Path(hwm.__path__[0])
    users = [
        p.relative_to(root).as_posix() for p in root.rglob("*.py") if "rich.table" in p.read_text(encoding="utf-8")
    ]
    assert users == ["tables.py"]


# ---------------------------------------------------------------------- verb by verb
def test_view(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = tuple(f"LEFT_SHOULDER_AND_UPPER_ARM_PITCH_{i}" for i in range(3))
    store = make_store(tmp_path / ("a_long_name_" * 8), [3], action_names=long)
    store._statistics["mean"] = [WIDE] * 3  # as of another store: two columns more
    text = store.path.joinpath("meta.json").read_text(encoding="utf-8")
    text = re.sub(r'"mean": \[[^]]*\]', f'"mean": [{", ".join(["-1.2345e-05"] * 3)}]', text)
    store.path.joinpath("meta.json").write_text(text, encoding="utf-8")
    assert main(["view", str(store.path)]) == 0
    said = capsys.readouterr().out
    whole(said)
    assert said.count("-1.234e-05") + said.count("-1.235e-05") == 3
    assert said.count(long[1]) == 2, "in both parts of the table"
    assert store.path.name in "".join(said.split())
    for heading in ("min", "mean", "max", "std", "mean in use", "std in use"):
        assert heading in said


def test_evaluate() -> None:
    r = results(steps=40, metrics={**METRICS, "absolute_error_of_pictures": Metric(psnr, lower_is_better=True)})
    figures = r.figures["autoregressive"]
    for name in ("psnr", "psnr_copy", "absolute_error_of_pictures"):
        figures[name] = np.full((6, 40), WIDE)
    text = shown(r.table())
    whole(text, 3 * 6)
    assert "step (6 of 40)" in text, "that steps are left out is said"
    assert "step (" not in shown(results(steps=6).table())
    several = [results(embodiment=f"robot_with_a_long_name_{i}", store=f"held_out_store_{i}") for i in range(5)]
    for one in several:
        one.figures["autoregressive"]["psnr"] = np.full((6, 3), WIDE)
    text = shown(robots.table(several))
    whole(text, 5)
    assert all(f"robot_with_a_long_name_{i}" in text and f"held_out_store_{i}" in text for i in range(5))


def test_evaluate_over_a_minute() -> None:
    about = {
        "psnr": Figure(lambda moment, source: moment, "PSNR against the camera in dB", sources=("prediction", "copy"))
    }
    horizons = [0.5, 1, 2, 5, 10, 20, 30, 60]
    values = {source: np.full((4, 8), WIDE) for source in about["psnr"].sources}
    found = Endurance(
        horizons, [round(10 * s) for s in horizons], 2, 10.0, 1, 0, None, np.array(list("aabb")), about,
        {"psnr": values, "motion": {s: np.ones((4, 8)) for s in ("prediction", "camera", "copy")}},
    )  # fmt: skip
    text = shown(found.table())
    whole(text, 16)
    assert all(f"{seconds:.3g}" in text.split() for seconds in horizons)


def test_evaluate_by_the_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [f"{WIDE} ± {WIDE}"] * 6
    grid = Grid(
        "dream: metres and degrees from where it should be", [f"{i} s" for i in range(6)], {"the prediction": cells}
    )
    monkeypatch.setattr(Trial, "grids", lambda self: [grid])
    text = shown(Trial(None, None, None, None, {}).table())  # type: ignore[arg-type]
    whole(text, 12)
    assert all(f"{i} s" in text for i in range(6))


def test_policies() -> None:
    policies = ("my_laboratory.policies:a_policy_of_a_long_name", "still")
    starts, found = ("a", "b", "c"), np.full((2, 3), WIDE) + np.array([[0.0], [1.0]])
    text = shown(Comparison("world", "turn", "degrees", 20, 2.0, 0, policies, starts, starts, found, found, "").table())
    assert len(re.findall(r"123456[78]\.891 ± 0\.000", text)) == 4
    assert "…" not in text


def test_presets(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    made = presets.Preset("a_preset_of_a_long_name", "A", {}, dict.fromkeys(presets.COLUMNS, WIDE))
    monkeypatch.setattr(presets, "measure", lambda *args, **options: made)
    assert main(["presets", "--clips", "1"]) == 0
    said = capsys.readouterr().out
    folder = Path(hwm.__path__[0]) / "assets" / "masked_hwm_mini"
    shown_of_each = len(json.loads((folder / presets.FILE).read_text(encoding="utf-8")))
    whole(said, shown_of_each * len(presets.COLUMNS))
    assert all(heading in said for heading in presets.COLUMNS.values())


def test_challenge() -> None:
    figure = {"mean": WIDE, "standard_error": WIDE, "steps": [WIDE] * 12, "clips": 7}
    scores = {
        who: dict.fromkeys(("top_ce", "ce", "coverage", "accuracy"), figure) for who in ("model", "copy", "unigram")
    }
    text = shown(challenge._compression_table({**scores, "uniform": 11.0}, 500))
    found = re.findall(r"1234567\.8910?\b|123456789\.1", text)
    assert len(found) == 3 * 4 * 14
    assert "…" not in text
    assert all(f"step {i + 1}" in text for i in range(12))
    psnrs = dict.fromkeys(("psnr", "psnr_one", "psnr_copy", "psnr_reconstruction"), figure)
    whole(shown(challenge._sampling_table(psnrs, 4)), 8)


def test_recipes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    recipes = [
        Listed(f"a_recipe_of_a_long_name_{i}", "what it does, [in] some words " * 4, "A family") for i in range(2)
    ]
    listing.print_recipes(recipes, {recipe.name: 1_234_567_891_011 for recipe in recipes})
    said = capsys.readouterr().out
    assert said.count("1,234,567,891,011") == 2
    assert said.count("[in]") == 8
    assert "…" not in said
