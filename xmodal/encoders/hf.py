"""Models of transformers: CLIP and SigLIP as pairs of towers, others as one tower of a pair.

Spec: `hf:ID_OR_FOLDER`, a hub's id with `@REVISION` where one is meant. Weights are read from safetensors and code
from transformers alone: a model that brings pickles or code of its own is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xmodal.encoders.half import Half, TextPooling
from xmodal.encoders.lengths import NOTHING
from xmodal.encoders.preparation import Preparation
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import InputError

DUAL = ("clip", "siglip")
# Rows of these towers were padded to the full length in training and read the padding (SigLIP's page on the hub).
READS_PADDING = ("siglip",)


class HfTokenizer:
    """A tokenizer of transformers under the interface of ours.

    padded: rows are as long as the model takes, and padding is tokens like others; else it is NOTHING.
    """

    def __init__(self, tokenizer: Any, length: int, *, padded: bool = False) -> None:
        self.tokenizer, self.length, self.padded = tokenizer, length, padded

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(m) strings -> (m, l) long."""
        told = self.tokenizer(
            list(texts),
            padding="max_length" if self.padded else True,
            truncation=True,
            max_length=self.length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        if self.padded:
            return told["input_ids"]
        return told["input_ids"].masked_fill(told["attention_mask"] == 0, NOTHING)

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(str(folder))


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
        self.model, self.pooling = model, pooling

    def forward(self, tokens: Tensor) -> Tensor:
        real = tokens != NOTHING  # (b, l)
        places = self.model(input_ids=tokens.clamp(min=0), attention_mask=real.long()).last_hidden_state
        if self.pooling == "cls":
            return places[:, 0]
        if self.pooling == "last":
            return places[torch.arange(len(places), device=places.device), real.sum(1) - 1]
        if self.pooling == "max":
            return places.masked_fill(~real[..., None], float("-inf")).amax(1)
        return (places * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp(min=1)

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
    model, _ = _model(name)
    return _dual(
        model,
        {"kind": "hf", "name": name, "config": config.to_dict()},
        read_preparation(name),
        _dual_tokenizer(name, config),
    )


def hf_from_folder(folder: Path, description: dict[str, Any]) -> TwoTower:
    """The towers that a run folder's model.json describes, without weights and without a network."""
    config = config_of(description["config"])
    model = _quietly(lambda: _auto().from_config(config))
    return _dual(
        model, description, Preparation.from_json(description["preparation"]), _dual_tokenizer(str(folder), config)
    )


def hf_image(name: str) -> Half:
    """The image tower of a model, and how it sees."""
    config = read_config(name)
    model, loaded = _model(name)
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
    model, _ = _model(name)
    if config.model_type not in DUAL and model.main_input_name != "input_ids":
        raise InputError(f"hf:{name} is a {config.model_type} model, which takes no texts.")
    if config.model_type in DUAL:
        tokenizer = _dual_tokenizer(name, config)
    else:
        tokenizer = HfTokenizer(*_tokenizer(name, length or getattr(config, "max_position_embeddings", 512)))
    description = {"kind": "hf", "name": name, "config": config.to_dict(), "pooling": pooling}
    return _text_half(model, {**description, "length": tokenizer.length}, tokenizer)


def hf_half_from_folder(folder: Path, which: str, description: dict[str, Any]) -> Half:
    """A tower that a run folder's model.json describes, without weights and without a network."""
    config = config_of(description["config"])
    model = _quietly(lambda: _auto().from_config(config))
    if which == "image":
        return _image_half(model, description, Preparation.from_json(description["preparation"]))
    if config.model_type in DUAL:
        return _text_half(model, description, _dual_tokenizer(str(folder), config))
    return _text_half(model, description, HfTokenizer(*_tokenizer(str(folder), description["length"])))


def read_config(name: str) -> Any:
    """The configuration of a model. Raises InputError, also where the model wants to run code of its own."""
    from transformers import AutoConfig

    source, options = _source(name)
    if os.path.isdir(source) and not (Path(source) / "config.json").is_file():
        found = ", ".join(sorted(p.name for p in Path(source).iterdir())[:6]) or "nothing"
        kind = (
            f" It is open_clip's: open_clip:local-dir:{source}."
            if (Path(source) / "open_clip_config.json").is_file()
            else ""
        )
        raise InputError(f"{source} is no model of transformers: it has no config.json, but {found}.{kind}")
    with _said(f"hf:{name}"):
        return AutoConfig.from_pretrained(source, trust_remote_code=False, **options)


def config_of(values: dict[str, Any]) -> Any:
    """A configuration from what `to_dict` gave."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**values)


def read_preparation(name: str) -> Preparation:
    """How a model's pictures are prepared, from its preprocessor_config.json."""
    from transformers import AutoImageProcessor

    source, options = _source(name)
    if os.path.isdir(source) and not any((Path(source) / f).is_file() for f in _PROCESSOR_FILES):
        raise InputError(f"{source} has no preprocessor_config.json, so there is no telling how its pictures look.")
    with _said(f"hf:{name}"):
        processor = AutoImageProcessor.from_pretrained(source, backend="pil", trust_remote_code=False, **options)
    return preparation_of(processor, f"hf:{name}")


_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model",
                    "sentencepiece.bpe.model")  # fmt: skip
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "image_processor_config.json")


