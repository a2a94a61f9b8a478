"""Configs: frozen dataclasses nested in the class they configure, with a public name and JSON both ways."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, Union

from torch import Tensor, nn

from hwm.errors import HwmError, unknown
from hwm.plugins import Table, own
from hwm.types import Batch, DataSpec

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What a trainable class needs besides the sizes that data decides. Subclass it inside that class."""

    owner: ClassVar[type[Trainable]]
    #: fields that matter to training alone, and what a validation loss has instead; subclasses add to it
    in_validation: ClassVar[Mapping[str, Any]] = {}
    #: fields that older versions wrote though this class could not heed them, and the one value that they had
    retired: ClassVar[Mapping[str, Any]] = {}
    #: fields that older versions wrote under another name, and today's; subclasses add to it
    renamed: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def todays_name(cls, field: str) -> str:
        """The name that a field has today; its own where it was not renamed."""
        for each in cls.__mro__:
            if field in vars(each).get("renamed", {}):
                name: str = vars(each)["renamed"][field]
                return name
        return field

    def for_validation(self) -> Self:
        """The same config with the `in_validation` of all its classes."""
        changes: dict[str, Any] = {}
        for cls in reversed(type(self).__mro__):
            changes.update(vars(cls).get("in_validation", {}))
        return dataclasses.replace(self, **changes)

    def build(self, spec: DataSpec) -> Any:
        """The module that this config describes, for data of this spec, on the current default device."""
        return self.owner(self, spec)


