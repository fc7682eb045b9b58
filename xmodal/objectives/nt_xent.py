"""NT-Xent: two views of a picture find each other among all views of the batch.

Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations" (arXiv:2002.05709),
equation 1. The mean over all 2N rows, as in the paper; the reference code (google-research/simclr, objective.py) adds
the means of the two views, which is twice that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.objectives.arguments import check_same_shape, scale_of, wide
from xmodal.objectives.pairs import of_two_views
from xmodal.objectives.self_info_nce import SelfInfoNCE


def nt_xent_loss(first: Tensor, second: Tensor, temperature: float | Tensor = 0.1) -> Tensor:
    """−mean over the 2B rows of log(exp(z_i · z_p / τ) / Σ over all rows but i), p the other view.

    first, second: (b, d) unit, row i of one is another view of row i of the other; b may differ between processes.
    temperature: τ, a number or () tensor, which then has a gradient.

    Exact over processes; half of the similarities are computed and none kept. Returns () float32, or float64 for
    float64 rows. Raises ValueError for shapes that don't match.
    """
    check_same_shape(first=first, second=second)
    scale = scale_of(temperature, first)
    with torch.autocast(first.device.type, enabled=False):
        rows = wide(torch.cat([first, second]))
        spread = distributed.rows(len(rows))
        pairs = of_two_views(spread, rows.device)
        weight = torch.full((len(rows),), 1 / max(1, spread.total), dtype=torch.float64, device=rows.device)
        loss = SelfInfoNCE.apply(rows, wide(scale), pairs, weight)
    return loss  # pyright: ignore[reportReturnType]
