"""The weights with which a model has scored best so far: what is exported where a score decides."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor, nn


class Best(nn.Module):
    """A copy of a module as it was when its score was highest. It belongs into the method, so that checkpoints hold it.

    score: () float64, −inf before the first; step: () long, how many steps were done then.
    """

    score: Tensor
    step: Tensor

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = deepcopy(module).requires_grad_(False).eval()
        self.register_buffer("score", torch.tensor(-math.inf, dtype=torch.float64))
        self.register_buffer("step", torch.tensor(0))

    def train(self, mode: bool = True) -> Best:
        return super().train(False)

    @torch.no_grad()
    def see(self, module: nn.Module, score: float, step: int) -> None:
        """Take the module's weights if its score is higher than any before; of equal scores the first stays."""
        if score > self.score.item():
            self.module.load_state_dict(module.state_dict())
            self.score.fill_(score)
            self.step.fill_(step)

    @property
    def found(self) -> bool:
        return self.score.item() > -math.inf
