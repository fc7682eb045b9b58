"""The average of a model's weights over the steps of its training, which often does better than the last of them."""

from __future__ import annotations

from copy import deepcopy

from torch import nn

from xmodal.encoders.teacher import move


class Average(nn.Module):
    """A copy of a module whose weights follow it: w ← d·w + (1 − d)·w_now, over parameters and buffers alike.

    Unlike a `Teacher` it is never in training mode and chooses d by itself. Nothing of it is trained; it belongs into
    the method, so that checkpoints hold it.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.module = deepcopy(module).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Average:
        return super().train(False)

    def follow(self, module: nn.Module, step: int) -> None:
        """Take in the weights after a step (counted from 0). The first steps count for more: d is at most
        (1 + step) / (10 + step), so that the average forgets where it began."""
        move(self.module, module, min(self.decay, (1 + step) / (10 + step)))
