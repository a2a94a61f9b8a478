"""Parts of other packages: found when they are asked for, by those who asked, and never because data says so."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import hwm.models
import hwm.tokenizers
from hwm import cli
from hwm.catalogue import listed
from hwm.config import REGISTRY, registered
from hwm.data.sources import SOURCES, SourceOptions, open_source
from hwm.errors import HwmError
from hwm.evaluate.metrics import METRICS
from hwm.loading import copy_weights, load, load_tokenizer
from hwm.recipes import RECIPES, find_recipe
from hwm.train.checkpoint import save_model
from tests.models.toys import toy_batch, toy_spec
from tests.outside import forgotten, install

MODEL = """
from dataclasses import dataclass
import torch
from hwm import Prediction, WorldModel

class Still(WorldModel, name="still"):
    @dataclass(frozen=True, kw_only=True)
    class Config(WorldModel.Config):
        pass

    def __init__(self, config, spec):
        super().__init__(config, spec)
        self.weight = torch.nn.Parameter(torch.zeros(3))

    def loss(self, batch):
        return self.weight.square().sum(), {}

    def predict(self, batch, **_):
        return Prediction(batch.latents[:, -1:])
"""
PARTS = """
import torch
from hwm import LatentSpec, Tokenizer
from hwm.data.sources import Source
from hwm.data.header import Header
from hwm.evaluate.metrics import Metric

class Dots(Source):
    def __init__(self, path, options):
        self.path, self.ids = path, ["one"]
        self.header = Header(embodiment="dot", action_names=("x",), actions_per_step=1, fps=1.0, source="dots")

    @classmethod
    def recognises(cls, path):
        return path.suffix == ".dots"

    def read(self, number):
        raise NotImplementedError

class Grey(Tokenizer):
    latent, size, id = LatentSpec((1, 1), 2), (8, 8), "grey"

    def encode(self, video):
        raise NotImplementedError

    def decode(self, latents):
        raise NotImplementedError

class Misnamed(Grey):
    id = "other"

def difference(pictures, truth):
    return (pictures - truth).abs().mean((-3, -2, -1))

error = Metric(difference, lower_is_better=True)
"""
RECIPE = """
from hwm.recipes import Recipe
from lab_model import Still

def still():
    "A recipe of the lab."
    return Recipe(model=Still.Config())
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Modules of a package in a folder that is on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in {"lab_model": MODEL, "lab_parts": PARTS, "lab_recipe": RECIPE, "lab_broken": "1 / 0\n"}.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    with forgotten(tmp_path):
        yield tmp_path


ALL = {
    "hwm.models": {"still": "lab_model:Still", "broken": "lab_broken:Model", "named": "lab_model:Still",
                   "gone": "lab_model:Gone", "function": "lab_parts:error"},
    "hwm.tokenizers": {"grey": "lab_parts:Grey", "misnamed": "lab_parts:Misnamed", "weights": "lab_model:Still"},
    "hwm.sources": {"dots": "lab_parts:Dots", "no-source": "lab_parts:Grey"},
    "hwm.metrics": {"error": "lab_parts:error", "number": "lab_parts:difference"},
    "hwm.recipes": {"still": "lab_recipe:still"},
}  # fmt: skip


def test_an_installed_part_is_imported_when_its_name_is_asked_for(lab: Path) -> None:
    with pytest.raises(HwmError, match=r"no model called 'still'.* known once that is installed, or by --import"):
        registered("still")
    install(lab, "the-lab", ALL)
    assert "still" in REGISTRY.names()
    assert "still" in RECIPES.names()
    assert not {"lab_model", "lab_recipe", "lab_parts", "lab_broken"} & set(sys.modules)
    assert registered("still").__name__ == "Still"
    assert not {"lab_recipe", "lab_parts", "lab_broken"} & set(sys.modules)
    assert find_recipe("still")().model == registered("still").Config()
    assert "lab_parts" not in sys.modules
    assert float(METRICS.find("error").of(torch.ones(3, 2, 2), torch.zeros(3, 2, 2))) == 1
    assert "lab_broken" not in sys.modules


def test_a_tokenizer_by_name(lab: Path) -> None:
    install(lab, "the-lab", ALL)
    assert load_tokenizer("grey").id == "grey"
    with pytest.raises(HwmError, match=r"Misnamed.* makes no tokenizer whose id is 'misnamed'"):
        load_tokenizer("misnamed")
    with pytest.raises(HwmError, match="'weights' is a kind of tokenizer with weights: give the folder"):
        load_tokenizer("weights")
    with pytest.raises(HwmError, match="no tokenizer called 'gray'; did you mean grey"):
        load_tokenizer("gray")


