"""Decoupled contrastive learning: NT-Xent without the positive in the denominator.

Yeh et al. 2022, "Decoupled Contrastive Learning" (arXiv:2110.06848), equation 6; τ 0.1 and the weight's σ 0.5 of its
section 4. Not to be taken for the debiased loss (`hard_nt_xent.py`), which is called DCL in its paper too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.objectives.arguments import check_same_shape, scale_of, wide
from xmodal.objectives.log_sum_exp import log_sum_exp
from xmodal.objectives.mean import mean_over_rows
from xmodal.objectives.pairs import dots, of_two_views


def dcl_loss(first: Tensor, second: Tensor, *, temperature: float | Tensor = 0.1, sigma: float | None = None) -> Tensor:
    """Mean over the 2B rows of −w_i z_i · z_p / τ + log Σ exp(z_i · z_j / τ) over the rows of other pictures.

    first, second: (b, d) unit, row i of one is another view of row i of the other; b may differ between processes.
    temperature: τ, a number or () tensor, which then has a gradient.
    sigma: without it w = 1; with it w_i = 2 − B · softmax_i(z_i · z_p / σ), without gradient, which counts pairs that
    agree already for less (the paper's DCLW). As in lightly's DCLLoss the mean is over rows, where the paper sums.

    A picture alone in the global batch has no negatives, and the loss is 0. Exact over processes; nothing b × b is
    kept. Returns () float32, or float64 for float64 rows. Raises ValueError for shapes that don't match.
    """
    check_same_shape(first=first, second=second)
    scale = scale_of(temperature, first)
    with torch.autocast(first.device.type, enabled=False):
        rows, scale = wide(torch.cat([first, second])), wide(scale)
        spread = distributed.rows(len(rows))
        agreement = dots(*rows.chunk(2))  # (b,) float64
        if spread.total <= 2:
            return mean_over_rows(0 * agreement, rows)
        negatives = log_sum_exp(rows, distributed.gather(rows), scale, of_two_views(spread, rows.device))
        weight = 1.0 if sigma is None else 2 - _times_mean(agreement.detach() / sigma)
        return mean_over_rows(negatives - (weight * agreement * scale).repeat(2), rows)


def _times_mean(x: Tensor) -> Tensor:
    """B · softmax(x) over the B rows of all processes, (b,)."""
    every = distributed.all_gather(x, distributed.rows(len(x)))
    return len(every) * (x - every.logsumexp(0)).exp()
