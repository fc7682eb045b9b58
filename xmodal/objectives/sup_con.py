"""Supervised contrastive learning: every row finds the rows of its class among all of the batch.

Khosla et al. 2020, "Supervised Contrastive Learning" (arXiv:2004.11362), equation 2: L_out, the mean over positives
stands outside the logarithm. Without the factor τ / 0.07 that the reference code (HobbitLong/SupContrast, losses.py)
puts before it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.objectives.arguments import scale_of, wide
from xmodal.objectives.pairs import same_ids
from xmodal.objectives.self_info_nce import SelfInfoNCE


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
    scale = scale_of(temperature, features)
    with torch.autocast(features.device.type, enabled=False):
        spread = distributed.rows(len(features))
        pairs = same_ids(labels, None, spread, features.device)
        pairs = replace(pairs, positive=spread.numbers(features.device)[pairs.row] != pairs.column)
        has_one = torch.zeros(len(features), dtype=torch.float64, device=features.device)
        has_one[pairs.row[pairs.positive]] = 1
        anchors = has_one.sum()
        distributed.all_reduce(anchors)
        weight = has_one / anchors.clamp(min=1)
        loss = SelfInfoNCE.apply(wide(features), wide(scale), pairs, weight)
    return loss  # pyright: ignore[reportReturnType]
