"""The nearest rows of a gallery, found block by block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from xmodal.evaluators.retrieval import TIE

BLOCK = 8192  # gallery rows whose similarities are held at a time


@torch.no_grad()
def nearest(
    query: Tensor, gallery: Tensor | np.ndarray, k: int, right: Sequence[Tensor] | None = None, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """The k nearest of each query, or as many as there are: similarities and gallery rows, (q, k) each, best first.

    query: (q, d), gallery: (m, d), unit. right: the right answers of each query, (≤ m,) long; they come after wrong
    ones that are as similar, since the score counts a tie as lost. Other ties go by the gallery's order.
    Holds (q, block) similarities.
    """
    best = torch.empty(len(query), 0)
    place = torch.empty(len(query), 0, dtype=torch.long)
    handicap = torch.empty(len(query), 0)
    for start in range(0, len(gallery), block):
        some = query.float() @ _floats(gallery[start : start + block]).T  # (q, block)
        lost = torch.zeros_like(some)
        for i, rows in enumerate(right or ()):
            inside = rows[(rows >= start) & (rows < start + some.shape[1])] - start
            lost[i, inside] = TIE
        rows = torch.arange(start, start + some.shape[1]).expand_as(some)
        best, place, handicap = torch.cat([best, some], 1), torch.cat([place, rows], 1), torch.cat([handicap, lost], 1)
        order = torch.argsort(best - handicap, dim=1, descending=True, stable=True)[:, :k]
        best, place, handicap = best.gather(1, order), place.gather(1, order), handicap.gather(1, order)
    return best, place


def _floats(rows: Tensor | np.ndarray) -> Tensor:
    """A block's rows as float32; those of a file that is mapped are read by this."""
    return rows.float() if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows, dtype=np.float32))
