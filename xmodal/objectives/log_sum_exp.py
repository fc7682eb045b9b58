"""log Σ exp over the negatives of each query: the part of a softmax for which tiles are needed.

What a loss does with it, and with the logits of its positives (`pairs.dots`), is arithmetic with a number a row, which
autograd derives. As the positives aren't in the sum, log(1 + negatives / positives) keeps the digits of a tiny loss.

Nothing is assumed of the rows' length. 2 · N · K · D operations forward, 6 backward, 4 where keys have no gradient. No
tile is kept. What lies on other processes is gathered before (`distributed.gather`), once for all sums it is used in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xmodal.objectives import epilogue
from xmodal.objectives.pairs import Pairs, dots
from xmodal.objectives.tiles import Tile, Tiling, accumulator, add_product, logits


@dataclass(frozen=True)
class Guide:
    """Another model's view of the same queries and keys: a key more similar than allowed is no negative."""

    query: Tensor  # (b, e) unit
    key: Tensor  # (k, e) unit
    most: Tensor  # (b,) the largest similarity that a negative may have

    def leave_out(self, tile: Tile, values: Tensor) -> None:
        """−inf in the tile's places that are no negatives."""
        similar = logits(self.query[tile.rows], self.key[tile.columns], 1.0)
        values.masked_fill_(similar > self.most[tile.rows, None], float("-inf"))


def log_sum_exp(
    query: Tensor, key: Tensor, scale: Tensor, left_out: Pairs | None = None, guide: Guide | None = None
) -> Tensor:
    """log Σ_j exp(scale · q_i · k_j), (b,) float64; −inf for a query of which nothing is left, then without gradient.

    query: (b, d); key: (k, d), all there are, from other processes as well; scale: ().
    left_out: places that aren't summed up; guide: drops more of them, tile by tile.
    """
    if left_out is None:
        none = torch.empty(0, dtype=torch.long, device=query.device)
        left_out = Pairs(none, none, none.bool())
    return _LogSumExp.apply(query, key, scale, left_out, guide)  # pyright: ignore[reportReturnType]


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, scale: Tensor, left_out: Pairs, guide: Guide | None) -> Tensor:
        ctx.tiling = Tiling([(range(len(query)), range(len(key)))], left_out)
        ctx.scale, ctx.scale_dtype, ctx.guide = scale.item(), scale.dtype, guide
        top = query.new_full((len(query),), -torch.inf, dtype=torch.promote_types(query.dtype, torch.float32))
        total = torch.zeros_like(top)
        for tile, values in _tiles(ctx, query, key):
            epilogue.running_sums(values, top[tile.rows], total[tile.rows])
        sums = total.double().log() + top.double()
        ctx.save_for_backward(query, key, sums)
        return sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, sums = ctx.saved_tensors
        to_query, to_key = accumulator(query), accumulator(key) if ctx.needs_input_grad[1] else None
        weight = torch.where(sums.isneginf(), 0, gradients[0])
        # In float16 a weight of 1/N would vanish: the largest is 1 until the end.
        largest = weight.abs().max().clamp_min(torch.finfo(weight.dtype).tiny) if len(weight) else weight.sum()
        share = (weight / largest)[:, None]
        weighted = (query * share).to(query.dtype)
        log_all = torch.where(sums.isneginf(), torch.inf, sums).to(to_query.dtype)
        for tile, values in _tiles(ctx, query, key):
            values = epilogue.softmax_rows(values, log_all[tile.rows], query.dtype)
            add_product(to_query[tile.rows], values, key[tile.columns])
            if to_key is not None:
                add_product(to_key[tile.columns], values.T, weighted[tile.rows])
        to_scale = (weight * dots(query, to_query)).sum().to(ctx.scale_dtype)
        to_query = to_query.mul_(share * largest * ctx.scale).to(query.dtype)
        to_key = None if to_key is None else to_key.mul_(largest * ctx.scale).to(key.dtype)
        return to_query, to_key, to_scale, None, None


def _tiles(ctx: Any, query: Tensor, key: Tensor) -> Any:
    """The tiles and their logits, with −inf at what is left out."""
    buffer = ctx.tiling.buffer(query)
    for tile in ctx.tiling:
        values = tile.put(logits(query[tile.rows], key[tile.columns], ctx.scale, buffer), float("-inf"))
        if ctx.guide is not None:
            ctx.guide.leave_out(tile, values)
        yield tile, values