class Trainable(nn.Module):
    """Anything the trainer can train and a checkpoint can hold: a module with a nested Config and a loss.

    Subclasses with a `Config` of their own are registered under `name` (class keyword), which is what checkpoints
    record: never a module path.
    """

    Config: ClassVar[type[Config]] = Config
    name: ClassVar[str]
    #: prefixes of the submodules whose matrices are not hidden ones: Muon leaves them to AdamW
    adamw_only: ClassVar[tuple[str, ...]] = ()
    #: prefixes of the submodules that begin at random where the weights to begin from have none of them
    fresh: ClassVar[tuple[str, ...]] = ()
    #: prefixes of the layers among `adamw_only` that read features of the model's width: hidden ones to muP
    mup_hidden: tuple[str, ...] = ()
    #: identity (NAME@FINGERPRINT) of the weights that a run has to begin from, as it keeps some of them; "" for any
    keeps: str = ""
    #: how much wider than the model that the learning rate was found for (muP): AdamW divides that of hidden matrices
    mup_width: float = 1.0

    def __init_subclass__(cls, *, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is None:
            return
        taken = REGISTRY.get(name, cls)
        if (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise HwmError(f"{cls.__module__}.{cls.__qualname__} cannot be called {name!r}: that is already {taken}")
        if "Config" not in cls.__dict__:
            raise TypeError(f"{cls.__name__} needs a Config of its own to be registered as {name!r}")
        cls.name = name
        cls.Config.owner = cls
        REGISTRY[name] = cls

    def __init__(self, config: Any, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.spec = config, spec

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar training loss, and detached scalars worth logging."""
        raise NotImplementedError

    def validation_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss by which runs are compared: without what a config adds for training alone (`Config.in_validation`).

        What is drawn for it, masks, noise and times, are the same draws whatever that is. In evaluation mode.
        """
        with self.configured(self.config.for_validation()):
            return self.loss(batch)

    @contextmanager
    def configured(self, config: Any) -> Iterator[None]:
        """Go by another config for a while; it must be one of the same parameters."""
        own, self.config = self.config, config
        try:
            yield
        finally:
            self.config = own

    def units(self) -> Iterable[nn.Module]:
        """The large repeated parts, in order: what activation checkpointing recomputes and sharding splits by."""
        return ()

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The trainer calls the module itself, so that wrappers' hooks (DDP, FSDP2) run."""
        return self.loss(batch)


def _wrong(name: str, part: Any) -> str:
    if not (isinstance(part, type) and issubclass(part, Trainable) and "name" in part.__dict__):
        return "it is no subclass of hwm.config.Trainable with a public name"
    return "" if part.name == name else f"its class calls itself {part.name!r}"


GROUPS = ("hwm.models", "hwm.tokenizers")
REGISTRY: Table[type[Trainable]] = Table("model", GROUPS, _wrong, shipped=[e for g in GROUPS for e in own(g)])
"""Trainable classes by their public names."""


def registered(name: str) -> type[Trainable]:
    """The trainable class of a public name, imported if it is not yet.

    Raises:
        HwmError: nobody offers one.
    """
    return REGISTRY.find(name)


def replace(value: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of a (nested) frozen dataclass with some fields changed; a mapping changes a nested dataclass."""
    names = {f.name for f in dataclasses.fields(value)}
    for key in changes:
        if key not in names:
            raise unknown(f"field of {type(value).__qualname__}", key, names)
    new = {
        k: replace(getattr(value, k), v)
        if isinstance(v, Mapping) and dataclasses.is_dataclass(getattr(value, k))
        else v
        for k, v in changes.items()
    }
    return dataclasses.replace(value, **new)


def parse_changes(value: Any, words: Iterable[str]) -> dict[str, Any]:
    """`NAME=VALUE` words as changes of a dataclass's fields, each value of its field's type.

    Raises:
        HwmError: a word without "=", an unknown field, or a value of another type.
    """
    hints = typing.get_type_hints(type(value))
    changes = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise HwmError(f"write {word!r} as NAME=VALUE")
        if name not in hints:
            raise unknown(f"field of {type(value).__qualname__}", name, hints)
        try:
            plain = json.loads(text)
        except json.JSONDecodeError:
            plain = text
        changes[name] = _decode(hints[name], plain, name)
    return changes


def to_json(value: Any) -> Any:
    """Dataclasses, tuples and mappings as plain JSON values. Configs carry the public name of their owner."""
    if isinstance(value, Config):
        if not hasattr(value, "owner"):
            raise TypeError(f"{type(value).__qualname__} belongs to no registered class: give that class a public name")
        fields = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": value.owner.name, **fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if _is_said(f, value)}
        return {name: to_json(v) for name, v in fields.items()}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no place in a config: {value!r}")


def _is_said(field: dataclasses.Field[Any], value: Any) -> bool:
    """Whether a field is written: those that came later and change nothing by default are left out where they do."""
    return not field.metadata.get("unsaid") or getattr(value, field.name) != field.default


def from_json(cls: type[T], data: Any) -> T:
    """The inverse of `to_json` for a value of type `cls`; unknown and missing fields are errors with their names."""
    return _decode(cls, data, cls.__name__)


def config_from_json(data: Mapping[str, Any]) -> Config:
    """A Config from its JSON, of whatever registered class it names."""
    if "class" not in data:
        raise HwmError("this config does not say which class it belongs to (key 'class')")
    return from_json(registered(data["class"]).Config, {k: v for k, v in data.items() if k != "class"})


def _decode(hint: Any, data: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _decode_union(args, data, where)
    if origin is typing.Literal:
        if data not in args:
            raise unknown(f"value of {where}", str(data), map(str, args))
        return data
    if dataclasses.is_dataclass(hint):
        if not isinstance(data, Mapping):
            raise HwmError(f"{where} takes an object with fields, got {data!r}")
        if isinstance(hint, type) and issubclass(hint, Config) and "class" in data:
            config = config_from_json(data)
            if not isinstance(config, hint):
                raise HwmError(f"{where} takes a {hint.__qualname__}, got that of {data['class']!r}")
            return config
        hints = typing.get_type_hints(hint)
        fields = {f.name: f for f in dataclasses.fields(hint)}
        if isinstance(hint, type) and issubclass(hint, Config):
            data = _todays_names(hint, data, where)
        retired = getattr(hint, "retired", {})
        data = {k: v for k, v in data.items() if k in fields or k not in retired or v != retired[k]}
        for key in data:
            if key not in fields:
                raise unknown(f"field of {where}", key, fields)
        required = (dataclasses.MISSING, dataclasses.MISSING)
        for name, f in fields.items():
            if name not in data and (f.default, f.default_factory) == required:
                raise HwmError(f"{where} lacks its field {name!r}")
        return hint(**{k: _decode(hints[k], v, f"{where}.{k}") for k, v in data.items()})  # type: ignore[operator]
    if origin in (tuple, list):
        if not isinstance(data, (list, tuple)):
            raise HwmError(f"{where} takes a list, got {data!r}")
        if origin is list:
            return [_decode(args[0], v, where) for v in data]
        inner = [args[0]] * len(data) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(inner) != len(data):
            raise HwmError(f"{where} takes {len(inner)} values, got {len(data)}")
        return tuple(_decode(a, v, where) for a, v in zip(inner, data, strict=True))
    if origin is dict:
        if not isinstance(data, Mapping):
            raise HwmError(f"{where} takes an object, got {data!r}")
        return {k: _decode(args[1], v, f"{where}[{k!r}]") for k, v in data.items()}
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if hint is Path and isinstance(data, str):
        return Path(data)
    if hint in (int, float, str, bool) and type(data) is not hint:
        raise HwmError(f"{where} takes {hint.__name__}, got {data!r}")
    return data


def _todays_names(cls: type[Config], data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a config under the names that they have today, with a note of those that have changed."""
    old = {k: new for k in data if (new := cls.todays_name(k)) != k}
    for before, now in old.items():
        if now in data:
            raise HwmError(f"{where} has both {before!r} and {now!r}, today's name for it: give one")
    if old:
        said = ", ".join(f"{before} is now {now}" for before, now in old.items())
        print(f"note: {where} uses names of an earlier version: {said}", file=sys.stderr)
    return {old.get(k, k): v for k, v in data.items()}


def _decode_union(args: tuple[Any, ...], data: Any, where: str) -> Any:
    """The first alternative that takes the data; where none does, the complaint of the first that might have."""
    if data is None and type(None) in args:
        return None
    first: HwmError | None = None
    for alternative in (a for a in args if a is not type(None)):
        try:
            return _decode(alternative, data, where)
        except HwmError as error:
            first = first or error
    raise first or HwmError(f"{where} takes nothing but null, got {data!r}")


__all__ = [
    "REGISTRY",
    "Config",
    "Trainable",
    "config_from_json",
    "from_json",
    "registered",
    "replace",
    "to_json",
    "unknown",
]
