"""A training step in slices beside the same step in one piece: what gradient caching costs, and what it saves."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from xmodal.benchmarks.timing import Contest
from xmodal.data.glyphs import Glyphs
from xmodal.data.source import captions
from xmodal.encoders.small import small_towers
from xmodal.encoders.tokenizer import PiecesTokenizer
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import BadSample
from xmodal.grad_cache import gradients
from xmodal.method import Batch, Method, Progress
from xmodal.objectives import clip_loss

VOCABULARY = 500


def contest(pairs: int, micro_batch: int) -> Contest:
    """`small` on drawn characters and their names, in float32."""
    glyphs = Glyphs("unseen_names")
    names = sorted(set(captions(glyphs)))
    torch.manual_seed(0)
    method = _Clip(small_towers(PiecesTokenizer.train(names, VOCABULARY), side=32))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    method.to(device).train()
    batch = _batch(method.towers, glyphs, pairs)
    progress = Progress(0, 1, 1, pairs)

    def step(size: int | None) -> None:
        method.zero_grad(set_to_none=True)
        gradients(method, batch, progress, device, 0, size, nullcontext)

    return Contest(
        "a step's gradient, from pictures and token numbers to every parameter",
        {f"slices of {micro_batch}": lambda: step(micro_batch), "in one piece": lambda: step(None)},
        {"model": "small, 32 × 32 pixels, float32", "pairs": pairs, "slices": -(-pairs // micro_batch)},
    )


class _Clip(Method):
    def __init__(self, towers: TwoTower) -> None:
        super().__init__()
        self.towers: TwoTower = towers

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        return self.towers(image=batch["image"], text=batch["text"])

    def objective(
        self, representations: dict[str, Tensor], targets: dict[str, Tensor], progress: Progress
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        return clip_loss(representations["image"], representations["text"], self.towers.log_scale.exp()), {}


def _batch(towers: TwoTower, glyphs: Glyphs, pairs: int) -> Batch:
    rows = torch.arange(pairs) % len(glyphs)
    pictures = glyphs.images(rows.numpy())
    return {
        "image": towers.preparation.stack([p for p in pictures if not isinstance(p, BadSample)]),
        "text": towers.tokenizer([glyphs.texts(row)[0] for row in rows.tolist()]),
    }
