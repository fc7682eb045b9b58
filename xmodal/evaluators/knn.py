"""k nearest neighbours: a picture's class is what the training pictures next to it vote for.

The weighted vote of Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination"
(arXiv:1805.01978), section 3.4: a neighbour's vote counts exp(cosine / τ). k is 200 as there, τ 0.1 as in lightly's
benchmarks; Wu et al. take 0.07, at which they train.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmodal.evaluators.zeroshot import confusion, macro

K, TEMPERATURE = 200, 0.1
TILE = 2**23  # similarities that are held at a time


def knn(
    train: Any, train_labels: Any, test: Any, test_labels: Any, k: int = K, temperature: float = TEMPERATURE
) -> dict[str, float]:
    """Accuracy and per-class means: {"top1", "top5", "macro_precision", "macro_recall", "macro_f1"}.

    train: (m, d) and test: (n, d), arrays or tensors, which are made unit; labels: (m,) and (n,) long. top5 counts a
    picture whose class has one of the five largest votes; of fewer than five classes it is 1.
    A tie between the right class and a wrong one is lost.

    It says how the classes lie in the space as it is, which depends on how many training pictures there are and on k:
    compare with figures of the same protocol alone. A linear classifier finds more.
    Raises ValueError for shapes that don't match and numbers that aren't finite.
    """
    rank, predicted = knn_predictions(train, train_labels, test, test_labels, k, temperature)
    labels = torch.as_tensor(test_labels).cpu().numpy()
    classes = int(max(labels.max(), torch.as_tensor(train_labels).max())) + 1
    return {
        "top1": float((rank == 1).mean()),
        "top5": float((rank <= 5).mean()),
        **macro(confusion(labels, predicted, classes)),
    }


@torch.no_grad()
def knn_predictions(
    train: Any, train_labels: Any, test: Any, test_labels: Any, k: int = K, temperature: float = TEMPERATURE
) -> tuple[np.ndarray, np.ndarray]:
    """The rank of each picture's own class from 1, (n,), and the class with most votes, (n,); of a tie a wrong one.

    k: or as many as there are. Beyond its inputs it takes one tile of similarities and the votes of its rows.
    """
    train, test = _unit(train), _unit(test)
    train_labels, test_labels = _labels(train_labels, train), _labels(test_labels, test)
    if train.shape[1] != test.shape[1] or not len(train) or not len(test):
        raise ValueError(f"train and test must be (m, d) and (n, d), not {tuple(train.shape)} and {tuple(test.shape)}")
    if k < 1 or temperature <= 0:
        raise ValueError(f"k must be at least 1 and the temperature more than 0, not {k} and {temperature}")
    test = test.to(train)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    ranks, winners = [], []
    for rows, own in zip(*(x.split(max(1, TILE // len(train))) for x in (test, test_labels)), strict=True):
        with torch.autocast(rows.device.type, enabled=False):
            near, which = (rows @ train.T).topk(min(k, len(train)), dim=1)  # (q, k)
        weight = (
            ((near - near[:, :1]) / temperature).exp().double()
        )  # the same for all neighbours of a picture: shifted
        votes = weight.new_zeros(len(rows), classes).scatter_add_(1, train_labels[which], weight)
        mine = votes.gather(1, own[:, None])
        others = votes.scatter(1, own[:, None], -1.0)
        # Votes of equal neighbours differ by what their sums were rounded to.
        rank = 1 + (others >= mine - 1e-9 * weight.sum(1, keepdim=True)).sum(1)
        ranks.append(rank.clamp(max=classes))
        winners.append(torch.where(rank == 1, own, others.argmax(1)))
    return torch.cat(ranks).cpu().numpy(), torch.cat(winners).cpu().numpy()


def _unit(rows: Any) -> Tensor:
    rows = torch.as_tensor(rows).detach()
    if rows.ndim != 2:
        raise ValueError(f"rows must be (n, d), not {tuple(rows.shape)}")
    if not torch.isfinite(rows).all():
        raise ValueError("rows hold numbers that are not finite")
    return torch.nn.functional.normalize(rows.float(), dim=1)


def _labels(labels: Any, rows: Tensor) -> Tensor:
    labels = torch.as_tensor(labels, device=rows.device)
    if labels.shape != rows.shape[:1] or labels.is_floating_point() or (len(labels) and labels.min() < 0):
        raise ValueError(
            f"labels must be ({len(rows)},) whole numbers from 0, not {tuple(labels.shape)} {labels.dtype}"
        )
    return labels.long()
