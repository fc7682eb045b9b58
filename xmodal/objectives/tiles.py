"""Symmetric InfoNCE from tiles of the similarity matrix: exact, one pass a direction of time, nothing N × N kept.

Rows and columns of the same logits need their log-sum-exp. One pass over tiles adds the exponentials up along both
axes (2N²D operations); the backward pass computes each tile again and takes both gradients from it (6N²D). That is 8N²D
where two cross-entropies of one matrix and its transpose take 12. A budget of bytes keeps exponentials for the backward
pass, which then takes 4N²D; the gradient is the same to the bit.

Numbers
- Exponentials are taken relative to one reference for the whole matrix, max(0, s · |x| · |y| − 70) with the longest
  rows: nothing overflows, and for unit rows it is max(0, s − 70). A row or column in which all negatives underflow is
  computed again, relative to its own maximum.
- Positives are left out of the sums; their logits are taken in float64, few as they are. The loss is
  log(1 + negatives / positives), and a positive's gradient −negatives / (all), never a difference of near-equals: a
  loss of 1e-11 has a right gradient.

Processes: texts are gathered, each process goes through its rows of images, the sums of columns are added up, and the
gradient of texts is reduced and scattered: 2 · N · D numbers a process, and O(N) beside them. (A grid of √W × √W
processes, each holding N/√W rows of both sides, would need 4 · N · D / √W: less from W = 16 on.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xmodal import distributed

HEADROOM = 70.0  # exp(70) summed over 1e7 columns stays below float32's largest number
LOW = 60.0  # sums below exp(−60) are taken again: beyond that their share of a tile would overflow
SQUARE = 1024  # side of a tile where rows and columns are the same
PANEL, WIDTH = 1024, 2048  # rows and columns of a tile; larger ones were no faster, smaller ones slower


@dataclass(frozen=True)
class Pairs:
    """Places (row of this process, column of all) that are no negatives, in the order of rows.

    positive: (p,) bool; the others are left out of everything.
    """

    row: Tensor  # (p,) long
    column: Tensor  # (p,) long
    positive: Tensor  # (p,) bool

    def dots(self, image: Tensor, every: Tensor) -> Tensor:
        """x · y of the positives in float64, (number of positives,): they are few, and a loss may be made of them."""
        row, column = self.row[self.positive], self.column[self.positive]
        some = zip(row.split(2048), column.split(2048), strict=True)
        dots = [(image[r].double() * every[c].double()).sum(1) for r, c in some]
        return torch.cat([image.new_empty(0).double(), *dots])


@dataclass
class Sums:
    """What is known of one axis, rows or columns; (n,) float64 each."""

    log_negatives: Tensor  # log of the sum of exp(negative), −inf without any
    top: Tensor  # the largest positive logit
    log_positives: Tensor  # log of the sum of exp(positive − top): 0 for a single one, exactly
    mean: Tensor  # the mean of the positive logits
    count: Tensor  # how many positives

    @property
    def odds(self) -> Tensor:
        """log of negatives over positives."""
        return self.log_negatives - self.top - self.log_positives

    @property
    def log_all(self) -> Tensor:
        return F.softplus(self.odds, threshold=40) + self.log_positives + self.top

    @property
    def losses(self) -> Tensor:
        # In this order: what a tiny loss consists of is not rounded to the precision of the logits.
        return F.softplus(self.odds, threshold=40) + (self.log_positives + (self.top - self.mean))


class SymmetricInfoNCE(torch.autograd.Function):
    """(b, d) images, (b, d) texts, () scale, pairs -> () the loss of the global batch."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, scale: Tensor, pairs: Pairs, keep_bytes: int) -> Tensor:
        sizes = distributed.sizes(len(text))
        every = distributed.all_gather(text, sizes)  # (B, d)
        first = sum(sizes[: distributed.rank()])
        reference = common_reference(image, every, scale)

        negatives_row = torch.zeros(len(image), dtype=torch.float64, device=image.device)
        negatives_column = torch.zeros(len(every), dtype=torch.float64, device=image.device)
        kept: dict[tuple[int, int], Tensor] = {}
        for tile in tiles(image, every, scale, pairs):
            values = exponentials(tile, reference)
            negatives_row[tile.row : tile.row + len(tile.rows)] += values.sum(1)
            negatives_column[tile.column : tile.column + len(tile.columns)] += values.sum(0)
            if keep_bytes >= values.nbytes:
                keep_bytes -= values.nbytes
                kept[tile.row, tile.column] = values.clone()
        distributed.all_reduce(negatives_column)

        logits = pairs.dots(image, every) * scale.double()
        rows = positive_sums(pairs.row[pairs.positive], logits, len(image), everywhere=False)
        columns = positive_sums(pairs.column[pairs.positive], logits, len(every), everywhere=True)
        rows.log_negatives = negatives_row.log() + reference
        columns.log_negatives = negatives_column.log() + reference
        again = (
            take_rows_again(image, every, scale, reference, pairs, rows),
            _take_columns_again(image, every, scale, reference, pairs, columns),
        )

        here = slice(first, first + len(text))
        share = rows.losses.sum() + columns.losses[here].sum()
        ctx.save_for_backward(image, every, scale)
        ctx.pairs, ctx.rows, ctx.columns, ctx.logits = pairs, rows, columns, logits
        ctx.kept, ctx.reference, ctx.sizes, ctx.again = kept, reference, sizes, again
        loss = share / (2 * len(every))
        distributed.all_reduce(loss)
        return loss.to(image.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        image, every, scale = ctx.saved_tensors
        pairs, rows, columns = ctx.pairs, ctx.rows, ctx.columns
        weight = gradients[0].double() / (2 * len(every))
        # d loss / d logit of a negative is exp(logit − reference) · (of its row + of its column).
        of_row = (weight * (ctx.reference - rows.log_all).exp()).to(image.dtype)
        of_column = (weight * (ctx.reference - columns.log_all).exp()).to(image.dtype)
        of_row[ctx.again[0]] = 0
        of_column[ctx.again[1]] = 0
        of_both = of_positives(pairs.row[pairs.positive], ctx.logits, rows)
        of_both += of_positives(pairs.column[pairs.positive], ctx.logits, columns)
        at_pairs = torch.zeros(len(pairs.row), dtype=image.dtype, device=image.device)
        at_pairs[pairs.positive] = (weight * of_both).to(image.dtype)

        to_image, to_text = torch.zeros_like(image), torch.zeros_like(every)
        both = image.new_empty(PANEL * WIDTH)
        for tile in tiles(image, every, scale, pairs):
            if (tile.row, tile.column) in ctx.kept:
                tile.values.copy_(ctx.kept[tile.row, tile.column])
            else:
                exponentials(tile, ctx.reference)
            factors = both[: tile.values.numel()].view_as(tile.values)
            torch.add(
                of_row[tile.row :][: len(tile.rows), None], of_column[tile.column :][: len(tile.columns)], out=factors
            )
            tile.values.mul_(factors)
            tile.put(at_pairs)
            tile.add_gradients(image, to_image, to_text)
        _add_underflown(ctx.again, image, every, scale, pairs, rows, columns, weight, to_image, to_text)
        to_scale = (image * to_image).sum(dtype=torch.float64).to(scale.dtype)
        to_text = distributed.reduce_scatter(to_text, ctx.sizes)
        return to_image.mul_(scale), to_text.mul_(scale), to_scale, None, None


@dataclass
class Tile:
    """Some rows (h, d) against some columns (w, d); `values` (h, w) is a buffer that the next tile uses again."""

    row: int  # the first
    column: int
    rows: Tensor  # (h, d), multiplied by the scale
    columns: Tensor  # (w, d)
    values: Tensor
    places: Tensor  # of the pairs inside, in the flattened values
    pairs: Tensor  # their numbers among all pairs

    def logits(self) -> Tensor:
        return torch.mm(self.rows, self.columns.T, out=self.values)

    def put(self, at_pairs: Tensor | float) -> None:
        """Overwrite the values at pairs, from one number or from those of all pairs (p,)."""
        self.values.view(-1)[self.places] = at_pairs[self.pairs] if isinstance(at_pairs, Tensor) else at_pairs

    def add_gradients(self, image: Tensor, to_image: Tensor, to_text: Tensor) -> None:
        """With values = d loss / d logits: add what rows and columns get of it, each still to be scaled."""
        here = slice(self.row, self.row + len(self.rows))
        to_image[here].addmm_(self.values, self.columns)
        to_text[self.column : self.column + len(self.columns)].addmm_(self.values.T, image[here])


def tiles(image: Tensor, every: Tensor, scale: Tensor, pairs: Pairs) -> Iterator[Tile]:
    """All of (b, d) against (B, d), row panel by row panel."""
    buffer = image.new_empty(PANEL * WIDTH)
    starts = torch.searchsorted(pairs.row, torch.arange(0, len(image) + PANEL, PANEL, device=image.device)).tolist()
    for number, a in enumerate(range(0, len(image), PANEL)):
        panel = image[a : a + PANEL] * scale
        row, column = (
            pairs.row[starts[number] : starts[number + 1]] - a,
            pairs.column[starts[number] : starts[number + 1]],
        )
        for c in range(0, len(every), WIDTH):
            part = every[c : c + WIDTH]
            inside = ((column >= c) & (column < c + WIDTH)).nonzero().squeeze(1)
            places = row[inside] * len(part) + column[inside] - c
            values = buffer[: len(panel) * len(part)].view(len(panel), len(part))
            yield Tile(a, c, panel, part, values, places, inside + starts[number])


def exponentials(tile: Tile, reference: float) -> Tensor:
    """exp(logits − reference), 0 at pairs."""
    values = tile.logits()
    if reference:
        values.sub_(reference)
    values.exp_()
    tile.put(0.0)
    return values


def common_reference(image: Tensor, every: Tensor, scale: Tensor) -> float:
    none = scale.new_zeros(1)  # a process may have no rows
    longest = [torch.cat([none, rows.norm(dim=1)]).max().double() for rows in (image, every)]
    most = (scale.double().abs() * longest[0] * longest[1]).view(1).clone()
    distributed.all_reduce(most, "max")  # one for all processes: their sums of columns are added up
    return max(0.0, most.item() - HEADROOM)


def positive_sums(place: Tensor, logits: Tensor, n: int, everywhere: bool) -> Sums:
    """The positives' part of the sums of n rows or columns; `everywhere` adds up what all processes know of them."""

    def added(values: Tensor) -> Tensor:
        total = torch.zeros(n, dtype=torch.float64, device=logits.device).index_add_(0, place, values)
        if everywhere:
            distributed.all_reduce(total)
        return total

    top = torch.full((n,), -math.inf, dtype=torch.float64, device=logits.device)
    top.scatter_reduce_(0, place, logits, "amax")
    if everywhere:
        distributed.all_reduce(top, "max")
    count = added(torch.ones_like(logits))
    # The mean is taken from the top down: for one positive it is the top, without a rounding error.
    mean = top + added(logits - top[place]) / count
    log_positives = added((logits - top[place]).exp()).log()
    return Sums(torch.empty(0), top, log_positives, mean, count)


def of_positives(place: Tensor, logits: Tensor, sums: Sums) -> Tensor:
    """d loss / d logit of each positive, p − 1/|P|, (number of positives,); but not as that difference."""
    among = (logits - sums.top[place] - sums.log_positives[place]).exp()  # of the positives alone
    return (among - 1 / sums.count[place]) - among * sums.odds[place].sigmoid()


def take_rows_again(rows: Tensor, every: Tensor, scale: Tensor, reference: float, pairs: Pairs, sums: Sums) -> Tensor:
    """Take sums of rows that are too small for the common reference again, each relative to its own maximum.

    Returns the numbers of the rows concerned.
    """
    taken = torch.bincount(pairs.row, minlength=len(rows))
    again = ((sums.log_negatives < reference - LOW) & (taken < len(every))).nonzero().squeeze(1)
    for some in again.split(256):
        sums.log_negatives[some] = negative_logits(some, rows, every, scale, pairs.row, pairs.column).logsumexp(1)
    return again


def _take_columns_again(
    image: Tensor, every: Tensor, scale: Tensor, reference: float, pairs: Pairs, sums: Sums
) -> Tensor:
    """The same for columns, of which each process has a part."""
    taken = torch.bincount(pairs.column, minlength=len(every))
    distributed.all_reduce(taken)
    again = ((sums.log_negatives < reference - LOW) & (taken < len(every))).nonzero().squeeze(1)
    for some in again.split(256):
        logits = negative_logits(some, every, image, scale, pairs.column, pairs.row)  # (256, b)
        none = logits.new_full((len(some), 1), -math.inf)  # a process may have no rows
        top = torch.cat([none, logits], 1).amax(1)
        distributed.all_reduce(top, "max")
        total = (logits - top[:, None]).exp().sum(1)
        distributed.all_reduce(total)
        sums.log_negatives[some] = total.log() + top
    return again


def _add_underflown(
    again: tuple[Tensor, Tensor],
    image: Tensor,
    every: Tensor,
    scale: Tensor,
    pairs: Pairs,
    rows: Sums,
    columns: Sums,
    weight: Tensor,
    to_image: Tensor,
    to_text: Tensor,
) -> None:
    """The gradient of the negatives of rows and columns that the tiles left out."""
    for some, ours, others, own, other, sums, to_ours, to_others in (
        (again[0], image, every, pairs.row, pairs.column, rows, to_image, to_text),
        (again[1], every, image, pairs.column, pairs.row, columns, to_text, to_image),
    ):
        for part in some.split(256):
            logits = negative_logits(part, ours, others, scale, own, other)
            gradient = (weight * (logits - sums.log_all[part, None]).exp()).to(ours.dtype)
            to_ours[part] += gradient @ others
            to_others += gradient.T @ ours[part]


def negative_logits(some: Tensor, ours: Tensor, others: Tensor, scale: Tensor, own: Tensor, other: Tensor) -> Tensor:
    """Logits of some rows (k) of ours with all others, (k, n) float64; −inf at pairs (own, other)."""
    rows = ours[some].double() * scale.double()
    logits = torch.cat([torch.empty(len(some), 0, dtype=torch.float64, device=ours.device),
                        *(rows @ part.double().T for part in others.split(WIDTH))], 1)  # fmt: skip
    number = torch.full((len(ours),), -1, device=ours.device)
    number[some] = torch.arange(len(some), device=ours.device)
    inside = number[own] >= 0
    logits[number[own[inside]], other[inside]] = -math.inf
    return logits
