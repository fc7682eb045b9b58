"""Text towers of sentence-transformers: what its folders say of pooling and of layers after it, read without it.

Spec: `st:ID_OR_FOLDER`. The modules understood are Transformer, Pooling (cls, mean, max, last token), Dense and
Normalize, which is what its text models are made of.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from xmodal.encoders import hf
from xmodal.encoders.half import Half
from xmodal.encoders.pooling import TextPooling
from xmodal.errors import InputError

POOLINGS: dict[str, TextPooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
ACTIVATIONS: dict[str, type[nn.Module]] = {"Tanh": nn.Tanh, "Identity": nn.Identity, "ReLU": nn.ReLU, "GELU": nn.GELU}


class Dense(nn.Module):
    """sentence-transformers' layer after the pooling, its names included."""

    def __init__(self, width: int, d: int, bias: bool, activation: str) -> None:
        super().__init__()
        self.linear = nn.Linear(width, d, bias=bias)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.linear(x))


class Chain(nn.Module):
    """A transformer with its pooling, then dense layers; (b, l) -> (b, width)."""

    def __init__(self, features: nn.Module, dense: list[Dense]) -> None:
        super().__init__()
        self.features, self.dense = features, nn.Sequential(*dense)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.dense(self.features(tokens))

    def set_grad_checkpointing(self, on: bool = True) -> None:
        self.features.set_grad_checkpointing(on)  # pyright: ignore[reportCallIssue]


def st_text(name: str) -> Half:
    """The text tower of a sentence-transformers model. Raises InputError for a folder that holds none."""
    from xmodal.weights import load_weights

    folder = _folder(name)
    modules = _json(folder / "modules.json")
    kinds = [_kind(module["type"]) for module in modules]
    allowed = ("Transformer", "Pooling", "Dense", "Normalize")
    if kinds[:2] != ["Transformer", "Pooling"] or any(kind not in allowed for kind in kinds):
        raise InputError(f"st:{name} is made of {', '.join(kinds)}; understood are {', '.join(allowed)}.")
    paths = [folder / module["path"] for module in modules]
    length = _json(paths[0] / "sentence_bert_config.json", {}).get("max_seq_length")
    half = hf.hf_text(str(paths[0]), _pooling(paths[1], name), length)
    shapes = []
    for path in (p for p, kind in zip(paths, kinds, strict=True) if kind == "Dense"):
        told = _json(path / "config.json")
        activation = str(told.get("activation_function", "Identity")).rpartition(".")[2]
        if activation not in ACTIVATIONS:
            raise InputError(f"st:{name} has a layer with {activation}; understood are {', '.join(ACTIVATIONS)}.")
        shapes.append((told["in_features"], told["out_features"], told.get("bias", True), activation, path))
    tower, width = _chained(half, [shape[:4] for shape in shapes])
    for dense, (*_, path) in zip(getattr(tower, "dense", []), shapes, strict=True):
        if not (path / "model.safetensors").is_file():
            raise InputError(f"{path} has no model.safetensors; weights in pickles are not opened.")
        load_weights(dense, path / "model.safetensors")
    description = {
        **half.description,
        "kind": "st",
        "name": name,
        "dense": [shape[:4] for shape in shapes],
        "normalize": "Normalize" in kinds,
        **_prompts(folder),
    }
    return Half(tower, width, description, tokenizer=half.tokenizer)


def _kind(module: str) -> str:
    """A class of sentence-transformers by its bare name; another's, which may be called Pooling too, by its whole."""
    package, _, name = module.rpartition(".")
    return name if package.split(".")[0] == "sentence_transformers" else module


def st_from_folder(folder: Path, description: dict[str, Any]) -> Half:
    """A tower that a run folder's model.json describes, without weights and without a network."""
    half = hf.hf_half_from_folder(folder, "text", description)
    tower, width = _chained(half, [tuple(shape) for shape in description["dense"]])
    return Half(tower, width, description, tokenizer=half.tokenizer)


def _prompts(folder: Path) -> dict[str, Any]:
    """What the model wants before its texts, by name, and which of it goes before texts that name none."""
    told = _json(folder / "config_sentence_transformers.json", {})
    return {"prompts": told.get("prompts") or {}, "default_prompt": told.get("default_prompt_name")}


def _chained(half: Half, shapes: list[tuple[Any, ...]]) -> tuple[nn.Module, int]:
    if not shapes:
        return half.backbone, half.width
    return Chain(half.backbone, [Dense(*shape) for shape in shapes]), shapes[-1][1]


def _pooling(folder: Path, name: str) -> TextPooling:
    told = _json(folder / "config.json")
    if "pooling_mode" in told:  # the newer form
        modes = [told["pooling_mode"]] if isinstance(told["pooling_mode"], str) else list(told["pooling_mode"])
        modes = ["last" if mode == "lasttoken" else mode for mode in modes]
    else:
        modes = [POOLINGS.get(key, key) for key, on in told.items() if key.startswith("pooling_mode") and on]
    for mode in POOLINGS.values():
        if modes == [mode]:
            return mode
    told_modes = ", ".join(map(str, modes)) or "nothing"
    raise InputError(f"st:{name} pools by {told_modes}; understood is one of {', '.join(POOLINGS.values())}.")


def _folder(name: str) -> Path:
    if os.path.isdir(name):
        folder = Path(name)
    elif name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"st:{name}: there is no folder {name}.")
    else:
        from huggingface_hub import snapshot_download

        repository, _, revision = name.partition("@")
        repository = repository if "/" in repository else f"sentence-transformers/{repository}"
        try:
            files = ["*.json", "*.safetensors", "*.txt", "*.model"]
            folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=files))
        except Exception as error:  # a hub fails in many ways, each with its own class
            raise InputError(f"st:{name} cannot be fetched: {str(error).splitlines()[0]}") from error
    if not (folder / "modules.json").is_file():
        raise InputError(f"{folder} is no model of sentence-transformers: it has no modules.json. Perhaps hf:{name}?")
    return folder


def _json(file: Path, otherwise: Any = None) -> Any:
    if otherwise is not None and not file.is_file():
        return otherwise
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None
