"""Retrieval of the same class: is the most similar of the other pictures of a picture's class?

The protocol of deep metric learning (Oh Song et al. 2016, arXiv:1511.06452, section 5): each picture of the test asks
among all others of it, and R@n is a hit if any of the n nearest is of its class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from xmodal.evaluators import bootstrap
from xmodal.evaluators.knn import _labels, _unit
from xmodal.evaluators.retrieval import TIE, hits
from xmodal.evaluators.scores import Scores

if TYPE_CHECKING:
    from xmodal.evaluators.evaluate_pictures import Embedding

KS = (1, 2, 4, 8)
TILE = 2**23  # similarities that are held at a time


def same_class(rows: Any, labels: Any, ks: tuple[int, ...] = KS) -> dict[str, float]:
    """{"R@1", "R@2", …} of rows (n, d), made unit, with labels (n,) long.

    Pictures that are alone of their class ask nothing, but are in the gallery; a tie with another class is lost. Chance
    is the larger the fewer classes there are: compare on the same pictures alone.
    Raises ValueError for shapes that don't match, and where no class has two pictures.
    """
    rank = same_class_ranks(rows, labels)
    if not len(rank):
        raise ValueError("no class has two pictures")
    return {f"R@{k}": float(hits(rank, k).mean()) for k in ks}


def score_same_class(_: Embedding, test: Embedding) -> tuple[dict[str, Any], Scores]:
    """For `evaluate_pictures`: protocol and scores "retrieval/R@1" …, with intervals, of those that are judged."""
    rank = same_class_ranks(test.rows[test.labelled], test.labels[test.labelled])
    told = (
        f"of {len(rank):,} judged pictures those with a picture of their class among the n most similar of the others; "
        "a tie with one of another class is lost"
    )
    return {"retrieval": told}, {f"retrieval/R@{k}": bootstrap.mean_score(hits(rank, k)) for k in KS if len(rank)}


@torch.no_grad()
def same_class_ranks(rows: Any, labels: Any) -> np.ndarray:
    """The rank from 1 of the nearest row of the own class, for each row that isn't alone of its class, (≤ n,)."""
    rows = _unit(rows)
    labels = _labels(labels, rows)
    asks = (torch.bincount(labels)[labels] > 1).nonzero()[:, 0]
    ranks = [_ranks(rows, labels, some) for some in asks.split(max(1, TILE // max(1, len(rows))))]
    return torch.cat(ranks).cpu().numpy() if ranks else np.empty(0, dtype=np.int64)


def _ranks(rows: Tensor, labels: Tensor, some: Tensor) -> Tensor:
    """Of some rows by number."""
    with torch.autocast(rows.device.type, enabled=False):
        similar = rows[some] @ rows.T  # (q, n)
    similar[torch.arange(len(some), device=rows.device), some] = float("-inf")
    same = labels[some, None] == labels
    best = similar.masked_fill(~same, float("-inf")).amax(1, keepdim=True)
    return 1 + (similar.masked_fill(same, float("-inf")) >= best - TIE).sum(1)
