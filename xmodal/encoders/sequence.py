"""An encoder of one-dimensional sequences: strided convolutions, and a recurrent network over what they make.

van den Oord et al. 2018 (arXiv:1807.03748), section 3.1: five convolutions with strides 5, 4, 2, 2, 2, kernels twice as
long and 512 channels, then a GRU with 256 units.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmodal.encoders.hub import OnHub
from xmodal.errors import InputError
from xmodal.weights import load_weights, save_tensors

KIND = "sequence"


class SequenceEncoder(nn.Module, OnHub):
    """Bytes (b, l) uint8 or numbers (b, l) float -> what each stretch of values holds, and what came up to it.

    mean, std: of the numbers that it is trained on.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, *, of_bytes: bool, strides: Sequence[int], width: int, d: int, mean: float = 0.0, std: float = 1.0
    ) -> None:
        super().__init__()
        self.description = {"of_bytes": of_bytes, "strides": list(strides), "width": width, "d": d}
        self.d = d
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        self.letters = nn.Embedding(256, width) if of_bytes else None
        before = [width if of_bytes else 1, *[width] * len(strides)]
        self.layers = nn.ModuleList(nn.Conv1d(b, width, 2 * s, s) for b, s in zip(before, strides, strict=False))
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # pyright: ignore[reportArgumentType]
        self.memory = nn.GRU(width, d, batch_first=True)

    def forward(self, sequence: Tensor) -> dict[str, Tensor]:
        """(b, l) -> z (b, t, width), and context (b, t, d) of each and those before it."""
        z = self.features(sequence)
        return {"z": z, "context": self.memory(z)[0]}

    def features(self, sequence: Tensor) -> Tensor:
        """(b, l) -> z (b, t, width); each sees two strides' worth of values, half of which the next sees, too."""
        if self.letters is not None:
            x = self.letters(sequence.long()).transpose(1, 2)
        else:
            x = ((sequence - self.mean) / self.std)[:, None]
        for layer in self.layers:
            x = F.relu(layer(x))
        return x.transpose(1, 2)

    @property
    def stride(self) -> int:
        """How many values a step is on from the one before."""
        return math.prod(self.description["strides"])

    @property
    def least(self) -> int:
        """How many values a single step is made from."""
        found = 1
        for stride in reversed(self.description["strides"]):
            found = (found + 1) * stride
        return found

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @torch.inference_mode()
    def encode(self, sequences: Sequence[Any]) -> Tensor:
        """Strings, bytes or rows of numbers, of any lengths -> (n, d) unit, the means of their contexts, on the CPU.

        Raises ValueError for one that is too short for a single step.
        """
        rows = [torch.empty(0, self.d)]
        for one in sequences:
            if isinstance(one, str | bytes):
                one = np.frombuffer(one.encode() if isinstance(one, str) else one, dtype=np.uint8)
            values = torch.as_tensor(np.array(one)).to(self.device)
            if len(values) < self.least:
                raise ValueError(f"a sequence needs at least {self.least} values, not {len(values)}")
            context = self(values[None] if self.letters is not None else values[None].to(self.mean.dtype))["context"]
            rows.append(F.normalize(context.mean(1).float(), dim=1).cpu())
        return torch.cat(rows)

    def save(self, folder: str | Path) -> None:
        """Write model.safetensors and model.json; `xmodal.load(folder)` opens them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        beside = folder / "model.json.tmp"
        beside.write_text(json.dumps({"kind": KIND, "sequence": self.description}, indent=1))
        weights = {name: t.detach().to("cpu", copy=True) for name, t in self.state_dict().items()}
        save_tensors(weights, folder / "model.safetensors.tmp")
        beside.replace(folder / "model.json")
        (folder / "model.safetensors.tmp").replace(folder / "model.safetensors")


def sequence_encoder_from_folder(folder: Path) -> SequenceEncoder | None:
    """What `SequenceEncoder.save` wrote; None for another folder. Raises InputError for weights of another model."""
    try:
        told = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(told, dict) or told.get("kind") != KIND:
        return None
    if not (folder / "model.safetensors").is_file():
        raise InputError(f"{folder} lacks model.safetensors.")
    encoder = SequenceEncoder(**told["sequence"])
    load_weights(encoder, folder / "model.safetensors")
    return encoder
