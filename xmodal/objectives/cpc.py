"""CPC: from what was seen so far, tell what comes next from what comes next elsewhere.

van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding" (arXiv:1807.03748), equations 3
and 4. There is no code of the authors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal.objectives.arguments import exact
from xmodal.objectives.info_nce import info_nce_loss


def cpc_loss(context: Tensor, future: Tensor, transforms: Tensor) -> Tensor:
    """The mean over steps k and rows of −log(f_k(z_{t+k}, c_t) / Σ over all rows' z f_k(z, c_t)).

    f_k(z, c) = exp(zᵀ W_k c): raw products, no unit rows and no temperature. The softmax is over candidates z for a
    context, as in the paper; over contexts for a z, as some ports have it, it is another loss.

    context: (b, c), c_t of each sequence. future: (b, k, z), z_{t+1} … z_{t+k}. transforms: (k, z, c), W_k. A row's
    negatives at step k are the other rows' z_{t+k} on all processes; several places t of a sequence, or several
    columns of a picture, are rows of their own, and then each other's negatives too. b may differ between processes.
    MI(z_{t+k}, c_t) ≥ ln N − the loss, of N rows on all processes.

    Exact over processes; nothing b × b is kept. Returns () float32, or float64 for float64 rows. Raises ValueError for
    shapes that don't match.
    """
    if (
        (context.ndim, future.ndim, transforms.ndim) != (2, 3, 3)
        or len(context) != len(future)
        or transforms.shape != (*future.shape[1:], context.shape[1])
        or not len(transforms)
    ):
        shapes = [tuple(x.shape) for x in (context, future, transforms)]
        raise ValueError(f"context, future and transforms must be (b, c), (b, k, z) and (k, z, c), not {shapes}")
    with torch.autocast(context.device.type, enabled=False):
        predicted = torch.einsum("kzc,bc->kbz", exact(transforms), exact(context))
        steps = zip(predicted, exact(future).unbind(1), strict=True)
        losses = [info_nce_loss(query, z, temperature=1.0) for query, z in steps]
        return torch.stack(losses).mean()
