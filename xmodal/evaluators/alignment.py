"""Alignment and uniformity on the unit sphere (Wang & Isola 2020): how near positives lie, how evenly all rows spread.

Lower is better for both, and each alone is easily had: rows that are all equal are perfectly aligned. They describe a
space; they don't say how well it serves a task.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmodal.evaluators import bootstrap

T = 2.0  # Wang & Isola 2020, figure 5; SimCSE (Gao et al. 2021, eq. 3) has the same
TILE = 2048  # rows whose distances to as many others are held at a time


def alignment(first: Any, second: Any) -> float:
    """The mean squared distance of positives, (n, d) and (n, d), which are made unit: in [0, 4].

    Raises ValueError for shapes that don't match, no rows and numbers that aren't finite.
    """
    return float(_squared_distances(first, second).mean())


def uniformity(rows: Any, t: float = T) -> float:
    """log E exp(−t‖x − y‖²) over the pairs of different rows of (n, d), which are made unit: in [−4t, 0].

    Equal rows count as a pair like any other; give each sentence once. Time grows with n², memory with n.
    Raises ValueError for shapes, fewer than two rows and numbers that aren't finite.
    """
    return float(np.log(_kernel_means(rows, t).mean()))


def alignment_score(first: Any, second: Any, seed: int = 0) -> bootstrap.Score:
    """`alignment` with its interval: pairs are resampled."""
    return bootstrap.mean_score(_squared_distances(first, second), seed=seed)


def uniformity_score(rows: Any, t: float = T, seed: int = 0) -> bootstrap.Score:
    """`uniformity` with its interval: rows are resampled, to first order.

    Each row stands for its mean over the other rows (Hájek's projection). A mean over pairs moves twice as far as that
    of the projection, since a row that is drawn again changes both places of a pair.
    """
    means = bootstrap.mean_score(_kernel_means(rows, t), seed=seed)
    value = math.log(means["value"])
    low, high = (value + 2 * (means[end] / means["value"] - 1) for end in ("low", "high"))
    return {"value": value, "low": low, "high": high}


def _squared_distances(first: Any, second: Any) -> np.ndarray:
    first, second = _unit(first), _unit(second)
    if first.shape != second.shape or not len(first):
        raise ValueError(
            f"first and second must both be (n, d) with n at least 1, not {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    return (first - second).square().sum(1).double().numpy()


@torch.no_grad()
def _kernel_means(rows: Any, t: float) -> np.ndarray:
    """For each row the mean of exp(−t‖x − y‖²) over the other rows, (n,) float64."""
    rows = _unit(rows)
    n = len(rows)
    if n < 2:
        raise ValueError(f"uniformity needs at least two rows, not {n}")
    sums = torch.zeros(n, dtype=torch.float64)
    for i in range(0, n, TILE):
        here = slice(i, min(i + TILE, n))
        for j in range(i, n, TILE):
            there = slice(j, min(j + TILE, n))
            # ‖x − y‖² = 2 − 2xy of unit rows; rounding can make xy more than 1
            kernel = torch.exp(2 * t * (rows[here] @ rows[there].T - 1).clamp(max=0))
            if i == j:
                kernel.fill_diagonal_(0)
            else:
                sums[there] += kernel.sum(0, dtype=torch.float64)
            sums[here] += kernel.sum(1, dtype=torch.float64)
    return (sums / (n - 1)).numpy()


def _unit(rows: Any) -> Tensor:
    rows = torch.as_tensor(rows).detach().cpu()
    if rows.ndim != 2:
        raise ValueError(f"rows must be (n, d), not {tuple(rows.shape)}")
    if not torch.isfinite(rows).all():
        raise ValueError("rows hold numbers that are not finite")
    rows = rows if rows.dtype == torch.float64 else rows.float()
    return torch.nn.functional.normalize(rows, dim=1)
