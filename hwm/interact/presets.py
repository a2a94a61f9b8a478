"""Named ways to sample a model, with what each costs and gives."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwm.config import from_json, to_json
from hwm.models.base import WorldModel
from hwm.types import HwmError

FILE = "presets.json"


@dataclass(frozen=True)
class Preset:
    """A sampler by name.

    Attributes:
        name, label: to choose it by, and to show.
        sampler: fields of the model's sampler that differ from its config's.
        figures: what was measured of it (`hwm presets --write`), or None.
    """

    name: str
    label: str
    sampler: Mapping[str, Any]
    figures: Mapping[str, Any] | None = None

    def build(self, model: WorldModel) -> Any:
        """The model's sampler with these changes; raises `HwmError` for unknown fields and values of other types."""
        default = getattr(model.config, "sampler", None)
        if default is None:
            return None
        return from_json(type(default), {**to_json(default), **self.sampler})

    def describe(self) -> dict[str, Any]:
        """What a page shows of it."""
        return {"name": self.name, "label": self.label, "figures": self.figures}


def load_presets(folder: Path, model: WorldModel) -> dict[str, Preset]:
    """The presets beside a model's weights; one of the config's own sampler where there are none.

    Raises:
        HwmError: the file is damaged, or a preset does not fit the model.
    """
    path = folder / FILE
    if not path.exists():
        return {"default": Preset("default", "Default", {})}
    try:
        presets = [from_json(Preset, plain) for plain in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise HwmError(f"{path} is not a list of presets: {error}") from error
    if not presets:
        raise HwmError(f"{path} holds no preset")
    for preset in presets:
        preset.build(model)
    return {preset.name: preset for preset in presets}
