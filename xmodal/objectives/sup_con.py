"""Supervised contrastive learning: every row finds the rows of its class among all of the batch.

Khosla et al. 2020, "Supervised Contrastive Learning" (arXiv:2004.11362), equation 2: L_out, the mean over positives
stands outside the logarithm. Without the factor τ / 0.07 that the reference code (HobbitLong/SupContrast, losses.py)
puts before it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.objectives.info_nce import same_places
from xmodal.objectives.nt_xent import inverse
from xmodal.objectives.self_info_nce import SelfInfoNCE
from xmodal.objectives.tiles import Pairs


def sup_con_loss(features: Tensor, labels: Tensor, temperature: float | Tensor = 0.1) -> Tensor:
    """Mean over anchors of −mean over positives p of log(exp(z_i · z_p / τ) / Σ over all rows but i).

    features: (b, d) unit; several views of a picture are rows with its label. labels: (b,) long. Positives are the
    rows of the same label on any process, the anchor excepted; anchors without one are left out of the mean (the
    reference code divides by zero there), and a batch without any gives 0.
    temperature: τ, a number or () tensor, which then has a gradient.

    Exact over processes; half of the similarities are computed and none kept. Returns () float32, or float64 for
    float64 rows. Raises ValueError for shapes that don't match.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"features must be (b, d) and labels (b,) long, not {tuple(features.shape)} and {tuple(labels.shape)}"
        )
    scale = inverse(temperature, features)
    with torch.autocast(features.device.type, enabled=False):
        wide = torch.promote_types(features.dtype, torch.float32)
        row, column = same_places(len(features), labels, None, features.device)
        here = distributed.row_numbers(len(features), features.device)
        positive = here[row] != column
        has_one = torch.zeros(len(features), dtype=torch.float64, device=features.device)
        has_one[row[positive]] = 1
        anchors = has_one.sum()
        distributed.all_reduce(anchors)
        weight = has_one / anchors.clamp(min=1)
        loss = SelfInfoNCE.apply(features.to(wide), scale.to(wide), Pairs(row, column, positive), weight)
    return loss  # pyright: ignore[reportReturnType]
