"""Towers of open_clip's model library, random or pretrained, with their preprocessing and tokenizer.

Specs: `open_clip:MODEL`, `open_clip:MODEL/PRETRAINED`, `open_clip:local-dir:FOLDER`, `open_clip:hf-hub:ORG/REPO`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor

from xmodal.encoders.preparation import Preparation
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import InputError, nearest


class OpenClipTokenizer:
    """One of open_clip's tokenizers under the interface of ours."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(m) strings -> (m, context length) long."""
        return self.tokenizer(list(texts))

    def save(self, folder: Path) -> None:
        """CLIP's byte pairs ship with open_clip; a tokenizer of transformers is written into the folder."""
        if hasattr(self.tokenizer, "save_pretrained"):
            self.tokenizer.save_pretrained(str(folder))


def open_clip_towers(name: str) -> TwoTower:
    """Build the towers of a spec's part after `open_clip:`, with weights where it names some.

    Raises InputError for a model or weights that open_clip doesn't know or can't open.
    """
    import open_clip

    architecture, pretrained = name, None
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise InputError(f"{folder} holds no open_clip_config.json, so it is no folder that open_clip saved.")
    elif not name.startswith("hf-hub:"):
        architecture, _, pretrained = name.partition("/")
        known = open_clip.list_models()
        if architecture not in known:
            raise InputError(f"open_clip has no model {architecture!r}; {nearest(architecture, known)}")
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if pretrained and pretrained not in tags:
            raise InputError(f"open_clip has no weights {pretrained!r} of {architecture}; {nearest(pretrained, tags)}")
    try:
        model = open_clip.create_model(architecture, pretrained=pretrained or None, force_custom_text=True)
        config = _config(architecture)
        tokenizer = open_clip.get_tokenizer(architecture)
    except Exception as error:  # hubs, files and configurations fail in many ways, each with its own class
        raise InputError(f"open_clip cannot open {name!r}: {str(error).splitlines()[0]}") from error
    return _wrap(model, {"kind": "open_clip", "name": name, "config": config}, tokenizer)


def open_clip_from_folder(folder: Path, description: dict[str, Any]) -> TwoTower:
    """Build the towers that a run folder's model.json describes, without weights and without a network."""
    import open_clip
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    config = deepcopy(description["config"])
    text = config["text_cfg"]
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
    known = inspect.signature(open_clip.CustomTextCLIP).parameters
    model = open_clip.CustomTextCLIP(**{name: value for name, value in config.items() if name in known})
    options = {"context_length": model.context_length, **text.get("tokenizer_kwargs", {})}
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = HFTokenizer(str(folder), tokenizer_mode=text.get("tokenizer_mode"), **options)
    else:
        tokenizer = SimpleTokenizer(**options)
    return _wrap(model, description, tokenizer)


def _wrap(model: Any, description: dict[str, Any], tokenizer: Any) -> TwoTower:
    import open_clip
    from open_clip.model import get_model_preprocess_cfg

    if not isinstance(model, open_clip.CustomTextCLIP):
        raise InputError(f"open_clip's {description['name']} is a {type(model).__name__}, which is no dual encoder.")
    if "preparation" in description:
        preparation = Preparation.from_json(description["preparation"])
    else:
        size: Any = model.visual.image_size
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        seen = get_model_preprocess_cfg(model)
        preparation = Preparation(
            height,
            width,
            mean=tuple(seen.get("mean") or open_clip.OPENAI_DATASET_MEAN),
            std=tuple(seen.get("std") or open_clip.OPENAI_DATASET_STD),
            interpolation="bilinear" if seen.get("interpolation") == "bilinear" else "bicubic",
            resize=seen.get("resize_mode") or "shortest",
            fill=seen.get("fill_color") or 0,
        )
    towers = TwoTower(
        model.visual,
        model.text,
        preparation=preparation,
        tokenizer=OpenClipTokenizer(tokenizer),
        description=description,
    )
    towers.log_scale.copy_(model.logit_scale.detach().squeeze())
    return towers


def _config(architecture: str) -> dict[str, Any]:
    import open_clip
    from open_clip.factory import _get_hf_config

    if architecture.startswith("local-dir:"):
        file = Path(architecture.removeprefix("local-dir:")) / "open_clip_config.json"
        return json.loads(file.read_text())["model_cfg"]
    if architecture.startswith("hf-hub:"):
        return _get_hf_config(architecture.removeprefix("hf-hub:"))["model_cfg"]
    return open_clip.get_model_config(architecture) or {}
