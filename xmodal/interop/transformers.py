"""Folders that transformers opens with CLIPModel or SiglipModel, AutoTokenizer and AutoImageProcessor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from xmodal.encoders.hf import READS_PADDING
from xmodal.encoders.hf_files import config_of, quietly
from xmodal.encoders.two_tower import TwoTower
from xmodal.interop import clip, siglip
from xmodal.interop.native import open_clip_state, transformers_state
from xmodal.interop.preprocessing import to_transformers
from xmodal.interop.tokenizers import length_of, write_for_transformers
from xmodal.interop.verify import ConversionFailed, unit
from xmodal.interop.weight_map import State, translate
from xmodal.weights import save_tensors

OPEN = 'transformers.AutoModel.from_pretrained("{folder}"), and AutoProcessor with backend="pil"'


def write(towers: TwoTower, folder: Path) -> list[str]:
    """Write towers of open_clip or transformers, and return what isn't quite the same. Raises InputError for others."""
    state, values, notes = _as_transformers(towers)
    preprocess, more = to_transformers(towers.preparation, values["model_type"])
    notes += more + write_for_transformers(towers.tokenizer, folder)
    config = quietly(lambda: config_of(values))
    config.dtype = "float32"
    config.save_pretrained(str(folder))
    save_tensors(state, folder / "model.safetensors")
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocess, indent=2), encoding="utf-8")
    return notes


def embed(folder: Path, pictures: Sequence[Image.Image], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Unit rows of transformers alone: its model, Pillow processor and tokenizer."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model, told = quietly(lambda: AutoModel.from_pretrained(str(folder), output_loading_info=True))
    if wrong := sorted({*told["missing_keys"], *told["unexpected_keys"]}):
        raise ConversionFailed(f"transformers finds other tensors than it expects, such as {wrong[0]!r}.")
    model.eval()
    processor = AutoImageProcessor.from_pretrained(str(folder), backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    padding = "max_length" if model.config.model_type in READS_PADDING else True
    length = model.config.text_config.max_position_embeddings
    with torch.inference_mode():
        pixels = processor(images=list(pictures), return_tensors="pt")["pixel_values"]
        tokens = tokenizer(list(texts), padding=padding, truncation=True, max_length=length, return_tensors="pt")
        image = model.get_image_features(pixel_values=pixels).pooler_output
        return unit(image), unit(model.get_text_features(**tokens).pooler_output)


def _as_transformers(towers: TwoTower) -> tuple[State, dict[str, Any], list[str]]:
    if towers.description["kind"] == "hf":
        state, values = transformers_state(towers), dict(towers.description["config"])
    elif siglip.is_siglip(towers.image, towers.text):
        values = siglip.transformers_config(towers.image, towers.text)
        state = translate(open_clip_state(towers), siglip.RULES, "right")
    else:
        values = clip.transformers_config(towers.image, towers.text)
        state = translate(open_clip_state(towers), clip.RULES, "right")
    bias = towers.bias
    if values["model_type"] == "siglip":
        scalars = {"logit_scale": towers.log_scale, "logit_bias": torch.zeros(()) if bias is None else bias}
        return {**state, **{name: scalar.reshape(1) for name, scalar in scalars.items()}}, values, []
    lost = "transformers' CLIPModel has no bias of the logits: left out. Embeddings and rankings stay as they are."
    return {**state, "logit_scale": towers.log_scale}, values, [] if bias is None else [lost]


def reads_padding(towers: TwoTower) -> int | None:
    """How long rows are where padding is read like text; None where it has no part."""
    kind, config = towers.description["kind"], towers.description["config"]
    padded = config["model_type"] in READS_PADDING if kind == "hf" else siglip.is_siglip(towers.image, towers.text)
    return length_of(towers.tokenizer) if padded else None
