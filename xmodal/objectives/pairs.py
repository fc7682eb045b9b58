"""The places of a similarity matrix that are not plain negatives: positives, and what is left out or weighted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.distributed import Rows

CHUNK = 128  # rows of float64 at a time: they stay in the cache


@dataclass(frozen=True)
class Pairs:
    """Places (row of this process, column of all), no place twice. There are few of them: a few a row.

    A positive is what a row is drawn towards. The others are negatives whose share of the sum is multiplied by
    exp(log_weight); −inf leaves them out.
    """

    row: Tensor  # (p,) long
    column: Tensor  # (p,) long
    positive: Tensor  # (p,) bool
    log_weight: float = float("-inf")


def dots(x: Tensor, y: Tensor, row: Tensor | None = None, column: Tensor | None = None) -> Tensor:
    """Products x[row] · y[column] in float64, (p,); without places row by row, (n,)."""
    if row is None or column is None:
        some = zip(x.split(CHUNK), y.split(CHUNK), strict=True)
    else:
        some = ((x[r], y[c]) for r, c in zip(row.split(CHUNK), column.split(CHUNK), strict=True))
    return torch.cat([x.new_empty(0).double(), *((a.double() * b.double()).sum(1) for a, b in some)])


def of_two_views(spread: Rows, device: torch.device) -> Pairs:
    """Of rows [first views; second views] on each process: the row itself, left out, and its other view, positive."""
    m = spread.sizes[spread.rank]
    own, here = torch.arange(m, device=device), spread.numbers(device)
    other = here.roll(m // 2) if m else here
    return Pairs(own.repeat(2), torch.cat([here, other]), torch.arange(2 * m, device=device) >= m)


@torch.no_grad()
def same_ids(image_id: Tensor | None, text_id: Tensor | None, spread: Rows, device: torch.device) -> Pairs:
    """The diagonal and every place, on any process, with the same image or the same text; all of them positives.

    image_id, text_id: (b,) long, of this process. Equal ids are found by sorting; the relation isn't made transitive.
    """
    rows, n = torch.arange(spread.sizes[spread.rank], device=device), spread.total
    places = [rows * n + spread.numbers(device)]
    for ids in (image_id, text_id):
        if ids is None:
            continue
        every, order = distributed.all_gather(ids, spread).sort(stable=True)
        first, last = torch.searchsorted(every, ids), torch.searchsorted(every, ids, right=True)
        counts = last - first
        inside = torch.arange(int(counts.sum()), device=device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        places.append(rows.repeat_interleave(counts) * n + order[first.repeat_interleave(counts) + inside])
    every_place = places[0] if len(places) == 1 else torch.cat(places).unique()
    row, column = every_place // max(n, 1), every_place % max(n, 1)
    return Pairs(row, column, torch.ones_like(row, dtype=torch.bool))
