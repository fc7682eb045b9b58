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

import torch
from torch import Tensor, nn

from xmodal.encoders.half import Half
from xmodal.encoders.lengths import NOTHING
from xmodal.encoders.preparation import Preparation
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import InputError, nearest


class OpenClipTokenizer:
    """One of open_clip's tokenizers under the interface of ours.

    pad: the number that fills rows up, where it has no part in the result; NOTHING takes its place at their ends.
    """

    def __init__(self, tokenizer: Any, pad: int | None = None) -> None:
        self.tokenizer, self.pad = tokenizer, pad

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(m) strings -> (m, context length) long."""
        tokens = self.tokenizer(list(texts))
        if self.pad is None:
            return tokens
        ended = (tokens != self.pad).flip(1).cumsum(1).flip(1) == 0
        return tokens.masked_fill(ended, NOTHING)

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
        no_code: dict[str, Any] = {"trust_remote_code": False} if config["text_cfg"].get("hf_tokenizer_name") else {}
        tokenizer = open_clip.get_tokenizer(architecture, **no_code)
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
        # Settings that were fetched may say otherwise: they reach transformers' tokenizers as they are.
        options["trust_remote_code"] = False
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
    pad = _padding_without_part(model.text)
    if pad is not None:
        _take_short_rows(model.text, pad)
    towers = TwoTower(
        model.visual,
        model.text,
        preparation=preparation,
        tokenizer=OpenClipTokenizer(tokenizer, pad),
        description=description,
    )
    towers.log_scale.copy_(model.logit_scale.detach().squeeze())
    if model.logit_bias is not None:
        towers.bias = model.logit_bias.detach().squeeze().clone()
    return towers


def open_clip_half(name: str, which: str) -> Half:
    """One of both towers of a spec's part after `open_clip:`."""
    return _half(open_clip_towers(name), which)


def open_clip_half_from_folder(folder: Path, which: str, description: dict[str, Any]) -> Half:
    """A tower that a run folder's model.json describes, without weights and without a network."""
    return _half(open_clip_from_folder(folder, description), which)


def _half(towers: TwoTower, which: str) -> Half:
    with torch.no_grad():
        tokens = towers.tokenizer([""])
        width = towers.eval().features(text=tokens).shape[1]  # of both towers
    return Half(
        getattr(towers, which),
        width,
        towers.description,
        preparation=towers.preparation if which == "image" else None,
        tokenizer=towers.tokenizer if which == "text" else None,
    )


def _padding_without_part(text: nn.Module) -> int | None:
    """The number that fills rows up, if the tower's output doesn't depend on what follows a text; else None.

    It doesn't where attention is causal and the end mark is read, as in CLIP, or where padding is masked. SigLIP's
    tower reads its padding.
    """
    from open_clip.hf_model import HFTextEncoder
    from open_clip.transformer import TextTransformer

    if isinstance(text, HFTextEncoder):
        return text.config.pad_token_id  # pyright: ignore[reportAttributeAccessIssue]
    if not isinstance(text, TextTransformer) or text.cls_emb is not None:
        return None
    masked = text.use_pad_mask and text.pool_type in ("argmax", "eos", "first")
    causal = text.attn_mask is not None and text.pool_type in ("argmax", "eos")
    return text.pad_id if masked or causal else None


def _take_short_rows(text: nn.Module, pad: int) -> None:
    """Let a text tower take rows that are shorter than its context and end in NOTHING."""
    text.register_forward_pre_hook(_FillUp(pad))
    if getattr(text, "attn_mask", None) is not None:
        text.transformer.register_forward_pre_hook(_cut_mask, with_kwargs=True)  # pyright: ignore


class _FillUp:
    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens = inputs[0]
        return (tokens.masked_fill(tokens == NOTHING, self.pad), *inputs[1:])


def _cut_mask(
    module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """open_clip hands its mask for the whole context to the blocks."""
    length, mask = inputs[0].shape[1], named.get("attn_mask")
    return inputs, named if mask is None else {**named, "attn_mask": mask[..., :length, :length]}


def _config(architecture: str) -> dict[str, Any]:
    import open_clip
    from open_clip.factory import _get_hf_config

    if architecture.startswith("local-dir:"):
        file = Path(architecture.removeprefix("local-dir:")) / "open_clip_config.json"
        return json.loads(file.read_text())["model_cfg"]
    if architecture.startswith("hf-hub:"):
        return _get_hf_config(architecture.removeprefix("hf-hub:"))["model_cfg"]
    return open_clip.get_model_config(architecture) or {}
