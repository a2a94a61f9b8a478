"""Recorded cases: `hwm convert check` says what agrees with the original, names what does not, and fails then."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hwm.cli import main
from hwm.convert import Family, families, from_reference, register
from hwm.convert import family as family_module
from hwm.convert.cases import Compared, compare, read_case, table
from hwm.convert.public import Inner
from hwm.errors import CheckpointError, HwmError
from hwm.models.genie import Genie
from hwm.tokenizers.magvit2 import MAGVIT2
from tests.parity import recorded_path, write_case

RECORDED = {
    "genie": ("plain", "mup", "qknorm", "mup-qknorm-onevocab", "threevocab"),
    "magvit2": ("two-levels", "two-blocks"),
    "cosmos-tokenizer": ("dv8x8x8", "dv8x16x16", "dv4x8x8-patch2", "cv8x8x8", "cv4x8x8-decoder"),
    "cosmos-image": ("ci8x8", "di16x16-patch2"),
    "cosmos-ar": ("4b-style", "12b-style", "5b-style"),
    "fsq": ("64000",),
    "hma-discrete": ("shipped", "shipped-mup", "mlp"),
    "hma-continuous": ("shipped", "mup-width256"),
}
NAMES = [f"{family}-{case}" for family, cases in RECORDED.items() for case in cases]
FIELDS = dict(num_layers=2, num_heads=2, d_model=16, T=3, S=4, image_vocab_size=64, num_factored_vocabs=2,
              factored_vocab_size=8, qk_norm=False, use_mup=False, num_prompt_frames=1)  # fmt: skip


# ---------------------------------------------------------------------- recorded of public implementations
@pytest.mark.parametrize("name", NAMES)
def test_every_recorded_output_is_ours(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = recorded_path(name)
    outputs = {k.removeprefix("out.") for k in load_file(path) if k.startswith("out.")}
    assert len(outputs) >= 3
    assert main(["convert", "check", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line.endswith("ok")} == outputs


@pytest.mark.parametrize("name", ["genie-qknorm", "magvit2-two-blocks"])
def test_a_weight_that_is_a_little_off_is_noticed(name: str, tmp_path: Path) -> None:
    case = read_case(recorded_path(name))
    key = max(case.weights, key=lambda k: case.weights[k].numel())
    case.weights[key].mul_(1.001)
    _, rows = compare(case)
    assert not all(row.passed for row in rows)
    assert not any(row.problem for row in rows)


# ---------------------------------------------------------------------- a case of our own
def plain_genie() -> ModuleType:
    """The benchmark's straightforward GENIE, written without any of the package's layers."""
    path = Path(__file__).parents[2] / "benchmarks" / "genie_train_step.py"
    spec = importlib.util.spec_from_file_location("genie_train_step", path)
    assert spec is not None
    assert spec.loader is not None
    sys.path.insert(0, str(path.parent))
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """Logits and the training loss of a plain GENIE, with random weights."""
    torch.manual_seed(0)
    model: Any = plain_genie().PlainGenie(FIELDS).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    tokens = torch.randint(64, (2, 3, 4))
    masked_ids = torch.where(torch.rand(2, 3, 4) < 0.5, 64, tokens)
    masked_ids[:, 0] = tokens[:, 0]
    with torch.no_grad():
        logits, loss = model(tokens), model.loss(masked_ids, tokens)
    given = {"tokens": tokens.flatten(1), "masked_ids": masked_ids.flatten(1), "labels": tokens.flatten(1).clone()}
    out = {"logits": logits.permute(0, 3, 1, 2).unflatten(-1, (2, 2)), "loss": loss}
    return write_case(tmp_path / "own.safetensors", "genie", FIELDS, model.state_dict(), given, out, atol=1e-5)


def change(path: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def describe(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    edit(about)
    path.with_suffix(".json").write_text(json.dumps(about), encoding="utf-8")


def test_our_own_case_passes(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "check", str(case)]) == 0
    out = capsys.readouterr().out
    assert "own: genie, " in out
    lines = {line.split()[0]: line for line in out.splitlines() if line.endswith("ok")}
    assert lines["logits"].endswith("  inner: logits of a clip shown whole  ok")
    assert lines["loss"].split()[-2:] == ["loss", "ok"]
    assert len(lines) == 2


@pytest.mark.parametrize("name", ["logits", "loss"])
def test_an_output_that_differs_is_named(name: str, case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(case, lambda tensors: tensors[f"out.{name}"].view(-1)[:1].add_(1e-3))
    assert main(["convert", "check", str(case)]) == 2
    out, error = capsys.readouterr()
    assert f"own (1 of 2 outputs: {name})" in error
    lines = {line.split()[0]: line for line in out.splitlines()[2:] if line}
    assert lines.pop(name).endswith("WRONG")
    assert all(line.endswith("ok") for line in lines.values())
    assert lines


def test_every_weight_matters(case: Path) -> None:
    names = [name for name in load_file(case) if name.startswith("state.")]
    assert len(names) > 30
    for name in names:
        found = read_case(case)
        found.weights[name.removeprefix("state.")].view(-1)[:3].mul_(2)
        assert not all(row.passed for row in compare(found)[1]), name


def test_what_cannot_be_computed_is_named_and_the_rest_compared(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def without_labels(tensors: dict[str, Tensor]) -> None:
        del tensors["in.labels"]
        tensors["out.maskgit_K7"] = torch.zeros(1, dtype=torch.long)
        tensors["out.acc"] = torch.zeros(3)

    def say_so(about: dict[str, Any]) -> None:
        del about["tensors"]["in.labels"]
        about["tensors"]["out.maskgit_K7"] = {"shape": [1], "dtype": "int64"}
        about["tensors"]["out.acc"] = {"shape": [3], "dtype": "float32", "atol": 1.0}

    change(case, without_labels)
    describe(case, say_so)
    assert main(["convert", "check", str(case)]) == 2
    out, error = capsys.readouterr()
    assert "own (3 of 4 outputs: loss, maskgit_K7, acc)" in error
    assert "lacks 'labels', which this output is computed from" in out
    assert "no output of 'genie' has this name" in out
    assert next(line for line in out.splitlines() if line.split()[:1] == ["logits"]).endswith("ok")


def test_an_output_of_another_shape_or_type_is_a_problem(case: Path) -> None:
    def reshape(tensors: dict[str, Tensor]) -> None:
        tensors["out.logits"] = tensors["out.logits"][:1].clone()
        tensors["out.loss"] = tensors["out.loss"].long()

    change(case, reshape)
    describe(case, lambda about: about["tensors"]["out.logits"]["shape"].__setitem__(0, 1))
    describe(case, lambda about: about["tensors"]["out.loss"].update(dtype="int64"))
    problems = {row.name: row.problem for row in compare(read_case(case))[1]}
    assert "float32 (2, 16, 3, 2, 2) instead of float32 (1, 16, 3, 2, 2)" in problems["logits"]
    assert "float32 () instead of int64 ()" in problems["loss"]


def test_several_cases_are_all_run(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = case.with_name("absent.safetensors")
    assert main(["convert", "check", str(missing), str(case)]) == 2
    out, error = capsys.readouterr()
    assert "own: genie" in out
    assert "absent (not run)" in error
    assert "own" not in error
    assert main(["convert", "check", str(case), str(case.with_suffix(".json"))]) == 0
    assert main(["convert", "check"]) == 2
    assert "at least one" in capsys.readouterr().err


@pytest.mark.parametrize("kept", [0, 1])
def test_of_a_thinned_output_every_nth_number_is_compared(kept: int, case: Path) -> None:
    whole = load_file(case)["out.logits"]

    def thin(tensors: dict[str, Tensor]) -> None:
        tensors["out.logits"] = whole.flatten()[::7].clone()

    change(case, thin)
    describe(case, lambda about: about["tensors"]["out.logits"].update(every=7))
    found = read_case(case)
    assert whole.numel() % 7
    assert found.shapes["logits"] == whole.shape
    assert [(row.name, row.passed) for row in compare(found)[1]] == [("logits", True), ("loss", True)]
    found.out["logits"][-1 - kept] += 1e-3
    assert [(row.name, row.passed) for row in compare(found)[1]] == [("logits", False), ("loss", True)]


def test_narrow_floats_stand_for_the_float32_that_they_equal(case: Path) -> None:
    wide = read_case(case).weights
    key = "out_x_proj.weight"
    rounded = wide[key].to(torch.float8_e4m3fn)
    change(case, lambda tensors: tensors.update({f"state.{key}": rounded}))
    found = read_case(case).weights
    assert {x.dtype for x in found.values()} == {torch.float32}
    assert torch.equal(found[key], rounded.float())
    assert not torch.equal(found[key], wide[key])
    assert compare(read_case(case))[0].head.weight.dtype == torch.float32


# ---------------------------------------------------------------------- mistakes
def test_cases_that_are_broken_are_refused(case: Path) -> None:
    about, tensors = case.with_suffix(".json").read_bytes(), case.read_bytes()

    def fails(message: str, of: Callable[[Path], Any] = read_case) -> None:
        with pytest.raises(HwmError, match=message):
            of(case)
        case.with_suffix(".json").write_bytes(about)
        case.write_bytes(tensors)

    case.with_suffix(".json").unlink()
    fails(r"own\.json, which says what is in own\.safetensors")
    case.with_suffix(".json").write_bytes(about[:100])
    fails(r"cannot read .*own\.json")
    for text in ("[]", "{}", '{"family": "genie", "config": {}, "tensors": {"in.x": {}}}', '{"family": 3}'):
        case.with_suffix(".json").write_text(text, encoding="utf-8")
        fails(r"own\.json does not describe a case")
    case.write_bytes(tensors[:1000])
    fails(r"cannot read the weights .*own\.safetensors")
    change(case, lambda t: t.pop("in.tokens"))
    fails(r"own\.safetensors lacks in\.tokens, which own\.json lists")
    change(case, lambda t: t.update({"in.tokens": t["in.tokens"].int()}))
    fails(r"in\.tokens of .* is int32 \(2, 12\), and own\.json says int64 \(2, 12\)")
    change(case, lambda t: t.update({"in.more": torch.ones(1)}))
    fails(r"holds in\.more, of which own\.json says nothing")
    describe(case, lambda a: a["tensors"]["out.logits"].update(every=7))
    fails(r"out\.logits of .* is float32 .*, and own\.json says float32 \(55,\)")
    describe(case, lambda a: a["tensors"]["in.tokens"].update(every=2))
    fails(r"own\.json says of in\.tokens .* only outputs")
    change(case, lambda t: [t.pop("out.logits"), t.pop("out.loss")])
    describe(case, lambda a: [a["tensors"].pop(k) for k in ("out.logits", "out.loss")])
    fails("holds no outputs")
    describe(case, lambda a: a["tensors"]["out.loss"].pop("atol"))
    fails(r"gives no tolerance \(atol\) for out\.loss")
    describe(case, lambda a: a.update(family="geni"))
    fails("there is no family of models to convert called 'geni'; did you mean genie", lambda p: compare(read_case(p)))
    describe(case, lambda a: a["config"].update(num_layer=2))
    fails("no field of Published called 'num_layer'", lambda p: compare(read_case(p)))
    change(case, lambda t: t.pop("state.out_x_proj.bias"))
    fails("weights in the state dict do not fit a 'genie': head.bias is missing", lambda p: compare(read_case(p)))


def test_nothing_but_a_small_number_passes() -> None:
    nan = float("nan")
    assert Compared("a", 0.0, 0.0, 0.0).passed
    assert not Compared("a", nan, nan, 1.0).passed
    assert not Compared("a", 1.1, 1.0, 1.0).passed


@settings(max_examples=20)
@given(st.lists(st.sampled_from([0.0, 1e-9, 0.3, float("nan"), float("inf")]), min_size=1, max_size=4))
def test_the_table_has_a_line_for_each_output(errors: list[float]) -> None:
    rows = [Compared(f"out{i}", e, e, 1e-3) for i, e in enumerate(errors)]
    lines = table(rows).splitlines()
    assert len(lines) == 1 + len(rows)
    for line, row in zip(lines[1:], rows, strict=True):
        assert line.endswith("ok" if row.error <= 1e-3 else "WRONG")


# ---------------------------------------------------------------------- families
def test_a_family_is_registered_and_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All that a new converter does."""
    monkeypatch.setattr(family_module, "_FAMILIES", dict(families()))

    def build(config: Any, weights: Any) -> nn.Linear:
        made = nn.Linear(config["inputs"], 1)
        made.load_state_dict(weights)
        return made.eval()

    def outputs(model: Any, case: Any) -> Any:
        made = partial(model, case.given["x"])
        return {"y": made if case.name == "past" else Inner("the layer", made)}

    register("line", Family(build=build, outputs=outputs))
    original, x = nn.Linear(3, 1), torch.randn(5, 3)
    path = write_case(
        tmp_path / "line.safetensors", "line", {"inputs": 3}, original.state_dict(), {"x": x},
        {"y": original(x).detach()}, 1e-6,
    )  # fmt: skip
    assert main(["convert", "check", str(path)]) == 0
    assert "  inner: the layer  ok\n" in capsys.readouterr().out
    for end in (".safetensors", ".json"):
        path.with_suffix(end).rename(tmp_path / f"past{end}")
    assert main(["convert", "check", str(tmp_path / "past.safetensors")]) == 2, "it does not say what it calls"
    assert "computed by none of loss, predict" in capsys.readouterr().out
    assert main(["convert", "line", str(path), "--out", str(tmp_path / "out")]) == 2  # it reads no published files


