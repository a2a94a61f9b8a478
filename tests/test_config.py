"""Configs: JSON both ways, registration, and messages that help."""

from __future__ import annotations

import json
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwm.config import REGISTRY, Config, Trainable, config_from_json, from_json, registered, replace, to_json
from hwm.errors import HwmError, unknown
from hwm.types import ActionSpec, DataSpec, LatentSpec


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: int = 3
    name: str = "x"


@dataclass(frozen=True, kw_only=True)
class Outer:
    required: int
    inner: Inner = Inner()
    maybe: Inner | None = None
    number: float = 1.0
    flag: bool = False
    kind: Literal["a", "b"] = "a"
    pair: tuple[int, float] = (1, 2.0)
    many: tuple[str, ...] = ()
    nested: tuple[tuple[int, int], ...] = ()
    mapping: dict[str, Inner] = field(default_factory=dict)
    either: int | str | None = None
    listed: list[Inner] = field(default_factory=list)
    folder: Path = Path("runs")
    free: dict[str, Any] = field(default_factory=dict)


inners = st.builds(Inner, depth=st.integers(), name=st.text())
outers = st.builds(
    Outer,
    required=st.integers(),
    inner=inners,
    maybe=st.none() | inners,
    number=st.floats(allow_nan=False),
    flag=st.booleans(),
    kind=st.sampled_from(["a", "b"]),
    pair=st.tuples(st.integers(), st.floats(allow_nan=False)),
    many=st.lists(st.text()).map(tuple),
    nested=st.lists(st.tuples(st.integers(), st.integers())).map(tuple),
    mapping=st.dictionaries(st.text(), inners),
    either=st.none() | st.integers() | st.text(),
    listed=st.lists(inners),
    folder=st.sampled_from([Path("a"), Path("a/b.c")]),
    free=st.dictionaries(st.text(), st.integers() | st.text()),
)


@given(outers)
def test_json_both_ways(value: Outer) -> None:
    again = from_json(Outer, json.loads(json.dumps(to_json(value))))
    assert again == value
    assert type(again.number) is float
    assert type(again.pair) is tuple


def test_a_data_spec_survives() -> None:
    action = ActionSpec(2, ("a", "b"), (0.0, 1.5), (1.0, 0.0))
    spec = DataSpec(LatentSpec((4, 6), 25, stride=8, levels=(5, 5)), {"one": action, "two": action}, "tok@1", 3.75)
    assert from_json(DataSpec, json.loads(json.dumps(to_json(spec)))) == spec


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"required": 1, "kidn": "a"}, r"no field of Outer called 'kidn'; did you mean kind"),
        ({"required": 1, "inner": {"dept": 1}}, r"no field of Outer.inner called 'dept'; did you mean depth"),
        ({}, r"Outer lacks its field 'required'"),
        ({"required": "one"}, r"Outer.required takes int, got 'one'"),
        ({"required": True}, r"Outer.required takes int, got True"),
        ({"required": 1, "flag": 1}, r"Outer.flag takes bool"),
        ({"required": 1, "number": "1"}, r"Outer.number takes float"),
        ({"required": 1, "kind": "c"}, r"no value of Outer.kind called 'c'"),
        ({"required": 1, "pair": [1, 2.0, 3]}, r"Outer.pair takes 2 values, got 3"),
        ({"required": 1, "many": "abc"}, r"Outer.many takes a list, got 'abc'"),
        ({"required": 1, "many": 3}, r"Outer.many takes a list"),
        ({"required": 1, "inner": 5}, r"Outer.inner takes an object with fields, got 5"),
        ({"required": 1, "inner": None}, r"Outer.inner takes an object with fields, got None"),
        ({"required": 1, "mapping": [1]}, r"Outer.mapping takes an object"),
        ({"required": 1, "mapping": {"k": {"depth": "x"}}}, r"Outer.mapping\['k'\].depth takes int"),
        ({"required": 1, "either": 1.5}, r"Outer.either takes int"),
        ([1], r"Outer takes an object with fields"),
    ],
)
def test_messages_name_the_field(data: Any, message: str) -> None:
    with pytest.raises(HwmError, match=message):
        from_json(Outer, data)


