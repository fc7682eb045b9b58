"""Semantic textual similarity: does a model put pairs of sentences into the order in which people put them?

Protocol. A pair's similarity is the cosine of its two rows; the score is Spearman's correlation with the gold scores,
over all pairs of a set together ("all" of Gao et al. 2021, appendix B), with nothing fitted to the set.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

# Cosines are rounded to multiples of it: a row against itself is 1 whatever its length, so that pairs of equal
# sentences are tied. It is far below what float32 rows can tell apart (2⁻²⁴).
STEP = 2.0**-40


def sts(first: Any, second: Any, gold: Any) -> dict[str, float]:
    """{"spearman": …}, in [−1, 1], between the cosines of rows and the gold scores.

    first, second: (n, d), arrays or tensors, unit or not; gold: (n,).
    Rows whose cosines are all equal tell nothing about the order and score 0.

    Not comparable between sets. It says nothing about whether a cosine of 0.8 means "similar": only order counts.
    Raises ValueError for shapes that don't match, fewer than two pairs, numbers that aren't finite, and gold scores
    that are all equal, which have no order.
    """
    return {"spearman": spearman(cosines(first, second), gold)}


def cosines(first: Any, second: Any) -> np.ndarray:
    """Cosines of rows of the same number, (n, d) and (n, d) -> (n,) float64; a row of zeros has cosine 0 with all.

    Raises ValueError for shapes that don't match and numbers that aren't finite.
    """
    first, second = as_numbers(first), as_numbers(second)
    if first.ndim != 2 or first.shape != second.shape:
        raise ValueError(f"first and second must both be (n, d), not {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("first or second holds numbers that are not finite")
    products = (_unit(first) * _unit(second)).sum(1)
    return np.clip(np.round(products / STEP) * STEP, -1, 1)


def spearman(predicted: Any, gold: Any) -> float:
    """Spearman's rank correlation of (n,) and (n,), ties with their average rank; 0 where all predictions are equal.

    Raises ValueError for shapes that don't match, fewer than two values, numbers that aren't finite, and gold scores
    that are all equal.
    """
    predicted, gold = as_numbers(predicted), as_numbers(gold)
    if predicted.ndim != 1 or predicted.shape != gold.shape:
        raise ValueError(f"similarities and gold must both be (n,), not {predicted.shape} and {gold.shape}")
    if len(gold) < 2:
        raise ValueError(f"a correlation needs at least two pairs, not {len(gold)}")
    if not (np.isfinite(predicted).all() and np.isfinite(gold).all()):
        raise ValueError("similarities or gold hold numbers that are not finite")
    if (gold == gold[0]).all():
        raise ValueError(f"gold is {gold[0]:g} throughout: nothing can be in its order")
    return float(correlations(Ranks(predicted), Ranks(gold), np.ones((1, len(gold))))[0])


class Ranks:
    """Values (n,), sorted once; their average ranks in any resample follow from how often each is in it."""

    def __init__(self, values: np.ndarray) -> None:
        distinct, self.number = np.unique(values, return_inverse=True)  # (n,): which of the v distinct values it is
        self.order = np.argsort(self.number, kind="stable")
        self.starts = np.searchsorted(self.number[self.order], np.arange(len(distinct)))  # (v,) within the order

    def centred(self, times: np.ndarray) -> np.ndarray:
        """How often each value counts, (r, n) -> its rank less the mean rank in each of r resamples, (r, n)."""
        counts = np.add.reduceat(times[:, self.order], self.starts, axis=1)  # (r, v)
        below = np.cumsum(counts, axis=1)
        # The c values of a tie share the rank below + (c + 1) / 2; the mean rank is (n + 1) / 2.
        ranks = below - counts / 2 - below[:, -1:] / 2
        return ranks[:, self.number]


def correlations(predicted: Ranks, gold: Ranks, times: np.ndarray) -> np.ndarray:
    """Spearman of the same values in each of r resamples, times (r, n) -> (r,); 0 where one of both is all equal."""
    ours, theirs = predicted.centred(times), gold.centred(times)
    weighted = ours * times
    spread = np.sqrt(_dot(weighted, ours) * _dot(theirs * times, theirs))
    return np.clip(_dot(weighted, theirs) / np.where(spread > 0, spread, 1), -1, 1)


def as_numbers(values: Any) -> np.ndarray:
    """Arrays and tensors of any type and device as float64."""
    return torch.as_tensor(values).detach().cpu().double().numpy()


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.einsum("rn,rn->r", first, second)
