"""Pairs that are the same or not, each by itself.

Hadsell, Chopra & LeCun 2006, "Dimensionality Reduction by Learning an Invariant Mapping", equation 4. The logistic form
is the pairwise one of SigLIP (Zhai et al. 2023, arXiv:2303.15343).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xmodal.objectives.arguments import check_same_shape, exact
from xmodal.objectives.mean import mean_over_rows


def margin_loss(first: Tensor, second: Tensor, same: Tensor, *, margin: float = 1.0, half: bool = False) -> Tensor:
    """The mean over pairs of y · D² + (1 − y) · max(0, m − D)², D the Euclidean distance.

    first, second: (b, d), rows of any length; same: (b,) bool, y. b may differ between processes.
    margin: m, the distance beyond which different rows are left alone. half: half of it all, as Hadsell et al. have it.
    sentence-transformers takes cosine distance, m 0.5 and the half; pytorch-metric-learning doesn't square, and leaves
    pairs without a loss out of the mean.

    Exact over processes. Rows of a different pair that are equal have no direction to part in: no gradient, never NaN.
    Returns () float32, or float64 for float64 rows. Raises ValueError for shapes that don't match.
    """
    _check(first, second, same)
    with torch.autocast(first.device.type, enabled=False):
        apart = exact(first) - exact(second)
        missing = (margin - torch.linalg.vector_norm(apart, dim=1)).clamp_min(0)
        losses = torch.where(same, apart.square().sum(1), missing.square())
        return mean_over_rows(losses / 2 if half else losses, first)


def logistic_loss(first: Tensor, second: Tensor, same: Tensor, scale: float | Tensor, bias: float | Tensor) -> Tensor:
    """The mean over pairs of −log σ(z (scale · x · y + bias)), z = 1 for the same and −1 for different ones.

    first, second: (b, d) unit; same: (b,) bool; b may differ between processes. scale, bias: numbers or () tensors,
    learnable. `siglip_loss` is the same over all pairs of a batch, divided by its rows.

    Exact over processes. Returns () float32, or float64 for float64 rows. Raises ValueError for shapes that don't
    match.
    """
    _check(first, second, same)
    for name, number in (("scale", scale), ("bias", bias)):
        if isinstance(number, Tensor) and number.numel() != 1:
            raise ValueError(f"{name} must be one number, not {tuple(number.shape)}")
    with torch.autocast(first.device.type, enabled=False):
        logits = (exact(first) * exact(second)).sum(1) * scale + bias
        return mean_over_rows(-F.logsigmoid(torch.where(same, logits, -logits)), first)


def _check(first: Tensor, second: Tensor, same: Tensor) -> None:
    check_same_shape(first=first, second=second)
    if same.shape != first.shape[:1] or same.dtype != torch.bool:
        raise ValueError(f"same must be ({len(first)},) bool, not {tuple(same.shape)} {same.dtype}")
