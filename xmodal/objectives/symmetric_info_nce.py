"""InfoNCE in both directions from one pass over the tiles.

Rows and columns of the same logits need their log-sum-exp. One pass over tiles adds the exponentials up along both
axes (2N²D operations), the backward pass multiplies each tile out again and takes both gradients from it (6N²D): 8N²D
where two cross-entropies of one matrix and of its transpose take 12. A budget of bytes keeps exponentials for the
backward pass; the gradient is the same to the bit.

Exponents are relative to max(0, s − 70) for unit rows, one number for the whole matrix; what vanishes beside it is
taken again (`underflow.py`). Positives are kept apart (`sums.py`).

Processes: texts are gathered, each process goes through its rows of images, the sums of columns are added up, and the
gradient of texts is reduced and scattered: 2 · N · D numbers a process, and O(N) beside them. (A grid of √W × √W
processes, each holding N/√W rows of both sides, would need 4 · N · D / √W: less from W = 16 on.)
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


class SymmetricInfoNCE(torch.autograd.Function):
    """(b, d) images, (b, d) texts, () scale, pairs -> () the loss of the global batch."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, pairs: Pairs, keep_bytes: int) -> Tensor:
        spread = distributed.rows(len(text))
        every = distributed.all_gather(text, spread)  # (B, d)
        s = scale.item()
        reference = common_reference(image, every, s)
        tiling = Tiling([(range(len(image)), range(len(every)))], pairs)

        of_rows = torch.zeros(len(image), dtype=torch.float64, device=image.device)
        of_columns = torch.zeros(len(every), dtype=torch.float64, device=image.device)
        kept: list[Tensor] = []
        buffer = tiling.buffer(image)
        for tile in tiling:
            keep_bytes -= tile.count * torch.promote_types(image.dtype, torch.float32).itemsize
            keep = keep_bytes >= 0
            values = logits(image[tile.rows], every[tile.columns], s, None if keep else buffer)
            tile.put(values, float("-inf"))
            along, down = epilogue.exponential_sums(values, reference, keep)
            of_rows[tile.rows] += along
            of_columns[tile.columns] += down
            if keep:
                kept.append(values)
        distributed.all_reduce(of_columns)

        row, column = pairs.row[pairs.positive], pairs.column[pairs.positive]
        positive = dots(image, every, row, column) * s
        rows = positive_sums(row, positive, len(image), everywhere=False)
        columns = positive_sums(column, positive, len(every), everywhere=True)
        rows.log_negatives = of_rows.log() + reference
        columns.log_negatives = of_columns.log() + reference
        again = (
            underflow.take_again(image, every, s, reference, pairs.row, pairs.column, rows),
            underflow.take_again(every, image, s, reference, pairs.column, pairs.row, columns, spread.total),
        )
        loss = (rows.losses.sum() + columns.losses[spread.here].sum()) / (2 * len(every))
        distributed.all_reduce(loss)

        ctx.save_for_backward(image, every)
        ctx.pairs, ctx.rows, ctx.columns, ctx.positive = pairs, rows, columns, positive
        ctx.tiling, ctx.kept, ctx.spread, ctx.again = tiling, kept, spread, again
        ctx.scale, ctx.reference, ctx.scale_dtype = s, reference, scale.dtype
        return loss.to(torch.promote_types(image.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        image, every = ctx.saved_tensors
        pairs, rows, columns, s = ctx.pairs, ctx.rows, ctx.columns, ctx.scale
        to_image, to_text = accumulator(image), accumulator(every)

        # d loss / d logit of a negative is exp(logit − reference) · (of its row + of its column). What each loss counts
        # is left for the end: in float16 a part of 1/N would vanish.
        of_row = (ctx.reference - rows.log_all).exp().to(to_image.dtype)
        of_column = (ctx.reference - columns.log_all).exp().to(to_image.dtype)
        of_row[ctx.again[0]] = 0
        of_column[ctx.again[1]] = 0
        row, column = pairs.row[pairs.positive], pairs.column[pairs.positive]
        both = rows.of_positives(row, ctx.positive) + columns.of_positives(column, ctx.positive)
        at_pairs = torch.zeros(len(pairs.row), dtype=to_image.dtype, device=image.device)
        at_pairs[pairs.positive] = both.to(to_image.dtype)

        buffer = ctx.tiling.buffer(image)
        for number, tile in enumerate(ctx.tiling):
            kept = number < len(ctx.kept)
            if kept:
                values = ctx.kept[number]
            else:
                values = tile.put(logits(image[tile.rows], every[tile.columns], s, buffer), float("-inf"))
            values = epilogue.weighted_exponentials(
                values, ctx.reference, of_row[tile.rows], of_column[tile.columns], kept, image.dtype
            )
            tile.put(values, at_pairs)
            add_product(to_image[tile.rows], values, every[tile.columns])
            add_product(to_text[tile.columns], values.T, image[tile.rows])
        for again, ours, others, own, other, sums, to_ours, to_others in (
            (ctx.again[0], image, every, pairs.row, pairs.column, rows, to_image, to_text),
            (ctx.again[1], every, image, pairs.column, pairs.row, columns, to_text, to_image),
        ):
            counts = torch.ones_like(sums.log_all)
            underflow.add_gradients(again, ours, others, s, own, other, sums.log_all, counts, to_ours, to_others)
        weight = gradients[0].double() / (2 * len(every))
        to_scale = (weight * dots(image, to_image).sum()).to(ctx.scale_dtype)
        to_text = distributed.reduce_scatter(to_text, ctx.spread)
        to_image, to_text = (rows.mul_(s * weight).to(image.dtype) for rows in (to_image, to_text))
        return to_image, to_text, to_scale, None, None