def test_integers_may_stand_for_floats() -> None:
    value = from_json(Outer, {"required": 1, "number": 2})
    assert value.number == 2.0
    assert type(value.number) is float


def test_a_union_takes_each_of_its_kinds() -> None:
    assert from_json(Outer, {"required": 1, "either": "text"}).either == "text"
    assert from_json(Outer, {"required": 1, "either": 4}).either == 4
    assert from_json(Outer, {"required": 1, "either": None}).either is None


def test_what_has_no_place_in_a_config() -> None:
    with pytest.raises(TypeError, match="object has no place in a config"):
        to_json({"x": object()})


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> type[Trainable]:
    """A registered class of this test alone."""
    monkeypatch.setattr("hwm.config.REGISTRY", registry := copy(REGISTRY))

    class Model(Trainable, name="test_config_model"):
        @dataclass(frozen=True, kw_only=True)
        class Config(Config):
            dim: int = 8
            inner: Inner = Inner()

    assert registry["test_config_model"] is Model
    assert "test_config_model" not in REGISTRY
    return Model


SPEC = DataSpec(LatentSpec((1, 1), 2), {})


def test_a_config_names_its_class_and_builds_it(model: type[Trainable]) -> None:
    config = model.Config(dim=16, inner=Inner(depth=9))
    data = json.loads(json.dumps(to_json(config)))
    assert data == {"class": "test_config_model", "dim": 16, "inner": {"depth": 9, "name": "x"}}
    again = config_from_json(data)
    assert again == config
    assert isinstance(again.build(SPEC), model)
    assert again.build(SPEC).config == config


def test_unknown_classes_show_the_nearest(model: type[Trainable]) -> None:
    with pytest.raises(HwmError, match=r"no model called 'test_config_modle'; did you mean test_config_model"):
        config_from_json({"class": "test_config_modle"})
    with pytest.raises(HwmError, match="does not say which class"):
        config_from_json({"dim": 3})
    with pytest.raises(HwmError, match=r"no field of Config called 'dmi'; did you mean dim"):
        config_from_json({"class": "test_config_model", "dmi": 3})
    assert registered("test_config_model") is model


def test_a_field_of_one_config_does_not_take_another(model: type[Trainable]) -> None:
    class Other(Trainable, name="test_config_other"):
        @dataclass(frozen=True, kw_only=True)
        class Config(Config):
            pass

    data = to_json(Other.Config())
    assert from_json(Config, data) == Other.Config()
    with pytest.raises(HwmError, match=r"takes a .*Config, got that of 'test_config_other'"):
        from_json(model.Config, data)


def test_names_are_taken_once(model: type[Trainable]) -> None:
    with pytest.raises(HwmError, match="already"):

        class Second(Trainable, name="test_config_model"):
            @dataclass(frozen=True, kw_only=True)
            class Config(Config):
                pass

    with pytest.raises(TypeError, match="needs a Config of its own"):

        class Third(Trainable, name="test_config_third"):
            pass


def test_a_config_without_a_class_is_refused() -> None:
    class Unnamed(Trainable):
        @dataclass(frozen=True, kw_only=True)
        class Config(Config):
            dim: int = 1

    with pytest.raises(TypeError, match="no registered class"):
        to_json(Unnamed.Config())


def test_replace_reaches_into_nested_values() -> None:
    value = Outer(required=1, inner=Inner(depth=2, name="y"))
    new = replace(value, {"inner": {"depth": 5}, "flag": True})
    assert new == Outer(required=1, inner=Inner(depth=5, name="y"), flag=True)
    assert value.inner.depth == 2
    assert replace(value, {"inner": Inner(depth=7)}).inner == Inner(depth=7)
    assert replace(value, {"free": {"k": 1}}).free == {"k": 1}
    with pytest.raises(HwmError, match=r"no field of Inner called 'deep'; did you mean depth"):
        replace(value, {"inner": {"deep": 5}})


def test_unknown_lists_what_there_is_when_nothing_is_near() -> None:
    assert str(unknown("fruit", "zzz", ["apple", "pear"])) == "there is no fruit called 'zzz'; known: apple, pear"
    assert "none" in str(unknown("fruit", "zzz", []))
