"""N-pair: one pair of each of N classes; an anchor tells its positive from those of the other classes.

Sohn 2016, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective" (NeurIPS 2016), equation 4 and
section 3.2.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal.objectives.arguments import check_same_shape, exact
from xmodal.objectives.info_nce import info_nce_loss
from xmodal.objectives.mean import mean_over_rows


def n_pair_loss(anchor: Tensor, positive: Tensor, *, norm_weight: float = 0.0) -> Tensor:
    """Cross-entropy of anchor · positive over all positives, plus norm_weight times the mean of ‖z‖² of all rows.

    anchor, positive: (b, d), raw products as in the paper (pytorch-metric-learning makes rows unit unless told not
    to); row i of both is of one class, and all rows on all processes are of different classes: the order of samples
    has to see to that. b may differ between processes.
    norm_weight: the paper keeps lengths small by an L2 term but gives no number. TensorFlow's npairs_loss (contrib) has
    half of ours for the same number, 0.002; pytorch-metric-learning's LpRegularizer takes ‖z‖ unless its power is 2.

    Exact over processes; nothing b × b is kept. Returns () float32, or float64 for float64 rows. Raises ValueError for
    shapes that don't match.
    """
    check_same_shape(anchor=anchor, positive=positive)
    with torch.autocast(anchor.device.type, enabled=False):
        anchor, positive = exact(anchor), exact(positive)
        loss = info_nce_loss(anchor, positive, temperature=1.0)
        if norm_weight:
            squares = (anchor.square().sum(1) + positive.square().sum(1)) / 2
            loss = loss + norm_weight * mean_over_rows(squares, anchor)
        return loss
