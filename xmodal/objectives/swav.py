"""SwAV: each view predicts to which prototypes another view of the picture is assigned.

Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments" (arXiv:2006.09882),
equations 1 to 4 and section 3.2 on crops; numbers from the reference code (facebookresearch/swav, main_swav.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.objectives.arguments import exact
from xmodal.objectives.mean import mean_over_rows


def swav_loss(scores: Tensor, codes: Tensor, *, temperature: float = 0.1) -> Tensor:
    """The cross-entropy between the codes of a view and the softmax of every other one over the prototypes.

    scores: (b, v, k), products of all v crops' unit rows with the k prototypes. codes: (b, a, k) without gradient, from
    `sinkhorn`, of the first a crops (2 in the paper: the large ones). b may differ between processes.
    For each of the a the mean over the v − 1 other crops, then the mean over the a, then over rows, as the reference
    code has it. Without anything to tell prototypes apart it is ln k.

    Exact over processes. Returns () float32, or float64 for float64 scores. Raises ValueError for shapes that don't
    match.
    """
    fits = scores.ndim == codes.ndim == 3 and (len(scores), scores.shape[2]) == (len(codes), codes.shape[2])
    if not (fits and 1 <= codes.shape[1] <= scores.shape[1] and scores.shape[1] > 1):
        raise ValueError(
            f"scores must be (b, v, k) of two views or more and codes (b, a, k) of the first of them, "
            f"not {tuple(scores.shape)} and {tuple(codes.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be more than 0, not {temperature}")
    views, assigned = scores.shape[1], codes.shape[1]
    with torch.autocast(scores.device.type, enabled=False):
        log_p = (exact(scores) / temperature).log_softmax(2)
        crossed = torch.einsum("bak,bvk->bav", codes.detach().to(log_p.dtype), log_p)
        itself = torch.eye(assigned, views, dtype=torch.bool, device=scores.device)
        losses = -crossed.masked_fill(itself, 0).sum((1, 2)) / (assigned * (views - 1))
        return mean_over_rows(losses, scores)


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float = 0.05, iterations: int = 3) -> Tensor:
    """Scores (b, k) of one view -> codes (b, k): each row sums to 1, all processes' rows share the prototypes evenly.

    Alternately the prototypes' sums over all rows and the rows' sums over prototypes are made equal, rows last. In
    logarithms: with exp(scores / ε), as the reference code computes it, scores of 5 are too large for float32, and a
    row far from all prototypes would be divided by 0.

    Rows that only help to share the prototypes evenly (SwAV's queue) are appended to the scores and their codes
    dropped: on each process its own part of them, since the rows of all processes count.
    Raises ValueError unless scores are (b, k), ε is positive and there is an iteration.
    """
    if scores.ndim != 2 or not epsilon > 0 or iterations < 1:
        raise ValueError(
            f"needs scores (b, k), epsilon above 0 and at least one iteration, "
            f"not {tuple(scores.shape)}, {epsilon} and {iterations}"
        )
    with torch.autocast(scores.device.type, enabled=False):
        codes = exact(scores) / epsilon
        one_each = distributed.one_row_each()
        for _ in range(iterations):
            here = codes.logsumexp(0, keepdim=True)  # −inf on a process without rows
            codes = (codes - distributed.all_gather(here, one_each).logsumexp(0)).log_softmax(1)
        return codes.exp()
