"""Rows that have nothing to learn from: of their class there is no other in the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal import distributed
from xmodal.objectives.pairs import same_ids


@torch.no_grad()
def rows_without_positive(labels: Tensor) -> Tensor:
    """How many rows of the global batch are the only ones of their label, (): those `sup_con_loss` leaves out.

    labels: (b,) long.
    """
    same = same_ids(labels, None, distributed.rows(len(labels)), labels.device)
    return distributed.total((torch.bincount(same.row, minlength=len(labels)) == 1).sum())
