"""What lies in a model's folder or on its hub as transformers saves it.

Weights are read from safetensors and code from transformers alone: a model that brings pickles or code of its own is
refused. Raises InputError for what is missing, damaged or not to be trusted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from xmodal.encoders.lengths import NOTHING
from xmodal.encoders.preparation import Preparation
from xmodal.errors import InputError

R = TypeVar("R")

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model",
                    "sentencepiece.bpe.model")  # fmt: skip
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "image_processor_config.json")


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

    def ragged(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """(m) strings -> the tokens of each, at most `length`, and how many strings had more."""
        told = self.tokenizer(list(texts), truncation=True, max_length=self.length, return_attention_mask=False)
        rows: list[list[int]] = told["input_ids"]
        full = [i for i, row in enumerate(rows) if len(row) == self.length]
        if self.tokenizer.is_fast:
            return rows, sum(bool(told.encodings[i].overflowing) for i in full)
        whole = (self.tokenizer(texts[i], verbose=False)["input_ids"] for i in full)
        return rows, sum(len(row) > self.length for row in whole)

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(str(folder))


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


def read_tokenizer(name: str, length: int) -> tuple[Any, int]:
    """A model's tokenizer, and how many tokens it takes at most."""
    from transformers import AutoTokenizer

    source, options = _source(name)
    # Without them transformers makes a tokenizer of next to no words, and says nothing.
    if os.path.isdir(source) and not any((Path(source) / file).is_file() for file in _TOKENIZER_FILES):
        raise InputError(f"{source} has no tokenizer: none of {', '.join(_TOKENIZER_FILES)}.")
    with _said(f"hf:{name}: its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    return tokenizer, min(length, tokenizer.model_max_length)


def read_model(name: str) -> tuple[Any, dict[str, Any]]:
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
        model, told = quietly(
            lambda: auto_model().from_pretrained(
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


def auto_model() -> Any:
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


def quietly(build: Callable[[], R]) -> R:
    """Without transformers' progress bars and its table of keys, which `read_model` reads itself."""
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
