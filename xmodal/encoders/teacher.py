"""A copy of a module that follows it slowly: the momentum encoder of MoCo, the target network of BYOL."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn


class Teacher(nn.Module):
    """w ← m · w + (1 − m) · w_now, over parameters and buffers alike.

    Buffers, too: lightly's update_momentum leaves BatchNorm's running statistics out, and its teacher can't be
    evaluated. Nothing of it is trained; it belongs into the method, so that checkpoints hold it. In training mode its
    BatchNorms take statistics of the batch, as those of the papers do.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = deepcopy(module).requires_grad_(False)

    @torch.no_grad()
    def forward(self, *inputs: Any, **more: Any) -> Any:
        return self.module(*inputs, **more)

    def follow(self, module: nn.Module, momentum: float) -> None:
        """One step towards the module; momentum is how much of the copy stays."""
        move(self.module, module, momentum)


@torch.no_grad()
def move(ours: nn.Module, towards: nn.Module, momentum: float) -> None:
    """w ← momentum · w + (1 − momentum) · w_towards, over parameters and buffers; whole numbers are taken over."""
    now = towards.state_dict()
    for name, weight in ours.state_dict().items():
        if weight.is_floating_point():
            weight.lerp_(now[name], 1 - momentum)
        else:
            weight.copy_(now[name])
