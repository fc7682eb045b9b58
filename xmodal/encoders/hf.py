"""Models of transformers: CLIP and SigLIP as pairs of towers, others as one tower of a pair.

Spec: `hf:ID_OR_FOLDER`, a hub's id with `@REVISION` where one is meant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xmodal.encoders.half import Half
from xmodal.encoders.hf_files import (
    HfTokenizer,
    auto_model,
    config_of,
    quietly,
    read_config,
    read_model,
    read_preparation,
    read_tokenizer,
)
from xmodal.encoders.lengths import NOTHING
from xmodal.encoders.pooling import TextPooling, pool
from xmodal.encoders.preparation import Preparation
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import InputError

DUAL = ("clip", "siglip")
# Rows of these towers were padded to the full length in training and read the padding (SigLIP's page on the hub).
READS_PADDING = ("siglip",)


class DualImage(nn.Module):
    """The image half of a CLIPModel or SiglipModel, its parts under their names there."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_model = model.vision_model
        if hasattr(model, "visual_projection"):
            self.visual_projection = model.visual_projection

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, 3, h, w) -> (b, d)."""
        rows = self.vision_model(pixel_values=pixels).pooler_output
        return self.visual_projection(rows) if hasattr(self, "visual_projection") else rows

    def set_grad_checkpointing(self, on: bool = True) -> None:
        _checkpointing(self.vision_model, on)


class DualText(nn.Module):
    """The text half of a CLIPModel or SiglipModel, its parts under their names there."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.text_model = model.text_model
        if hasattr(model, "text_projection"):
            self.text_projection = model.text_projection

    def forward(self, tokens: Tensor) -> Tensor:
        """(b, l) -> (b, d). CLIP's tower is causal and reads the first end mark, so what follows it has no part."""
        rows = self.text_model(input_ids=tokens.clamp(min=0)).pooler_output
        return self.text_projection(rows) if hasattr(self, "text_projection") else rows

    def set_grad_checkpointing(self, on: bool = True) -> None:
        _checkpointing(self.text_model, on)


class ImageFeatures(nn.Module):
    """Any image model of transformers: what it pools, or else its first place; (b, 3, h, w) -> (b, width)."""

    def __init__(self, model: Any, pooled: bool) -> None:
        super().__init__()
        self.model, self.pooled = model, pooled

    def forward(self, pixels: Tensor) -> Tensor:
        told = self.model(pixel_values=pixels)
        return told.pooler_output.flatten(1) if self.pooled else told.last_hidden_state[:, 0]

    def set_grad_checkpointing(self, on: bool = True) -> None:
        _checkpointing(self.model, on)


class TextFeatures(nn.Module):
    """Any text encoder of transformers and a pooling of its last layer; (b, l) -> (b, width)."""

    def __init__(self, model: Any, pooling: TextPooling) -> None:
        super().__init__()
        self.model = model
        self.pooling: TextPooling = pooling

    def forward(self, tokens: Tensor) -> Tensor:
        real = tokens != NOTHING  # (b, l)
        places = self.model(input_ids=tokens.clamp(min=0), attention_mask=real.long()).last_hidden_state
        return pool(places, real, self.pooling)

    def set_grad_checkpointing(self, on: bool = True) -> None:
        _checkpointing(self.model, on)


def hf_towers(name: str) -> TwoTower:
    """Both towers of a CLIP or SigLIP model, with weights. Raises InputError for what isn't one or can't be opened."""
    config = read_config(name)
    if config.model_type not in DUAL:
        other = {"siglip2": "; SigLIP 2 with pictures of any shape (NaFlex) isn't supported, its fixed-size models are"}
        raise InputError(
            f"hf:{name} is a {config.model_type} model, no pair of towers of {' or '.join(DUAL)}"
            f"{other.get(config.model_type, '')}. As one tower: --image-tower hf:{name} or --text-tower hf:{name}, "
            "with another beside it."
        )
    model, _ = read_model(name)
    return _dual(
        model,
        {"kind": "hf", "name": name, "config": config.to_dict()},
        read_preparation(name),
        _dual_tokenizer(name, config),
    )


