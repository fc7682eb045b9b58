"""Barlow Twins: the features of two views correlate one to one, and with nothing else.

Zbontar et al. 2021, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction" (arXiv:2103.03230), equation 1
and algorithm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.objectives.arguments import check_same_shape, exact
from xmodal.objectives.standardise import standardise


def barlow_twins_loss(first: Tensor, second: Tensor, lambda_: float = 5e-3) -> Tensor:
    """Σ_i (1 − C_ii)² + λ Σ_i Σ_{j≠i} C_ij², C the correlations (d, d) of features over the global batch.

    first, second: (b, d), row i of one is another view of row i of the other; b may differ between processes.
    lambda_: 5e-3 as in the paper; the reference code (facebookresearch/barlowtwins, main.py) has 0.0051.

    Means and variances are of all processes' rows, without gain and bias, ε 1e-5: the last BatchNorm of the reference,
    which a head therefore must not have again. The reference sums C over processes without a gradient, which is 1/W of
    the true one before its wrapper averages; lightly standardises each process's rows by themselves. Here value and
    gradient are those of one process.

    Moves d² numbers between processes, and 8d for the statistics. Returns () float32, or float64 for float64 rows.
    Raises ValueError for shapes that don't match and for a global batch of fewer than two rows.
    """
    check_same_shape(first=first, second=second)
    with torch.autocast(first.device.type, enabled=False):
        count = distributed.count(len(first))
        if count < 2:
            raise ValueError(f"Correlations need at least two rows in the global batch, not {count}.")
        one, other = standardise(exact(first)), standardise(exact(second))
        # Every process goes on from the whole C in the same way, so its own share of C has the gradient of C.
        correlation = distributed.total(one.T @ other / count)
        diagonal = correlation.diagonal()
        others = correlation - diagonal.diag()
        return (1 - diagonal).square().sum() + lambda_ * others.square().sum()
