"""A graph a tower: image.onnx and text.onnx, which run without torch.

image.onnx: `pixels` (batch, 3, height, width) uint8, RGB, as onnx.json's preparation says; mean and deviation are in
the graph. text.onnx: `tokens` (batch, length) int64, −1 where a text has ended. Each gives `unit_embedding` (batch, d)
float32. onnx.json has the sizes, the preparation, the scale of the logits and their bias.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from xmodal.encoders.lengths import NOTHING
from xmodal.encoders.preparation import Preparation
from xmodal.encoders.tokenizer import PiecesTokenizer
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import InputError
from xmodal.interop.tokenizers import length_of, write_for_transformers
from xmodal.interop.verify import unit

OPEN = 'onnxruntime.InferenceSession("{folder}/image.onnx"), text.onnx; onnx.json says what they take'
OUTPUT = "unit_embedding"  # the exporter itself calls values inside the graph `embedding`
NEEDED = ("onnx", "onnxruntime", "onnxscript")
ONE_FILE = 1 << 30  # bytes of weights that go into the graph's own file; protobuf ends at 2 GiB


class ImageGraph(nn.Module):
    """(b, 3, h, w) uint8 -> (b, d) unit."""

    mean: Tensor
    std: Tensor

    def __init__(self, towers: TwoTower) -> None:
        super().__init__()
        self.tower = towers.image
        self.register_buffer("mean", towers.mean)
        self.register_buffer("std", towers.std)

    def forward(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.tower((pixels.to(torch.float32) / 255 - self.mean) / self.std), dim=-1)


class TextGraph(nn.Module):
    """(b, l) long -> (b, d) unit."""

    def __init__(self, towers: TwoTower) -> None:
        super().__init__()
        self.tower = towers.text

    def forward(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.tower(tokens), dim=-1)


def write(towers: TwoTower, folder: Path) -> list[str]:
    """Write both graphs, the tokenizer and onnx.json, and return what isn't quite the same. towers: on the CPU."""
    _require()
    length = length_of(towers.tokenizer)
    seen = towers.preparation
    pixels = torch.zeros(2, 3, seen.height, seen.width, dtype=torch.uint8)
    tokens = filled(towers.tokenizer(["a text", "another, longer text"]), length)
    _export(ImageGraph(towers), "pixels", pixels, folder / "image.onnx")
    _export(TextGraph(towers), "tokens", tokens, folder / "text.onnx")
    if isinstance(towers.tokenizer, PiecesTokenizer):
        towers.tokenizer.save(folder)
        notes, tokenizer = [], "sentencepiece"
    else:
        notes, tokenizer = write_for_transformers(towers.tokenizer, folder), "transformers"
    told = {
        "image": {"file": "image.onnx", "input": "pixels", "shape": ["batch", 3, seen.height, seen.width]},
        "text": {
            "file": "text.onnx",
            "input": "tokens",
            "shape": ["batch", length],
            "ended": NOTHING,
            "tokenizer": tokenizer,
            "padded": _reads_padding(towers.tokenizer),
        },
        "output": OUTPUT,
        "preparation": seen.to_json(),
        "log_scale": towers.log_scale.item(),
        "bias": None if towers.bias is None else towers.bias.item(),
    }
    (folder / "onnx.json").write_text(json.dumps(told, indent=2), encoding="utf-8")
    return notes


def embed(folder: Path, pictures: Sequence[Image.Image], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Unit rows of onnxruntime, with the preparation and the tokenizer that lie in the folder."""
    told = json.loads((folder / "onnx.json").read_text(encoding="utf-8"))
    pixels = Preparation.from_json(told["preparation"]).stack(list(pictures))
    tokens = _tokenize(folder, told["text"], texts)
    return unit(_run(folder / "image.onnx", "pixels", pixels)), unit(_run(folder / "text.onnx", "tokens", tokens))


def filled(tokens: Tensor, length: int) -> Tensor:
    """Rows (b, l) with NOTHING up to the length."""
    return F.pad(tokens, (0, length - tokens.shape[1]), value=NOTHING)


def _tokenize(folder: Path, told: dict[str, Any], texts: Sequence[str]) -> Tensor:
    length = told["shape"][1]
    if told["tokenizer"] == "sentencepiece":
        return filled(PiecesTokenizer.load(folder, length)(texts), length)
    from transformers import AutoTokenizer

    from xmodal.encoders.hf_files import HfTokenizer

    tokenizer = HfTokenizer(AutoTokenizer.from_pretrained(str(folder)), length, padded=told["padded"])
    return filled(tokenizer(texts), length)


def _reads_padding(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "padded", False)) or getattr(tokenizer, "pad", NOTHING) is None


def _run(file: Path, name: str, value: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return torch.from_numpy(np.asarray(session.run([OUTPUT], {name: value.numpy()})[0]))


def _export(graph: nn.Module, name: str, example: Tensor, file: Path) -> None:
    graph.eval()
    size = sum(p.numel() * p.element_size() for p in graph.parameters())
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # else it tells of every fold that it leaves
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own doing
        torch.onnx.export(
            graph,
            (example,),
            str(file),
            input_names=[name],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=size > ONE_FILE,
            verbose=False,
        )


def _require() -> None:
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(f"ONNX needs {', '.join(missing)}: pip install {' '.join(missing)}, or 'xmodal[onnx]'.")
