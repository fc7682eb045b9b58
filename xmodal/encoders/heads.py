"""What turns the features of a tower into the common space, and the tower with it."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from xmodal.encoders.batch_norm import BatchNorm

Projection = Literal["linear", "mlp"]


class Headed(nn.Module):
    """A backbone and a head: pixels or tokens -> features (b, width) -> (b, d)."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def set_grad_checkpointing(self, on: bool = True) -> None:
        if hasattr(self.backbone, "set_grad_checkpointing"):
            self.backbone.set_grad_checkpointing(on)  # pyright: ignore[reportCallIssue]


class Mlp(nn.Module):
    """Two layers with GELU between them, beside a linear way: (b, width) -> (b, d).

    Features are normalised first, for backbones differ in scale by orders of magnitude. The last layer begins at
    zero, so that training starts from the linear map. Dropout is of the features and of the layer between: where a
    tower is locked there is no other noise, and heads learn a few thousand pictures by heart.
    """

    def __init__(self, width: int, d: int, hidden: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = hidden or 2 * d
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, d, bias=False)
        self.first = nn.Linear(width, hidden)
        self.second = nn.Linear(hidden, d)
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.norm(x))
        return self.linear(x) + self.second(self.dropout(F.gelu(self.first(x))))


def projection(kind: Projection, width: int, d: int, dropout: float = 0.0) -> nn.Module:
    """A fresh head of a kind."""
    if kind == "linear":
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, d, bias=False))
    return Mlp(width, d, dropout=dropout)


def batch_norm_mlp(*widths: int, bias: bool = False) -> nn.Sequential:
    """Linear layers of these widths, between any two of them a BatchNorm over all processes and a ReLU.

    The heads of SimCLR, BYOL, SwAV and Barlow Twins. bias: of the last layer; before a BatchNorm one would do nothing.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias=False), BatchNorm(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=bias))
