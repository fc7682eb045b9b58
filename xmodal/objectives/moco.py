"""MoCo: a picture's view finds the other one, as a slowly moving encoder sees it, among a queue of earlier pictures.

He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning" (arXiv:1911.05722), equation 1 and
algorithm 1. Temperature 0.2 is MoCo v2's (Chen et al. 2020, arXiv:2003.04297); the first paper has 0.07.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xmodal.objectives.arguments import check_same_shape, scale_of, wide
from xmodal.objectives.log_sum_exp import log_sum_exp
from xmodal.objectives.mean import mean_over_rows
from xmodal.objectives.pairs import dots


def moco_loss(query: Tensor, key: Tensor, queue: Tensor, *, temperature: float | Tensor = 0.2) -> Tensor:
    """−mean over queries of log(exp(q_i · k_i / τ) / (exp(q_i · k_i / τ) + Σ over the queue)).

    query, key: (b, d) unit, key i is the other view of query i and its only positive; the batch's other keys are not
    its negatives, as in the paper. key and queue get no gradient. b may differ between processes.
    queue: (k, d) unit, the same on every process (`xmodal.encoders.queue`). Enqueue the keys after the step, once for
    both halves of a symmetric loss: between them a query would find its own key among the negatives.
    temperature: τ, a number or () tensor, which then has a gradient.

    Exact over processes; nothing b × k is kept. Where all rows are equal it is ln(1 + k). Returns () float32, or
    float64 for float64 rows. Raises ValueError for shapes that don't match.
    """
    check_same_shape(query=query, key=key)
    if queue.ndim != 2 or queue.shape[1] != query.shape[1]:
        raise ValueError(f"queue must be (k, {query.shape[1]}) as query, not {tuple(queue.shape)}")
    scale = scale_of(temperature, query)
    with torch.autocast(query.device.type, enabled=False):
        query, key, scale = wide(query), wide(key.detach()), wide(scale)
        positive = dots(query, key) * scale
        negatives = log_sum_exp(query, queue.detach().to(query.dtype), scale)
        return mean_over_rows(F.softplus(negatives - positive, threshold=40), query)