def test_the_package_knows_what_it_says() -> None:
    known = families()
    assert set(RECORDED) - {"cosmos-image"} <= set(known)  # those of pictures are of the family cosmos-tokenizer
    for name, family in known.items():
        assert (family.read is None) == (family.write is None), name


def test_our_model_of_a_state_dict(case: Path) -> None:
    weights = read_case(case).weights
    model = from_reference("genie", FIELDS, weights)
    assert isinstance(model, Genie)
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())
    assert model.head.bias.data_ptr() == weights["out_x_proj.bias"].data_ptr(), "no second copy of the weights"
    with pytest.raises(CheckpointError, match=r"position is \(3, 4, 16\) instead of \(16, 4, 16\)"):
        from_reference("genie", {k: v for k, v in FIELDS.items() if k != "T"}, weights)
    with pytest.raises(HwmError, match="did you mean magvit2"):
        from_reference("magvit", {}, {})


def test_a_tokenizer_of_a_state_dict() -> None:
    config = MAGVIT2.Config(bits=6, base=32, multipliers=(1, 2), blocks=1)
    fields = dict(z_channels=6, base_channels=32, ch_mult=[1, 2], num_res_blocks=1, codebook_size=64, resolution=16)
    from hwm.convert.magvit2 import of_size
    from hwm.types import DataSpec, LatentSpec

    theirs = config.build(DataSpec(LatentSpec((16, 16), channels=3), {})).state_dict()
    model = from_reference("magvit2", fields, theirs)
    assert model.config == config
    assert model.size == (16, 16)
    picture = torch.rand(1, 1, 3, 16, 16)
    assert torch.equal(model.encode(picture), of_size(config, theirs, (16, 16), "here").encode(picture))
    with pytest.raises(HwmError, match="one codebook"):
        from_reference("magvit2", {**fields, "num_codebooks": 2}, theirs)
    with pytest.raises(HwmError, match="ch_mult takes a list"):
        from_reference("magvit2", {**fields, "ch_mult": 2}, theirs)
