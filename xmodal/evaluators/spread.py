"""How many directions features spread over: whether an encoder has collapsed is seen at once.

Roy & Vetterli 2007, "The effective rank: a measure of effective dimensionality" (EUSIPCO); as RankMe (Garrido et al.
2023, arXiv:2210.02885) it follows accuracy across many image encoders of one kind. Alignment and uniformity are in
`alignment`.
"""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def effective_rank(rows: Any) -> float:
    """exp of the entropy of the singular values of rows (n, d), taken as shares of their sum: in [1, min(n, d)].

    The rows are not centred: features that are all equal have rank 1. Rows of fewer pictures than dimensions have a
    rank of at most their number: compare on the same pictures. More is not better by itself; noise has all of it.
    Raises ValueError for shapes, no rows, rows of zeros alone and numbers that aren't finite.
    """
    rows = torch.as_tensor(rows).detach().double()
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"rows must be (n, d) with n at least 1, not {tuple(rows.shape)}")
    if not torch.isfinite(rows).all():
        raise ValueError("rows hold numbers that are not finite")
    smaller = rows.T @ rows if len(rows) > rows.shape[1] else rows @ rows.T
    singular = torch.linalg.eigvalsh(smaller).clamp(min=0).sqrt()
    if not singular.any():
        raise ValueError("rows are all zero")
    # What is left of a value that should be 0 after squaring and rooting is about 1e-8 of the largest.
    singular = singular[singular > 1e-7 * singular.max()]
    shares = singular / singular.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))