def hf_from_folder(folder: Path, description: dict[str, Any]) -> TwoTower:
    """The towers that a run folder's model.json describes, without weights and without a network."""
    config = config_of(description["config"])
    model = quietly(lambda: auto_model().from_config(config))
    return _dual(
        model, description, Preparation.from_json(description["preparation"]), _dual_tokenizer(str(folder), config)
    )


def hf_image(name: str) -> Half:
    """The image tower of a model, and how it sees."""
    config = read_config(name)
    model, loaded = read_model(name)
    preparation = read_preparation(name)
    if config.model_type in DUAL:
        return _image_half(model, {"kind": "hf", "name": name, "config": config.to_dict()}, preparation)
    if model.main_input_name != "pixel_values":
        raise InputError(f"hf:{name} is a {config.model_type} model, which takes no images.")
    pooled = not any("pooler" in key for key in loaded["missing_keys"])
    return _image_half(model, {"kind": "hf", "name": name, "config": config.to_dict(), "pooled": pooled}, preparation)


def hf_text(name: str, pooling: TextPooling = "mean", length: int | None = None) -> Half:
    """The text tower of a model, and its tokenizer."""
    config = read_config(name)
    model, _ = read_model(name)
    if config.model_type not in DUAL and model.main_input_name != "input_ids":
        raise InputError(f"hf:{name} is a {config.model_type} model, which takes no texts.")
    if config.model_type in DUAL:
        tokenizer = _dual_tokenizer(name, config)
    else:
        tokenizer = HfTokenizer(*read_tokenizer(name, length or getattr(config, "max_position_embeddings", 512)))
    description = {"kind": "hf", "name": name, "config": config.to_dict(), "pooling": pooling}
    return _text_half(model, {**description, "length": tokenizer.length}, tokenizer)


def hf_half_from_folder(folder: Path, which: str, description: dict[str, Any]) -> Half:
    """A tower that a run folder's model.json describes, without weights and without a network."""
    config = config_of(description["config"])
    model = quietly(lambda: auto_model().from_config(config))
    if which == "image":
        return _image_half(model, description, Preparation.from_json(description["preparation"]))
    if config.model_type in DUAL:
        return _text_half(model, description, _dual_tokenizer(str(folder), config))
    return _text_half(model, description, HfTokenizer(*read_tokenizer(str(folder), description["length"])))


def _dual(model: Any, description: dict[str, Any], preparation: Preparation, tokenizer: HfTokenizer) -> TwoTower:
    towers = TwoTower(
        DualImage(model), DualText(model), preparation=preparation, tokenizer=tokenizer, description=description
    )
    towers.log_scale.copy_(model.logit_scale.detach().squeeze())
    if hasattr(model, "logit_bias"):
        towers.bias = model.logit_bias.detach().squeeze().clone()
    return towers


def _image_half(model: Any, description: dict[str, Any], preparation: Preparation) -> Half:
    config = model.config
    if config.model_type in DUAL:
        return Half(DualImage(model), _dual_width(config), description, preparation=preparation)
    tower = ImageFeatures(model, description["pooled"])
    with torch.no_grad():
        width = tower.eval()(torch.zeros(1, 3, preparation.height, preparation.width)).shape[1]
    return Half(tower, width, description, preparation=preparation)


def _text_half(model: Any, description: dict[str, Any], tokenizer: HfTokenizer) -> Half:
    if model.config.model_type in DUAL:
        return Half(DualText(model), _dual_width(model.config), description, tokenizer=tokenizer)
    tower = TextFeatures(model, description["pooling"])
    return Half(tower, model.config.hidden_size, description, tokenizer=tokenizer)


def _dual_width(config: Any) -> int:
    return config.projection_dim if config.model_type == "clip" else config.text_config.projection_size


def _dual_tokenizer(name: str, config: Any) -> HfTokenizer:
    tokenizer, length = read_tokenizer(name, config.text_config.max_position_embeddings)
    return HfTokenizer(tokenizer, length, padded=config.model_type in READS_PADDING)


def _checkpointing(model: Any, on: bool) -> None:
    if not getattr(model, "supports_gradient_checkpointing", False):
        return
    # Newer versions of transformers say "activation" for what was "gradient".
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    elif getattr(model, f"is_{name}_checkpointing"):
        getattr(model, f"{name}_checkpointing_disable")()
