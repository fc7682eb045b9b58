"""What a run folder tells of how its model came about, without paths and tokens of the machine it was trained on."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from xmodal.config import RECIPE_KEY, VERSION_KEY
from xmodal.encoders.hub import PREFIX
from xmodal.errors import InputError
from xmodal.interop.disclosure import paths_in, short, shortened


@dataclass(frozen=True)
class Origin:
    """spec: what was opened, "" for a model made in Python. Of a model that is no run, the rest is empty.

    config: the resolved settings; told: scores.json. rows, batch: of the data and of a step over all processes.
    starts: specs of the models that it began with, or is; base_models, datasets: what the hub calls them and the data.
    """

    spec: str = ""
    recipe: str | None = None
    version: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)
    rows: int | None = None
    batch: int | None = None
    steps: int | None = None
    starts: Sequence[str] = ()
    base_models: Sequence[str] = ()
    datasets: Sequence[str] = ()

    @property
    def scores(self) -> Mapping[str, Mapping[str, Any]]:
        return self.told.get("scores") or {}

    @property
    def protocol(self) -> Mapping[str, Any]:
        return self.told.get("protocol") or {}


def origin_of(spec: str, folder: str) -> Origin:
    """What is known of a spec that lies in a folder, or isn't any. Raises InputError for damaged files."""
    place = Path(folder)
    if not place.is_dir():
        return Origin(short(spec), starts=[short(spec)], base_models=_names([spec]))
    config, told, state = _yaml(place / "config.yaml"), _json(place / "scores.json"), _last_state(place)
    known = {str(place.resolve()): place.name, str(place): place.name} if len(place.parts) > 1 else {}
    known = dict(sorted({**paths_in(config), **known}.items(), key=lambda item: -len(item[0])))
    version, recipe = (config.pop(key, None) for key in (VERSION_KEY, RECIPE_KEY))
    towers = [config.get("image_tower"), config.get("text_tower")]
    starts = [one for one in (towers if any(towers) else [config.get("model")]) if one and not _is_fresh(one)]
    named = {name: short(value) if isinstance(value, str) else value for name, value in config.items()}
    return Origin(
        spec if spec.startswith(PREFIX) else short(spec),
        recipe if re.fullmatch(r"\w+", str(recipe)) else None,
        version,
        shortened(named, known),
        shortened(told, known),
        *(state.get(name) for name in ("rows", "batch", "step")),
        starts=[short(one) for one in starts],
        base_models=_names(starts, bare=not spec.startswith(PREFIX)),
        datasets=_datasets(str(config.get("data", ""))),
    )


def _is_fresh(spec: str) -> bool:
    """Whether it names an architecture alone, whose weights are random."""
    kind, _, name = spec.partition(":")
    if kind == "open_clip":
        return "/" not in name and not name.startswith("local-dir:")
    return spec == "small" or (kind == "timm" and name.endswith("/random"))


def _names(specs: Sequence[str], bare: bool = True) -> list[str]:
    """What the hub calls models. bare: whether st:NAME may be one of sentence-transformers' own; in settings that
    `short` has been over it may be a folder's name."""
    found = []
    for spec in specs:
        kind, _, name = spec.partition(":")
        if kind == "open_clip" and not name.startswith(("hf-hub:", "local-dir:")):
            import open_clip

            architecture, _, pretrained = name.partition("/")
            name = str((open_clip.get_pretrained_cfg(architecture, pretrained) or {}).get("hf_hub") or "").strip("/")
        elif kind == "st" and bare and re.fullmatch(r"\w[\w.-]*", name) and not os.path.isdir(name):
            name = f"sentence-transformers/{name}"
        name = name.removeprefix("hf-hub:").partition("@")[0]
        if kind in ("hub", "hf", "st", "open_clip") and _is_id(name):
            found.append(name)
    return found


def _datasets(data: str) -> list[str]:
    named = [re.match(r"(?:hf-dataset:|hf://datasets/)([^@,]+)", part) for part in data.split("::")]
    names = ["/".join(found[1].split("/")[:2] if "://" in found[0] else [found[1]]) for found in named if found]
    return [name for name in names if _is_id(name)]


def _is_id(name: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", name, re.ASCII) is not None and not os.path.isdir(name)


def _last_state(folder: Path) -> dict[str, Any]:
    states = sorted(folder.glob("checkpoints/step-*/state.json"), key=lambda file: int(file.parent.name[5:]))
    return _json(states[-1]) if states else {}


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is damaged: {error}") from None
    return found if isinstance(found, dict) else {}


def _yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    return dict(found) if isinstance(found, dict) else {}
