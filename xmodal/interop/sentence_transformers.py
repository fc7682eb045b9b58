"""Folders that SentenceTransformer opens: a model of transformers and two small files that say what to do with it.

Pictures and texts go through the same `encode`; what each is, sentence-transformers sees by itself since version 5.4.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from xmodal.encoders.hf_files import quietly
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import InputError
from xmodal.interop import transformers
from xmodal.interop.verify import unit

OPEN = 'SentenceTransformer("{folder}").encode([picture]), .encode(["a text"])'

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.base.modules.normalize.Normalize"},
]


def write(towers: TwoTower, folder: Path) -> list[str]:
    """Write towers that transformers has, and return what isn't quite the same. Raises InputError for others."""
    _require()
    notes = transformers.write(towers, folder)
    ways = {
        kind: {"method": f"get_{kind}_features", "method_output_name": "pooler_output"} for kind in ("text", "image")
    }
    told: dict[str, Any] = {
        "transformer_task": "feature-extraction",
        "modality_config": ways,
        "module_output_name": "sentence_embedding",
        "processor_kwargs": {"backend": "pil"},  # torchvision's processor scales pictures a little differently
    }
    if length := transformers.reads_padding(towers):
        told["processing_kwargs"] = {
            "text": {"padding": "max_length", "max_length": length, "return_attention_mask": False}
        }
    _json(folder / "sentence_bert_config.json", told)
    _json(folder / "modules.json", MODULES)
    _json(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": {},
            "similarity_fn_name": "cosine",
        },
    )
    (folder / "1_Normalize").mkdir()
    return notes


def embed(folder: Path, pictures: Sequence[Image.Image], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Unit rows of sentence-transformers alone."""
    from sentence_transformers import SentenceTransformer

    model = quietly(lambda: SentenceTransformer(str(folder), device="cpu", local_files_only=True))
    image = model.encode(list(pictures), convert_to_tensor=True, show_progress_bar=False)
    text = model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
    return unit(image), unit(text)


def _require() -> None:
    from importlib.util import find_spec

    if find_spec("sentence_transformers") is None:
        raise InputError("This needs sentence-transformers: pip install 'sentence-transformers>=6.2'")


def _json(file: Path, values: Any) -> None:
    file.write_text(json.dumps(values, indent=2), encoding="utf-8")
