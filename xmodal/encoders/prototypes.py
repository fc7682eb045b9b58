"""SwAV's prototypes: unit directions that pictures are assigned to.

Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments" (arXiv:2006.09882). As
in the reference code (facebookresearch/swav, src/resnet50.py) there is no bias; lightly's have one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prototypes(nn.Module):
    """Unit rows (…, d) -> their products with the k prototypes, (…, k)."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, width), dim=1))

    def forward(self, rows: Tensor, fixed: bool = False) -> Tensor:
        """fixed: without a gradient for the prototypes, which then no optimizer moves, its weight decay included: the
        first steps of the reference code, in which features find their place among random prototypes."""
        return F.linear(rows, self.weight.detach() if fixed else self.weight)

    @torch.no_grad()
    def normalise(self) -> None:
        """Make them unit again; after every step."""
        self.weight.copy_(F.normalize(self.weight, dim=1))
