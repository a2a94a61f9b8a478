"""The recorded cases that ship: every clone can see that our models compute what the public implementations do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from hwm.cli import main
from hwm.convert import families
from hwm.convert.cases import Compared, compare, read_case
from hwm.tokenizers import cosmos_image
from hwm.tokenizers.cosmos_video import signs
from tests.parity import SMALL

CASES = sorted(SMALL.glob("*.safetensors"))


def rows(name: str, **config: Any) -> list[Compared]:
    """The outputs of a case, ours of a config with some fields changed."""
    case = read_case(SMALL / f"{name}.safetensors")
    return compare(case._replace(config={**case.config, **config}))[1]


def wrong(found: list[Compared]) -> set[str]:
    """The outputs that differ; all of them could be computed."""
    assert not any(row.problem for row in found)
    return {row.name for row in found if not row.passed}


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_every_output_is_ours(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "check", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line.endswith("ok")} == read_case(path).out.keys()


@pytest.mark.parametrize("path", [path for path in CASES if "fsq" not in path.stem], ids=lambda path: path.stem)
def test_a_weight_that_is_a_little_off_is_noticed(path: Path) -> None:
    case = read_case(path)
    key = max((k for k in case.weights if "action_diff" not in k), key=lambda k: case.weights[k].numel())
    case.weights[key].view(-1)[::2].mul_(1.001)  # not all of them: a norm may follow, to which their size is nothing
    assert wrong(compare(case)[1])


def test_every_family_and_kind_of_tokenizer_is_there_and_all_is_small() -> None:
    cases = [read_case(path) for path in CASES]
    assert {case.family for case in cases} == set(families())
    kinds = {case.config["name"] for case in cases if case.family == "cosmos-tokenizer"}
    assert kinds == {"CI", "DI", "CV", "DV"}
    assert sum(path.stat().st_size for path in SMALL.iterdir()) < 3_000_000


def test_the_page_has_a_row_for_every_case() -> None:
    page = [
        line.split("|")[1:3]
        for line in (SMALL / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
    ]
    told = {name.strip().strip("`"): int(outputs) for name, outputs in page}
    assert told == {path.stem: len(read_case(path).out) for path in CASES}


# ---------------------------------------------------------------------- mistakes that others have made
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("cosmos-ar-12b-style", {"apply_yarn": False}),
        ("cosmos-ar-12b-style", {"rope_theta": 10_000}),
        ("cosmos-ar-12b-style", {"norm_eps": 1e-3}),
        ("genie-threevocab", {"use_mup": True}),
        ("hma-discrete-shipped-mup", {"use_mup": False}),
    ],
    ids=str,
)
def test_another_config_is_noticed(name: str, change: dict[str, Any]) -> None:
    floats = {row.name for row in rows(name) if row.tolerance}
    assert wrong(rows(name, **change)) & floats


@pytest.mark.parametrize("name", ["genie-threevocab", "hma-discrete-shipped-mup", "hma-continuous-shipped"])
def test_the_other_gelu_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = nn.functional.gelu
    monkeypatch.setattr(nn.functional, "gelu", lambda x, approximate="none": exact(x, approximate="tanh"))
    assert wrong(rows(name))


@pytest.mark.parametrize("name", ["cosmos-image-ci8x8-narrow", "cosmos-image-di4x4-patch2"])
def test_swapped_bands_are_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own round trip is exact in any order of the wavelet's bands."""
    monkeypatch.setattr(cosmos_image, "bands", lambda device, dtype: signs(2, device, dtype))
    assert wrong(rows(name)) >= {"latent24x32", "recon24x32"}
