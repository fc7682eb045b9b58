"""Opening sentence encoders: model specs, and run folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from xmodal.encoders.half import Half
from xmodal.encoders.hf_files import HfTokenizer, read_config
from xmodal.encoders.hub import at_hand
from xmodal.encoders.pooling import TextPooling
from xmodal.encoders.sentence import SentenceEncoder
from xmodal.encoders.tokenizer import PiecesTokenizer
from xmodal.encoders.two_tower import Tokenizer
from xmodal.errors import InputError, nearest

FORMS = "small, hf:ID_OR_FOLDER, st:ID_OR_FOLDER, hub:ORG/NAME, or the folder of a run or of either library"


def open_sentences(spec: str, pooling: TextPooling | None = None) -> SentenceEncoder:
    """The encoder of a spec with its weights, on the CPU.

    pooling: of the last layer's places, instead of what the model says; without either mean, as sentence-transformers
    takes a bare transformer. Raises InputError for a spec that names no text encoder.
    """
    spec = at_hand(spec)
    kind, _, name = spec.partition(":")
    if kind == "st":
        return _encoder(_pooled(_st(name), pooling))
    if kind == "hf":
        return _encoder(_hf(name, pooling))
    folder = Path(spec)
    if (folder / "model.json").is_file():
        encoder = from_sentence_folder(folder)
        if pooling is not None:
            _set_pooling(encoder.text, pooling)
            encoder.description = {**encoder.description, "pooling": pooling}
        return encoder
    if (folder / "modules.json").is_file():
        return _encoder(_pooled(_st(spec), pooling))
    if (folder / "config.json").is_file():
        return _encoder(_hf(spec, pooling))
    if folder.is_dir():
        raise InputError(f"{spec} holds no sentence encoder: no model.json, modules.json or config.json.")
    hint = nearest(kind, ["small", "hf", "st", "hub"]) if ":" in spec else "it is no folder here"
    raise InputError(f"No sentence encoder {spec!r}; {hint}\nForms: {FORMS}.")


def small_sentences(
    train_tokenizer: Callable[[], PiecesTokenizer], *, layers: int, dropout: float, pooling: TextPooling | None
) -> SentenceEncoder:
    """A fresh `small`: a few layers over pieces of a tokenizer that is trained on the data.

    Its embeddings begin larger than a dual encoder's: what a place holds is then its token first of all, and texts
    with the same words are near before any training (20 % of prose's nearest neighbours are of one topic, not 12).
    """
    tokenizer = train_tokenizer()
    described = {"d": 256, "layers": layers, "dropout": dropout, "pooling": pooling or "mean"}
    encoder = _small(tokenizer, {"kind": "small-text", "length": tokenizer.length, **described})
    nn.init.normal_(encoder.text.get_parameter("pieces.weight"))
    return encoder


def from_sentence_folder(folder: Path) -> SentenceEncoder:
    """What `SentenceEncoder.save` wrote. Raises InputError for another folder, and for weights of another model."""
    import json

    from xmodal.weights import load_weights

    try:
        description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}/model.json cannot be read: {error}") from None
    if description.get("kind") not in KINDS:
        raise InputError(f"{folder} holds no sentence encoder, but a model of kind {description.get('kind')!r}.")
    if description["kind"] != "small-text":
        return _encoder(_st(str(folder)))
    encoder = _small(PiecesTokenizer.load(folder, description["length"]), description)
    load_weights(encoder.text, folder / "model.safetensors")
    return encoder


KINDS = ("small-text", "st")


def is_dual(name: str) -> bool:
    """Whether a model of transformers is a pair of towers and no text encoder."""
    from xmodal.encoders.hf import DUAL

    return read_config(name).model_type in DUAL


def shortened(tokenizer: Tokenizer, length: int) -> Tokenizer:
    """The same tokenizer for at most so many tokens."""
    if isinstance(tokenizer, HfTokenizer) and not tokenizer.padded:
        return HfTokenizer(tokenizer.tokenizer, min(length, tokenizer.length))
    return tokenizer


def keep_layers(encoder: SentenceEncoder, layers: int) -> None:
    """Leave only so many of the lower layers of a transformer. Raises InputError where there are fewer."""
    lists = [m for m in encoder.text.modules() if isinstance(m, nn.ModuleList)]
    stack = max(lists, key=len, default=None)
    if stack is None or not 1 <= layers <= len(stack):
        raise InputError(
            f"--layers {layers}: the model has {len(stack) if stack is not None else 'no list of'} layers."
        )
    del stack[layers:]
    for module in encoder.text.modules():
        if (config := getattr(module, "config", None)) is not None and hasattr(config, "num_hidden_layers"):
            config.num_hidden_layers = layers
    if "config" in encoder.description:
        encoder.description = {**encoder.description, "config": _config_of(encoder.text)}


def set_dropout(encoder: SentenceEncoder, p: float) -> None:
    """Give every dropout of the tower another rate, that of attention's weights included."""
    if not any(isinstance(m, nn.Dropout) for m in encoder.text.modules()):
        raise InputError("--dropout: this model has no dropout to set.")
    for module in encoder.text.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
        if isinstance(rate := getattr(module, "attention_dropout", None), float) and rate != p:
            module.attention_dropout = p  # pyright: ignore[reportArgumentType]


def _config_of(tower: nn.Module) -> dict[str, Any]:
    return next(m.config for m in tower.modules() if hasattr(m, "config")).to_dict()  # pyright: ignore


def _small(tokenizer: PiecesTokenizer, told: dict[str, Any]) -> SentenceEncoder:
    from xmodal.encoders.small import SmallTextTower

    tower = SmallTextTower(
        len(tokenizer),
        told["d"],
        layers=told["layers"],
        length=told["length"],
        dropout=told["dropout"],
        pooling=told["pooling"],
    )
    return SentenceEncoder(tower, told["d"], tokenizer=tokenizer, description=told)


def _st(name: str) -> Half:
    from xmodal.encoders.sentence_transformers import st_text

    return st_text(name)


def _hf(name: str, pooling: TextPooling | None) -> Half:
    from xmodal.encoders.hf import hf_text

    if is_dual(name):
        raise InputError(
            f"hf:{name} is a pair of towers, an image's and a text's: xmodal train clip trains it. "
            "For a sentence encoder name a text model."
        )
    half = hf_text(name, pooling or "mean")
    return Half(half.backbone, half.width, {**half.description, "kind": "st", "dense": []}, tokenizer=half.tokenizer)


def _pooled(half: Half, pooling: TextPooling | None) -> Half:
    if pooling is None or pooling == half.description["pooling"]:
        return half
    _set_pooling(half.backbone, pooling)
    return Half(half.backbone, half.width, {**half.description, "pooling": pooling}, tokenizer=half.tokenizer)


def _set_pooling(tower: nn.Module, pooling: TextPooling) -> None:
    for module in tower.modules():
        if hasattr(module, "pooling"):
            module.pooling = pooling  # pyright: ignore[reportArgumentType]


def _encoder(half: Half) -> SentenceEncoder:
    assert isinstance(half.tokenizer, HfTokenizer)
    return SentenceEncoder(half.backbone, half.width, tokenizer=half.tokenizer, description=half.description)
