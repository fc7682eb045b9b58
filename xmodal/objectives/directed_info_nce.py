"""InfoNCE in one direction: queries look for their keys among all keys, with each row's running maximum.

Nothing is assumed of the rows' length: raw dot products (CPC, N-pair) and keys with a weight of their own go this way.
2 · N · K · D operations forward for N queries and K keys, 6 backward; no tile is kept. Positives and weighted
negatives are kept apart, as `sums.py` says.

Processes: keys are gathered and their gradient is reduced and scattered, 2 · K · D numbers a process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.distributed import Rows
from xmodal.objectives import epilogue
from xmodal.objectives.pairs import Pairs, dots
from xmodal.objectives.sums import Sums, positive_sums
from xmodal.objectives.tiles import Tiling, accumulator, add_product, logits


class DirectedInfoNCE(torch.autograd.Function):
    """(b, d) queries, (k, d) keys, () scale, pairs, how the keys are spread -> () the mean over all queries."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, scale: Tensor, pairs: Pairs, spread: Rows) -> Tensor:
        every = distributed.all_gather(key, spread)  # (K, d)
        count, s = distributed.count(len(query)), scale.item()
        tiling = Tiling([(range(len(query)), range(len(every)))], pairs)
        top = torch.full((len(query),), -torch.inf, dtype=_sum_type(query), device=query.device)
        total = torch.zeros_like(top)
        buffer = tiling.buffer(query)
        for tile in tiling:
            values = tile.put(logits(query[tile.rows], every[tile.columns], s, buffer), float("-inf"))
            epilogue.running_sums(values, top[tile.rows], total[tile.rows])

        at = dots(query, every, pairs.row, pairs.column) * s  # (p,)
        sums = positive_sums(pairs.row[pairs.positive], at[pairs.positive], len(query), everywhere=False)
        sums.log_negatives = total.double().log() + top.double()
        at = torch.where(pairs.positive, at, at + pairs.log_weight)
        _add_weighted(sums, pairs, at)
        loss = sums.losses.sum() / max(1, count)
        distributed.all_reduce(loss)

        ctx.save_for_backward(query, every)
        ctx.pairs, ctx.sums, ctx.at, ctx.count = pairs, sums, at, count
        ctx.tiling, ctx.spread, ctx.scale, ctx.scale_dtype = tiling, spread, s, scale.dtype
        return loss.to(top.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, every = ctx.saved_tensors
        pairs, sums, s = ctx.pairs, ctx.sums, ctx.scale
        to_query, to_key = accumulator(query), accumulator(every)
        of_places = (ctx.at - sums.log_all[pairs.row]).exp()  # p of weighted negatives
        of_places[pairs.positive] = sums.of_positives(pairs.row[pairs.positive], ctx.at[pairs.positive])
        of_places = of_places.to(to_query.dtype)
        log_all = sums.log_all.to(to_query.dtype)
        buffer = ctx.tiling.buffer(query)
        for tile in ctx.tiling:
            values = tile.put(logits(query[tile.rows], every[tile.columns], s, buffer), float("-inf"))
            values = epilogue.softmax_rows(values, log_all[tile.rows], query.dtype)
            tile.put(values, of_places)
            add_product(to_query[tile.rows], values, every[tile.columns])
            add_product(to_key[tile.columns], values.T, query[tile.rows])
        weight = gradients[0].to(to_query.dtype) / max(1, ctx.count)
        to_scale = (dots(query, to_query).sum() * weight).to(ctx.scale_dtype)
        to_key = distributed.reduce_scatter(to_key, ctx.spread)
        return to_query.mul_(s * weight).to(query.dtype), to_key.mul_(s * weight).to(every.dtype), to_scale, None, None


def _sum_type(rows: Tensor) -> torch.dtype:
    return torch.promote_types(rows.dtype, torch.float32)


def _add_weighted(sums: Sums, pairs: Pairs, at: Tensor) -> None:
    """Take the weighted negatives, of which a query has at most one, into the sums."""
    row = pairs.row[~pairs.positive]
    sums.log_negatives[row] = torch.logaddexp(sums.log_negatives[row], at[~pairs.positive])
