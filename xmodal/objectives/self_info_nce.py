"""InfoNCE of rows among themselves, from half of the tiles: the similarity matrix is symmetric.

A tile off the diagonal serves its rows and, transposed, its columns: M²D operations forward and 3M²D backward for M
rows, where a matrix that is computed whole takes three times as many for the products and their gradient. What
`symmetric_info_nce.py` says of numbers holds here, too.

Processes: rows are gathered and their gradient is reduced and scattered, 2 · M · D numbers a process. Process r takes
the blocks of its rows against those of processes r … r + ⌊W/2⌋ (`distributed.Rows.facing`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.objectives import epilogue, underflow
from xmodal.objectives.pairs import Pairs, dots
from xmodal.objectives.sums import positive_sums
from xmodal.objectives.tiles import Tiling, accumulator, add_product, common_reference, logits


class SelfInfoNCE(torch.autograd.Function):
    """(m, d) rows, () scale, pairs, (m,) weights -> () the sum over all anchors of weight · loss.

    pairs: an anchor's positives, and what is left out of its denominator beside them: itself. The relation must be
    symmetric. An anchor without a positive must have weight 0.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, scale: Tensor, pairs: Pairs, weight: Tensor) -> Tensor:
        spread = distributed.rows(len(rows))
        every = distributed.all_gather(rows, spread)  # (M, d)
        s = scale.item()
        reference = common_reference(rows, every, s)
        tiling = Tiling(spread.facing(), pairs, symmetric=True, first=spread.here.start)

        negatives = torch.zeros(len(every), dtype=torch.float64, device=rows.device)
        buffer = tiling.buffer(every)
        for tile in tiling:
            values = tile.put(logits(every[tile.rows], every[tile.columns], s, buffer), float("-inf"))
            along, down = epilogue.exponential_sums(values, reference, keep=False)
            negatives[tile.rows] += along
            if tile.mirrored:
                negatives[tile.columns] += down
        distributed.all_reduce(negatives)

        row, column = pairs.row[pairs.positive], pairs.column[pairs.positive]
        positive = dots(rows, every, row, column) * s
        sums = positive_sums(row, positive, len(rows), everywhere=False)
        sums.log_negatives = negatives[spread.here].log() + reference
        again = underflow.take_again(rows, every, s, reference, pairs.row, pairs.column, sums)
        loss = torch.where(weight > 0, weight * sums.losses, 0).sum()
        distributed.all_reduce(loss)

        ctx.save_for_backward(every, weight)
        ctx.pairs, ctx.sums, ctx.positive, ctx.again = pairs, sums, positive, again
        ctx.tiling, ctx.spread, ctx.scale, ctx.reference = tiling, spread, s, reference
        ctx.scale_dtype = scale.dtype
        return loss.to(torch.promote_types(rows.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        every, weight = ctx.saved_tensors
        pairs, sums, here, s = ctx.pairs, ctx.sums, ctx.spread.here, ctx.scale
        to_every = accumulator(every)
        rows, to_rows, weight = every[here], to_every[here], gradients[0].double() * weight
        of_row = torch.where(weight != 0, weight * (ctx.reference - sums.log_all).exp(), 0)
        of_row[ctx.again] = 0
        of_every = distributed.all_gather(of_row, ctx.spread).to(to_every.dtype)  # (M,)

        # A tile gives its rows and its columns their gradient, so a pair's place takes what both make of it.
        row, column = pairs.row[pairs.positive], pairs.column[pairs.positive]
        every_sums = sums.gathered(ctx.spread)
        every_weight = distributed.all_gather(weight, ctx.spread)
        both = [every_weight[k] * every_sums.of_positives(k, ctx.positive) for k in (row + here.start, column)]
        at_pairs = torch.zeros(len(pairs.row), dtype=to_every.dtype, device=every.device)
        at_pairs[pairs.positive] = (both[0] + both[1]).to(to_every.dtype)

        buffer = ctx.tiling.buffer(every)
        for tile in ctx.tiling:
            values = tile.put(logits(every[tile.rows], every[tile.columns], s, buffer), float("-inf"))
            values = epilogue.weighted_exponentials(
                values, ctx.reference, of_every[tile.rows], of_every[tile.columns], False, every.dtype
            )
            tile.put(values, at_pairs)
            add_product(to_every[tile.rows], values, every[tile.columns])
            if tile.mirrored:
                add_product(to_every[tile.columns], values.T, every[tile.rows])
        underflow.add_gradients(
            ctx.again, rows, every, s, pairs.row, pairs.column, sums.log_all, weight, to_rows, to_every
        )
        to_scale = dots(every, to_every).sum().to(ctx.scale_dtype) / 2  # every logit was counted for both of its rows
        return distributed.reduce_scatter(to_every, ctx.spread).mul_(s).to(every.dtype), to_scale, None, None