def test_a_source_is_recognised_and_taken_by_name(lab: Path) -> None:
    install(lab, "the-lab", {"hwm.sources": {"dots": "lab_parts:Dots"}})
    (lab / "a.dots").touch()
    (lab / "b.else").touch()
    assert open_source(lab / "a.dots").header.embodiment == "dot"
    assert open_source(lab / "b.else", SourceOptions(kind="dots")).header.embodiment == "dot"
    with pytest.raises(HwmError, match=r"is none of the known kinds of data .*dots"):
        open_source(lab / "b.else")


@pytest.mark.parametrize(
    ("find", "name", "message"),
    [
        (
            registered,
            "broken",
            "'broken', lab_broken:Model of the-lab, cannot be imported: ZeroDivisionError",
        ),
        (registered, "gone", r"the model 'gone', lab_model:Gone of the-lab, cannot be imported: AttributeError"),
        (registered, "function", "is none: it is no subclass of hwm.config.Trainable"),
        (registered, "named", "the model 'named', lab_model:Still of the-lab, is none: its class calls itself 'still'"),
        (SOURCES.find, "no-source", "the kind of source 'no-source', .* it is no subclass of hwm.data.sources.Source"),
        (METRICS.find, "number", "the metric 'number', .* it is no hwm.evaluate.metrics.Metric"),
        (METRICS.find, "eror", "no metric called 'eror'; did you mean error"),
    ],
)
def test_what_is_wrong_with_a_part_is_told(lab: Path, find, name: str, message: str) -> None:
    install(lab, "the-lab", ALL)
    with pytest.raises(HwmError, match=message):
        find(name)


def test_two_packages_cannot_offer_one_name(lab: Path) -> None:
    install(lab, "the-lab", {"hwm.models": {"still": "lab_model:Still"}})
    install(lab, "the-same", {"hwm.models": {"still": "lab_model:Still"}})
    assert registered("still").__name__ == "Still"
    install(lab, "another", {"hwm.models": {"still": "other:Still", "genie": "other:Genie"}})
    both = "'still' is offered twice, (lab_model:Still of the-lab and other:Still of another|other.* and lab_model.*)"
    with pytest.raises(HwmError, match=both):
        registered("still")
    with pytest.raises(HwmError, match=r"'genie' is offered twice, .*:Genie of this package and other:Genie of an"):
        registered("genie")


def test_a_package_that_fails_hides_no_recipe_of_others(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (lab / "plain.py").write_text("def plain():\n    pass\n", encoding="utf-8")  # without a docstring
    install(
        lab, "the-lab", {"hwm.recipes": {"plain": "plain:plain", "still": "lab_recipe:still", "bad": "lab_broken:x"}}
    )
    assert cli.main(["recipes"]) == 0
    said = capsys.readouterr()
    assert all(name in said.out for name in ("plain", "A recipe of the lab.", "masked_hwm_toy"))
    assert not {"plain", "lab_recipe"} & set(sys.modules), "their sources could be read"
    assert "note: the recipe 'bad', lab_broken:x of the-lab, cannot be imported: ZeroDivisionError" in said.err
    assert cli.main(["recipes", "bad"]) == 2, "it was asked for by name"


def test_a_checkpoint_says_whose_it_is_and_imports_nothing(lab: Path) -> None:
    with forgotten(lab):
        import lab_model  # type: ignore[import-not-found]

        model = lab_model.Still.Config().build(toy_spec())
        save_model("run", model)
    assert json.loads((lab / "run" / "hwm.json").read_text(encoding="utf-8"))["module"] == "lab_model"
    for use in (load, lambda run: copy_weights(run, model)):
        with pytest.raises(HwmError, match=r"run/hwm.json: there is no model called 'still'.*give --import lab_model"):
            use("run")
    assert "lab_model" not in sys.modules, "data named it; nobody asked for it"
    cli.main(["--import", "lab_model", "--version"])
    assert "lab_model" not in sys.modules, "no verb was run"
    assert cli.main(["recipes", "masked_hwm_toy", "--import=lab_model"]) == 0
    out = load("run").predict(toy_batch(toy_spec(), 2))
    assert out.latents.shape[1] == 1


def test_a_checkpoint_of_this_package_names_no_module(tmp_path: Path) -> None:
    save_model(tmp_path, registered("masked_hwm").tiny().build(toy_spec()))  # type: ignore[attr-defined]
    assert "module" not in json.loads((tmp_path / "hwm.json").read_text(encoding="utf-8"))


def test_modules_are_named_before_or_after_the_verb() -> None:
    words = ["--import", "a", "train", "toy", "--import=b.c", "--out", "x", "--import", "d"]
    assert cli.named_modules(words) == (["a", "b.c", "d"], ["train", "toy", "--out", "x"])
    for wrong in (["train", "--import"], ["--import", "--out"], ["--import="]):
        with pytest.raises(HwmError, match="--import takes the name of a module"):
            cli.named_modules(wrong)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("lab_broken", "cannot import 'lab_broken': ZeroDivisionError: division by zero"),
        ("lab_nowhere", "cannot import 'lab_nowhere': ModuleNotFoundError"),
        ("lab_model.py", "name it as Python does, without .py"),
    ],
)
def test_a_module_that_cannot_be_imported(lab: Path, capsys, module: str, message: str) -> None:
    assert cli.main(["recipes", "masked_hwm_toy", "--import", module]) == 2
    assert message in capsys.readouterr().err


