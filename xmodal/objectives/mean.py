"""The mean over rows, which ends the losses that are no more than that."""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal import distributed


def mean_over_rows(losses: Tensor, like: Tensor) -> Tensor:
    """(b,) -> () the mean over the rows of all processes; 0 where there are none.

    like: rows, of whose type the result is, but float32 at least.
    """
    share = losses.sum() / max(1, distributed.count(len(losses)))
    return distributed.total(share.to(torch.promote_types(like.dtype, torch.float32)))
