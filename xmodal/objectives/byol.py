"""BYOL: predict how a slowly moving copy of the network sees the other view; nothing is pushed apart.

Grill et al. 2020, "Bootstrap Your Own Latent" (arXiv:2006.07733), equation 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xmodal.objectives.arguments import check_same_shape, exact
from xmodal.objectives.mean import mean_over_rows


def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean over rows of ‖q̄ − z̄‖² = 2 − 2 cos(q, z), one view predicting the other.

    prediction: (b, d), of the online network; target: (b, d), of the teacher, which gets no gradient. Rows of any
    length; b may differ between processes. The paper adds this to the same with the views exchanged (equation 3), so a
    step's loss is `byol_loss(q1, z2) + byol_loss(q2, z1)`, from 0 to 8. lightly's NegativeCosineSimilarity is −cos,
    and its examples take the mean of both ways.

    Written as a squared distance, so that a small loss keeps its digits. Exact over processes. Returns () float32, or
    float64 for float64 rows. Raises ValueError for shapes that don't match.
    """
    check_same_shape(prediction=prediction, target=target)
    with torch.autocast(prediction.device.type, enabled=False):
        unit, fixed = (F.normalize(exact(x), dim=1) for x in (prediction, target.detach()))
        return mean_over_rows((unit - fixed).square().sum(1), prediction)