def test_the_working_folder_is_searched_last(lab: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (lab / "mine").mkdir()
    (lab / "mine" / "my_recipes.py").write_text(RECIPE, encoding="utf-8")
    (lab / "mine" / "lab_model.py").write_text(
        "raise SystemExit('this is not the one that is installed')", encoding="utf-8"
    )
    monkeypatch.chdir(lab / "mine")
    assert cli.main(["recipes", "my_recipes:still"]) == 0
    assert "A recipe of the lab." in capsys.readouterr().out


def test_our_own_families_are_all_listed_and_where_the_list_says() -> None:
    for entry in REGISTRY.shipped:
        assert registered(entry.name) is entry.load()
    for room in (hwm.models, hwm.tokenizers):
        for file in pkgutil.iter_modules(room.__path__, f"{room.__name__}."):
            __import__(file.name)
    ours = {name for name, kind in REGISTRY.items() if kind.__module__.startswith(("hwm.models.", "hwm.tokenizers."))}
    assert ours == {entry.name for entry in REGISTRY.shipped}


def test_our_own_recipes_are_all_listed_and_where_the_list_says() -> None:
    for file in pkgutil.iter_modules(hwm.recipes.__path__, "hwm.recipes."):
        __import__(file.name)  # which registers what it has
    places = {entry.name: entry.module for entry in RECIPES.shipped}
    assert places == {name: f.__module__ for name, f in RECIPES.items() if f.__module__.startswith("hwm.recipes.")}


def test_what_is_said_of_recipes_is_read_or_else_asked(lab: Path) -> None:
    """Where the source does not show a function of that name, it is imported for its docstring."""
    room = lab / "lab_room"
    room.mkdir()
    (room / "__init__.py").write_text("raise RuntimeError('only the file of the recipe is read')", encoding="utf-8")
    (room / "runs.py").write_text(f'"""Runs of the lab.\n\nMore.\n"""\n{RECIPE}', encoding="utf-8")
    (lab / "lab_made.py").write_text("from lab_recipe import still as made\n", encoding="utf-8")
    (lab / "lab_torn.py").write_text("def torn(:\n", encoding="utf-8")
    names = {"read": "lab_room.runs:still", "made": "lab_made:made", "torn": "lab_torn:torn", "gone": "lab_gone.a:b"}
    install(lab, "the-lab", {"hwm.recipes": names})
    RECIPES["mine"] = lambda: None
    notes: list[HwmError] = []
    assert listed(["read", "made", "mine", "torn", "gone"], notes.append) == [
        ("read", "A recipe of the lab.", "Runs of the lab."),
        ("made", "A recipe of the lab.", "lab_recipe"),
        ("mine", "", __doc__.strip()),
    ]
    assert [str(note).partition(", cannot")[0] for note in notes] == [
        "the recipe 'torn', lab_torn:torn of the-lab",
        "the recipe 'gone', lab_gone.a:b of the-lab",
    ]


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("from hwm import cli; cli.main(['--help'])", ("torch", "tyro", "numpy")),
        ("import hwm", ("torch", "numpy")),
        ("from hwm.catalogue import find_recipe as f; f('genie_35m')", ("hwm.recipes.hma", "hwm.models.hma_discrete")),
        ("import hwm.models, hwm.tokenizers, hwm.config", ("hwm.models.genie", "hwm.tokenizers.cosmos", "hwm.nn")),
    ],
)
def test_what_is_not_asked_for_is_not_imported(statement: str, unwanted: tuple[str, ...]) -> None:
    code = f"{statement}\nimport sys\nassert not {set(unwanted)!r} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
