"""InfoNCE of rows among themselves, from half of the tiles: the similarity matrix is symmetric.

A tile off the diagonal serves its rows and, transposed, its columns: M²D operations forward and 3M²D backward for M
rows, where a matrix that is computed whole takes three times as many. What `tiles.py` says of numbers holds here, too.

Processes: rows are gathered and their gradient is reduced and scattered, 2 · M · D numbers a process. Process r takes
the blocks of its rows against those of processes r … r + ⌊W/2⌋; where two processes face each other (W even) each takes
half of their block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.objectives import tiles as engine
from xmodal.objectives.tiles import Pairs, Tile


class SelfInfoNCE(torch.autograd.Function):
    """(m, d) rows, () scale, pairs, (m,) weights -> () the sum over all anchors of weight · loss.

    pairs: an anchor's positives, and what is left out of its denominator beside them: itself. The relation must be
    symmetric. An anchor without a positive must have weight 0.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, scale: Tensor, pairs: Pairs, weight: Tensor) -> Tensor:
        sizes = distributed.sizes(len(rows))
        every = distributed.all_gather(rows, sizes)  # (M, d)
        first = sum(sizes[: distributed.rank()])
        here = slice(first, first + len(rows))
        blocks = _blocks(sizes, distributed.rank())
        reference = engine.common_reference(rows, every, scale)

        negatives = torch.zeros(len(every), dtype=torch.float64, device=rows.device)
        for tile, mirrored in _half(every, scale, pairs, first, blocks):
            values = engine.exponentials(tile, reference)
            negatives[tile.row : tile.row + len(tile.rows)] += values.sum(1)
            if mirrored:
                negatives[tile.column : tile.column + len(tile.columns)] += values.sum(0)
        distributed.all_reduce(negatives)

        logits = pairs.dots(rows, every) * scale.double()
        sums = engine.positive_sums(pairs.row[pairs.positive], logits, len(rows), everywhere=False)
        sums.log_negatives = negatives[here].log() + reference
        again = engine.take_rows_again(rows, every, scale, reference, pairs, sums)
        loss = torch.where(weight > 0, weight * sums.losses, 0).sum()
        distributed.all_reduce(loss)

        ctx.save_for_backward(every, scale, weight)
        ctx.pairs, ctx.sums, ctx.logits, ctx.again = pairs, sums, logits, again
        ctx.sizes, ctx.here, ctx.blocks, ctx.reference = sizes, here, blocks, reference
        return loss.to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        every, scale, weight = ctx.saved_tensors
        pairs, sums, here = ctx.pairs, ctx.sums, ctx.here
        rows, weight = every[here], gradients[0].double() * weight
        of_row = torch.where(weight != 0, weight * (ctx.reference - sums.log_all).exp(), 0).to(every.dtype)
        of_row[ctx.again] = 0
        of_every = distributed.all_gather(of_row, ctx.sizes)  # (M,)

        to_every = torch.zeros_like(every)
        for tile, mirrored in _half(every, scale, pairs, here.start, ctx.blocks):
            values = engine.exponentials(tile, ctx.reference)
            columns = slice(tile.column, tile.column + len(tile.columns))
            panel = slice(tile.row, tile.row + len(tile.rows))
            values.mul_(of_every[panel, None] + of_every[columns])
            to_every[panel].addmm_(values, tile.columns)
            if mirrored:
                to_every[columns].addmm_(values.T, every[panel])

        row, column = pairs.row[pairs.positive], pairs.column[pairs.positive]
        at_pairs = (weight[row] * engine.of_positives(row, ctx.logits, sums)).to(every.dtype)
        for r, c, g in zip(row.split(2048), column.split(2048), at_pairs[:, None].split(2048), strict=True):
            to_every.index_add_(0, r + here.start, g * every[c])
            to_every.index_add_(0, c, g * rows[r])
        for some in ctx.again.split(256):
            far = engine.negative_logits(some, rows, every, scale, pairs.row, pairs.column)
            gradient = (weight[some, None] * (far - sums.log_all[some, None]).exp()).to(every.dtype)
            to_every.index_add_(0, some + here.start, gradient @ every)
            to_every += gradient.T @ rows[some]

        # Every logit was counted for both of its rows.
        to_scale = (every * to_every).sum(dtype=torch.float64).to(scale.dtype) / 2
        return distributed.reduce_scatter(to_every, ctx.sizes).mul_(scale), to_scale, None, None


def _blocks(sizes: list[int], rank: int) -> list[tuple[range, range]]:
    """What this process computes: ranges of rows, its own, against ranges of columns; the first is its own square."""
    starts = [sum(sizes[:r]) for r in range(len(sizes) + 1)]
    own, world = range(starts[rank], starts[rank + 1]), len(sizes)
    found = [(own, own)]
    for ahead in range(1, world // 2 + 1):
        other = (rank + ahead) % world
        rows, columns = own, range(starts[other], starts[other + 1])
        if 2 * ahead == world:  # the other takes this block as well: the lower rank its first rows, the other the rest
            if rank < other:
                rows = own[: len(own) // 2]
            else:
                columns = columns[len(columns) // 2 :]
        found.append((rows, columns))
    return found


def _half(
    every: Tensor, scale: Tensor, pairs: Pairs, first: int, blocks: list[tuple[range, range]]
) -> Iterator[tuple[Tile, bool]]:
    """Tiles of blocks, of the own square those on and above the diagonal; and whether a tile stands for its mirror."""
    side = engine.SQUARE
    buffer = every.new_empty(side * side)
    row = pairs.row + first
    for number, (rows, columns) in enumerate(blocks):
        for a in range(rows.start, rows.stop, side):
            panel = every[a : min(a + side, rows.stop)]
            start, stop = torch.searchsorted(row, torch.tensor([a, a + len(panel)], device=row.device)).tolist()
            own_row, own_column = row[start:stop] - a, pairs.column[start:stop]
            for c in range(a if number == 0 else columns.start, columns.stop, side):
                part = every[c : min(c + side, columns.stop)]
                inside = ((own_column >= c) & (own_column < c + len(part))).nonzero().squeeze(1)
                places = own_row[inside] * len(part) + own_column[inside] - c
                values = buffer[: len(panel) * len(part)].view(len(panel), len(part))
                yield Tile(a, c, panel * scale, part, values, places, inside + start), number > 0 or c > a
