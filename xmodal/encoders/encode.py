"""Many texts through a text tower, as fast as they go: sorted by length, no padding, tokenised while others compute."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmodal.encoders.flat import Flat, flat
from xmodal.encoders.lengths import NOTHING
from xmodal.encoders.side_by_side import side_by_side
from xmodal.encoders.two_tower import Tokenizer
from xmodal.errors import InputError

CHUNK = 2048  # texts that are tokenised and sorted together
# Tokens in a batch. On a CPU, where each thread has one, measured with MiniLM on two cores; on a GPU it is estimated.
BUDGET = {"cpu": 1024, "cuda": 65536}


class RaggedTokenizer(Tokenizer, Protocol):
    """A tokenizer that gives rows as long as they are."""

    def ragged(self, texts: Sequence[str], /) -> tuple[list[list[int]], int]: ...


@dataclass(frozen=True)
class Encoded:
    rows: Tensor  # (n, d) float32 on the CPU, not normalised
    truncated: int  # texts that were longer than the tower takes


@torch.inference_mode()
def encode_texts(
    tower: nn.Module,
    tokenizer: RaggedTokenizer,
    texts: Sequence[str],
    *,
    device: torch.device,
    batch_size: int | None = None,
    precision: str = "fp32",
    progress: bool = False,
) -> Encoded:
    """Texts (n) -> rows in their order. The tower is in evaluation mode, on `device`.

    batch_size: at most so many texts at a time. precision: bf16 takes weights and products of linear layers in
    bfloat16, sums and norms between them stay float32. progress: a bar on stderr.
    Raises InputError for bf16 on a device that has it not.
    """
    if not texts:
        return Encoded(torch.empty(0, 0), 0)
    if precision == "bf16":
        tower = _in_bf16(tower)
    on_ragged = flat(tower) if device.type == "cpu" else None  # elsewhere rows of about one length are filled up
    budget = BUDGET.get(device.type, BUDGET["cuda"])
    rows: Tensor | None = None
    truncated = 0
    with _bar(len(texts), progress) as bar:
        for start, tokens, cut in _tokenised(tokenizer, texts):
            truncated += cut
            lengths = [len(row) for row in tokens]
            order = sorted(range(len(tokens)), key=lengths.__getitem__, reverse=True)  # what needs most memory first
            batches = list(_batches(order, lengths, budget, batch_size))
            parts = ([tokens[i] for i in batch] for batch in batches)
            embedded = side_by_side(lambda part: _forward(tower, on_ragged, part, device).float().cpu(), parts, device)
            for batch, found in zip(batches, embedded, strict=True):
                if rows is None:
                    rows = found.new_empty(len(texts), found.shape[1])
                rows[[start + i for i in batch]] = found
                bar.update(len(batch))
    assert rows is not None
    return Encoded(rows, truncated)


def _forward(tower: nn.Module, on_ragged: Flat | None, tokens: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    if on_ragged is not None and tokens[-1]:  # the shortest; a text may have no tokens at all
        return on_ragged(torch.tensor([t for row in tokens for t in row], device=device), [len(row) for row in tokens])
    longest = max(1, len(tokens[0]))
    padded = torch.tensor([[*row, *[NOTHING] * (longest - len(row))] for row in tokens])
    return tower(padded.to(device))


def _tokenised(tokenizer: RaggedTokenizer, texts: Sequence[str]) -> Iterator[tuple[int, list[list[int]], int]]:
    """Chunks of texts: where they begin, their tokens, how many were cut; each is made while the last one is used."""
    with ThreadPoolExecutor(1) as pool:
        starts = range(0, len(texts), CHUNK)
        coming = pool.submit(tokenizer.ragged, texts[:CHUNK])
        for start in starts:
            tokens, cut = coming.result()
            if start + CHUNK < len(texts):
                coming = pool.submit(tokenizer.ragged, texts[start + CHUNK : start + 2 * CHUNK])
            yield start, tokens, cut


def _batches(order: Sequence[int], lengths: Sequence[int], budget: int, most: int | None) -> Iterator[Sequence[int]]:
    """Texts, longest first, in batches of at most so many tokens, the longest's times their number."""
    start = 0
    while start < len(order):
        fit = max(1, budget // max(1, lengths[order[start]]))
        stop = start + min(fit, most or fit)
        yield order[start:stop]
        start = stop


def _in_bf16(tower: nn.Module) -> nn.Module:
    """The tower with its linear layers in bfloat16; it shares all other weights."""
    from xmodal.distributed import computes_bf16

    if not computes_bf16():
        raise InputError("--precision bf16: this device doesn't compute in bfloat16; leave fp32.")
    copy = deepcopy(tower, {id(p): p for p in (*tower.parameters(), *tower.buffers())})
    for module in list(copy.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, _Bf16Linear(child))
    return copy


class _Bf16Linear(nn.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.bfloat16(), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.bfloat16(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.bfloat16(), self.weight, self.bias)


def _bar(total: int, shown: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="encoding", unit=" texts", disable=not shown)
