"""Folders that open_clip opens as `local-dir:FOLDER` and, on a hub, as `hf-hub:ORG/REPO`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from xmodal.encoders.two_tower import TwoTower
from xmodal.interop import clip, siglip
from xmodal.interop.native import open_clip_state, transformers_state
from xmodal.interop.preprocessing import to_open_clip
from xmodal.interop.tokenizers import write_for_open_clip
from xmodal.interop.verify import unit
from xmodal.interop.weight_map import State, translate
from xmodal.weights import save_tensors

OPEN = 'open_clip.create_model_and_transforms("local-dir:{folder}")'


def write(towers: TwoTower, folder: Path) -> list[str]:
    """Write towers of open_clip or transformers, and return what isn't quite the same. Raises InputError for others."""
    state, config, notes = _as_open_clip(towers)
    preprocess, more = to_open_clip(towers.preparation)
    notes += more + write_for_open_clip(towers.tokenizer, folder, config["text_cfg"])
    save_tensors(_plain(state, config), folder / "open_clip_model.safetensors")
    told = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(told, indent=2), encoding="utf-8")
    return notes


def embed(folder: Path, pictures: Sequence[Image.Image], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Unit rows of open_clip alone: its model, preprocessing and tokenizer."""
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    prepare: Any = preprocess
    model.eval()
    with torch.inference_mode():
        pixels = torch.stack([prepare(picture) for picture in pictures])
        return unit(model.encode_image(pixels)), unit(model.encode_text(tokenizer(list(texts))))  # pyright: ignore


def _as_open_clip(towers: TwoTower) -> tuple[State, dict[str, Any], list[str]]:
    config, notes = deepcopy(towers.description["config"]), []
    if towers.description["kind"] == "open_clip":
        state = open_clip_state(towers)
    elif config["model_type"] == "siglip":
        state = translate(transformers_state(towers), siglip.RULES, "left")
        config, notes = siglip.open_clip_config(config)
    else:
        state = translate(transformers_state(towers), clip.RULES, "left")
        config = clip.open_clip_config(config)
    state["logit_scale"] = towers.log_scale
    if towers.bias is not None:
        state["logit_bias"] = towers.bias
        config.setdefault("init_logit_bias", 0.0)  # without it, open_clip makes no place for a bias
    return state, config, notes


def _plain(state: State, config: dict[str, Any]) -> State:
    """The text tower's names as they are in open_clip's plain CLIP class, which has no such part."""
    if not config.get("custom_text") and "hf_model_name" not in config["text_cfg"]:
        state = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    return {name: tensor.contiguous() for name, tensor in state.items()}
