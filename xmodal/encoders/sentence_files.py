"""Folders of sentence encoders: written so that sentence-transformers opens them too, and read again.

At the top lie transformers' files; modules.json names the pooling, dense layers and normalisation after the model, each
a folder. `small` has none of that: model.json, its weights and its tokenizer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from xmodal.encoders.hf import TextFeatures
from xmodal.encoders.sentence_transformers import ACTIVATIONS, POOLINGS, Chain, Dense
from xmodal.errors import InputError
from xmodal.weights import save_tensors

if TYPE_CHECKING:
    from xmodal.encoders.sentence import SentenceEncoder

# The names that every version of sentence-transformers knows.
_TYPE = "sentence_transformers.models."


def write(encoder: SentenceEncoder, folder: Path) -> None:
    """Write an encoder without adapters. Raises InputError for a tower that can't be written."""
    folder.mkdir(parents=True, exist_ok=True)
    if encoder.description["kind"] == "small-text":
        encoder.tokenizer.save(folder)
        weights = dict(encoder.text.state_dict())
    else:
        weights = _write_for_transformers(encoder, folder)
    _json(folder / "model.json", encoder.description)
    beside = folder / "model.safetensors.tmp"
    save_tensors({name: t.detach().to("cpu", copy=True) for name, t in weights.items()}, beside)
    beside.replace(folder / "model.safetensors")


def _write_for_transformers(encoder: SentenceEncoder, folder: Path) -> dict[str, Tensor]:
    """All but the weights of the transformer, which are returned under its own names."""
    features, dense = (
        (encoder.text.features, list(encoder.text.dense)) if isinstance(encoder.text, Chain) else (encoder.text, [])
    )
    if not isinstance(features, TextFeatures):
        raise InputError(f"A sentence encoder of kind {encoder.description['kind']!r} can't be written.")
    model = features.model
    model.config.save_pretrained(str(folder))
    encoder.tokenizer.save(folder)
    modules: list[tuple[str, str, dict[str, Any]]] = [("", "Transformer", {}), _pooling(features)]
    for layer in dense:
        assert isinstance(layer, Dense)
        modules.append((f"{len(modules)}_Dense", "Dense", _shape(layer)))
        (folder / modules[-1][0]).mkdir(exist_ok=True)
        save_tensors(
            {name: t.detach().to("cpu", copy=True) for name, t in layer.linear.state_dict(prefix="linear.").items()},
            folder / modules[-1][0] / "model.safetensors",
        )
    if encoder.description.get("normalize"):
        modules.append((f"{len(modules)}_Normalize", "Normalize", {}))
    for path, _, config in modules[1:]:
        (folder / path).mkdir(exist_ok=True)
        if config:
            _json(folder / path / "config.json", config)
    described = [
        {"idx": i, "name": str(i), "path": path, "type": _TYPE + kind} for i, (path, kind, _) in enumerate(modules)
    ]
    _json(folder / "modules.json", described)
    _json(folder / "sentence_bert_config.json", {"max_seq_length": encoder.description["length"]})
    _json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": encoder.description.get("prompts") or {},
            "default_prompt_name": encoder.description.get("default_prompt"),
            "similarity_fn_name": "cosine",
        },
    )
    return dict(model.state_dict())


def _pooling(features: TextFeatures) -> tuple[str, str, dict[str, Any]]:
    width = features.model.config.hidden_size
    modes = {key: mode == features.pooling for key, mode in POOLINGS.items()}
    return "1_Pooling", "Pooling", {"word_embedding_dimension": width, **modes}


def _shape(layer: Dense) -> dict[str, Any]:
    linear = layer.linear
    activation = next(kind for kind in ACTIVATIONS.values() if type(layer.activation) is kind)
    return {
        "in_features": linear.in_features,
        "out_features": linear.out_features,
        "bias": linear.bias is not None,
        "activation_function": f"{activation.__module__}.{activation.__name__}",
    }


def _json(file: Path, values: Any) -> None:
    beside = file.with_name(file.name + ".tmp")
    beside.write_text(json.dumps(values, indent=1), encoding="utf-8")
    beside.replace(file)
