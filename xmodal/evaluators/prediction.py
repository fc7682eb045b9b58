"""Prediction as CPC is judged by: how often the right future is told from those of other sequences.

van den Oord et al. 2018 (arXiv:1807.03748), figure 6.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


@torch.no_grad()
def prediction_hits(context: Tensor, future: Tensor, transforms: Tensor) -> np.ndarray:
    """Whether each row's own z_{t+k} has a higher zᵀ W_k c than those of all other rows, (n, k) bool.

    context: (n, c), future: (n, k, z), transforms: (k, z, c). A tie is lost. The more rows, the harder: compare figures
    of as many candidates alone. It judges W_k with the encoder, and says little of what else the features are good for.
    """
    predicted = torch.einsum("kzc,nc->knz", transforms, context)
    scores = predicted @ future.permute(1, 2, 0)  # (k, n, n): row's prediction against candidates
    own = scores.diagonal(dim1=1, dim2=2)  # (k, n)
    others = scores.masked_fill(torch.eye(len(context), dtype=torch.bool, device=scores.device), float("-inf"))
    return (own > others.amax(2)).T.cpu().numpy()
