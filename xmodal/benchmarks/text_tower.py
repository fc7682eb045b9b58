"""A training step of a CLIP's text tower on real captions, beside the same with every row filled up to 77 tokens."""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor

from xmodal.benchmarks.timing import Contest
from xmodal.data.source import captions, open_pairs
from xmodal.encoders import build
from xmodal.encoders.lengths import NOTHING
from xmodal.errors import InputError

FILLED_WITH = 0  # what open_clip's tokenizers put behind the end mark


def contest(data: str, model: str, pairs: int, dtype: torch.dtype) -> Contest:
    """A model of open_clip, its weights random; captions of a table in its order. Raises InputError for too few."""
    source, _ = open_pairs(data, None)
    texts = list(islice(captions(source), pairs))
    if len(texts) < pairs:
        raise InputError(f"{data} has {len(texts)} captions to train on; --pairs {pairs} are asked for.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    towers = build(f"open_clip:{model}", train_tokenizer=None).to(device).train()
    tower = towers.text
    short = towers.tokenizer(texts).to(device)
    lengths = (short != NOTHING).sum(1).float()
    full = short.masked_fill(short == NOTHING, FILLED_WITH)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=0.0)  # the same weights every time
    pull = torch.randn(pairs, _width(tower, full), device=device)

    def gradient(tokens: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            rows = towers.features(text=tokens)
        (rows.float() * pull).sum().backward()

    def step(tokens: Tensor) -> None:
        gradient(tokens)
        optimizer.step()

    gradient(full)
    expected = [p.grad.clone() for p in tower.parameters() if p.grad is not None]
    gradient(short)
    found = [p.grad for p in tower.parameters() if p.grad is not None]
    off = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, expected, strict=True))
    return Contest(
        "a training step of the text tower: forward, backward, AdamW",
        {"without padding": lambda: step(short), "every row filled up": lambda: step(full)},
        {
            "model": f"{model}, {str(dtype).removeprefix('torch.')}",
            "captions": f"{pairs} of {data}",
            "tokens in a row": f"{lengths.mean():.1f} on average, {lengths.max():.0f} at most, "
            f"{full.shape[1]} filled up",
        },
        columns={"without padding": {"gradient ±": off}},
    )


def _width(tower: torch.nn.Module, tokens: Tensor) -> int:
    with torch.no_grad():
        return tower(tokens[:1]).shape[-1]
