"""Image towers of timm, by name or from a folder in the hub's form.

Spec: `timm:NAME` (its weights are fetched where timm has some), `timm:NAME/random`, or `timm:FOLDER` with a config.json
and model.safetensors.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from xmodal.encoders.half import Half
from xmodal.encoders.preparation import Preparation
from xmodal.errors import InputError, nearest


def timm_image(name: str) -> Half:
    """A tower with its weights, and how it sees. Raises InputError for a name or folder that holds none."""
    import timm

    if os.path.isdir(name):
        return _from_hub_folder(Path(name))
    model_name, _, random = name.partition("/")
    if random not in ("", "random"):
        raise InputError(f"timm:{name}: there is no folder {name}; and a model is timm:NAME or timm:NAME/random.")
    if model_name.partition(".")[0] not in timm.list_models():
        raise InputError(f"timm has no model {model_name!r}; {nearest(model_name, timm.list_models())}")
    try:
        model = timm.create_model(model_name, pretrained=not random, num_classes=0)
    except Exception as error:  # hubs and files fail in many ways, each with its own class
        raise InputError(f"timm:{name} cannot be opened: {str(error).splitlines()[0]}") from error
    return _half(model, {"kind": "timm", "name": name, "architecture": model_name.partition(".")[0], "options": {}})


def timm_from_folder(description: dict[str, Any]) -> Half:
    """A tower that a run folder's model.json describes, without weights."""
    import timm

    model = timm.create_model(description["architecture"], pretrained=False, num_classes=0, **description["options"])
    return _half(model, description)


def _from_hub_folder(folder: Path) -> Half:
    """What timm.save_for_hf wrote: the classifier is left out, every other tensor must be there."""
    import timm
    from safetensors.torch import load_file

    try:
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture = told["architecture"]
    except (OSError, ValueError, KeyError):
        raise InputError(f"{folder} is no model of timm: it has no config.json that names an architecture.") from None
    if architecture not in timm.list_models():
        raise InputError(f"{folder}/config.json: timm has no model {architecture!r}.")
    if not (folder / "model.safetensors").is_file():
        raise InputError(f"{folder} has no model.safetensors; weights in pickles are not opened.")
    options = {k: v for k, v in told.get("model_args", {}).items() if k != "num_classes"}
    model = timm.create_model(architecture, pretrained=False, num_classes=0, **options)
    found = load_file(folder / "model.safetensors")
    told_of = model.load_state_dict(found, strict=False)
    if told_of.missing_keys:
        raise InputError(f"{folder}/model.safetensors is of another model: it lacks {told_of.missing_keys[0]!r}.")
    description = {"kind": "timm", "name": str(folder), "architecture": architecture, "options": options}
    return _half(model, description, told.get("pretrained_cfg"))


def _half(model: Any, description: dict[str, Any], seen: dict[str, Any] | None = None) -> Half:
    from timm.data.config import resolve_model_data_config

    if "preparation" in description:
        preparation = Preparation.from_json(description["preparation"])
    else:
        if seen:
            model.pretrained_cfg = {**model.pretrained_cfg, **seen}
        told = resolve_model_data_config(model)
        _, height, width = told["input_size"]
        squash = told["crop_mode"] == "squash"
        edge = math.floor(height / told["crop_pct"])
        preparation = Preparation(
            height,
            width,
            mean=tuple(told["mean"]),
            std=tuple(told["std"]),
            interpolation="bilinear" if told["interpolation"] == "bilinear" else "bicubic",
            resize="squash" if squash else "shortest",
            edge=None if squash or edge == height == width else edge,
        )
    return Half(model, model.num_features, description, preparation=preparation)