def preparation_of(processor: Any, name: str) -> Preparation:
    """Our form of what an image processor of transformers does. Raises InputError for steps that have none."""
    size, crop = processor.size, processor.crop_size if processor.do_center_crop else None
    modes = {2: "bilinear", 3: "bicubic"}
    known = processor.do_resize and int(processor.resample) in modes and abs(processor.rescale_factor * 255 - 1) < 1e-6
    if known and size.shortest_edge and crop:
        resize, height, width, edge = "shortest", crop.height, crop.width, size.shortest_edge
    elif known and size.height and size.width and not crop:
        resize, height, width, edge = "squash", size.height, size.width, None
    else:
        raise InputError(f"{name} prepares pictures in a way that isn't known here: {processor.to_dict()}")
    plain = not processor.do_normalize
    return Preparation(
        height,
        width,
        mean=(0.0, 0.0, 0.0) if plain else tuple(processor.image_mean),
        std=(1.0, 1.0, 1.0) if plain else tuple(processor.image_std),
        interpolation=modes[int(processor.resample)],  # pyright: ignore[reportArgumentType]
        resize=resize,
        edge=None if edge == height == width else edge,
        crop="floor",
    )


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
    tokenizer, length = _tokenizer(name, config.text_config.max_position_embeddings)
    return HfTokenizer(tokenizer, length, padded=config.model_type in READS_PADDING)


def _tokenizer(name: str, length: int) -> tuple[Any, int]:
    """A model's tokenizer, and how many tokens it takes at most."""
    from transformers import AutoTokenizer

    source, options = _source(name)
    # Without them transformers makes a tokenizer of next to no words, and says nothing.
    if os.path.isdir(source) and not any((Path(source) / file).is_file() for file in _TOKENIZER_FILES):
        raise InputError(f"{source} has no tokenizer: none of {', '.join(_TOKENIZER_FILES)}.")
    with _said(f"hf:{name}: its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    return tokenizer, min(length, tokenizer.model_max_length)


def _model(name: str) -> tuple[Any, dict[str, Any]]:
    """A model with its weights, in float32, and what transformers tells of its keys."""
    source, options = _source(name)
    if os.path.isdir(source) and not any(Path(source).glob("*.safetensors")):
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in Path(source).glob(pattern))
        if pickles:
            raise InputError(
                f"{source} has its weights in {pickles[0]}, a pickle, which can run code. "
                "Make safetensors of it where you trust it: xmodal convert --trust-pickle."
            )
        raise InputError(f"{source} has no weights: no *.safetensors file.")
    with _said(f"hf:{name}"):
        model, told = _quietly(
            lambda: _auto().from_pretrained(
                source,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
        )
    missing = sorted(key for key in told["missing_keys"] if "pooler" not in key)
    if missing or told["mismatched_keys"]:
        raise InputError(
            f"hf:{name}: the weights lack {len(missing)} tensors of the model, "
            f"such as {', '.join([*missing, *map(str, told['mismatched_keys'])][:3])}."
        )
    return model, told


def _auto() -> Any:
    from transformers import AutoModel

    return AutoModel


def _source(name: str) -> tuple[str, dict[str, Any]]:
    """A folder, or a hub's id and its revision."""
    if os.path.isdir(name):
        return name, {"local_files_only": True}
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"hf:{name}: there is no folder {name}.")
    repository, _, revision = name.partition("@")
    return repository, {"revision": revision} if revision else {}


@contextmanager
def _said(name: str) -> Iterator[None]:
    """What goes wrong in transformers' loading, in a line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # hubs, files and configurations fail in many ways, each with its own class
        text = str(error)
        if "trust_remote_code" in text or "custom code" in text:
            raise InputError(f"{name} brings code of its own, which isn't run here (trust_remote_code).") from error
        raise InputError(f"{name} cannot be opened: {_line(error)}") from error


def _line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _quietly(build: Any) -> Any:
    """Without transformers' progress bars and its table of keys, which `_model` reads itself."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        return build()
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _checkpointing(model: Any, on: bool) -> None:
    if not getattr(model, "supports_gradient_checkpointing", False):
        return
    # Newer versions of transformers say "activation" for what was "gradient".
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    elif getattr(model, f"is_{name}_checkpointing"):
        getattr(model, f"{name}_checkpointing_disable")()
