"""Columns with mean 0 and variance 1 over the rows of all processes: what a BatchNorm does before gain and bias."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xmodal import distributed
from xmodal.objectives.arguments import exact


def standardise(x: Tensor, eps: float = 1e-5) -> Tensor:
    """(b, c, …) -> the same shape: (x − mean) / √(variance + ε) of each channel, over all rows and places.

    The variance is the mean square, not divided by one less. b may differ between processes and be 0.
    Raises ValueError unless a channel has at least two values.
    """
    if distributed.processes() == 1:
        return F.batch_norm(x, None, None, training=True, eps=eps)
    return standardised(x, eps)[0]


def standardised(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same with what was measured, without gradient: mean (c,), variance (c,), how many values (), in float32
    or better."""
    return _Standardise.apply(x, eps)  # pyright: ignore[reportReturnType]


class _Standardise(torch.autograd.Function):
    """One exchange of 2c + 1 numbers forward, one of 2c backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.one_each = distributed.one_row_each()
        over = [axis for axis in range(x.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
        values = exact(x)
        here = values.numel() // max(1, values.shape[1])
        # Squares about the process's own mean: their sum over all values less N · mean² would cancel.
        mean = values.sum(over) / max(1, here)
        squares = (values - mean.view(shape)).square().sum(over)
        own = torch.cat([mean, squares, mean.new_tensor([here])])
        every = distributed.all_gather(own[None], ctx.one_each)  # (W, 2c + 1)
        means, squares, counts = every[:, : len(mean)], every[:, len(mean) : -1], every[:, -1:]
        count = counts.sum()
        if here < 2 and count < 2:  # looked at where it could be: every look waits for the device
            raise ValueError("Batch statistics need at least two values of a channel, on all processes together.")
        mean = (means * counts).sum(0) / count
        variance = (squares + (means - mean).square() * counts).sum(0) / count
        factor = (variance + eps).rsqrt()
        y = ((values - mean.view(shape)) * factor.view(shape)).to(x.dtype)
        ctx.save_for_backward(y, factor, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        y, factor, count = ctx.saved_tensors
        over = [axis for axis in range(y.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(y.ndim)]
        to_y, values = exact(gradients[0]), exact(y)
        both = torch.cat([to_y.sum(over), (to_y * values).sum(over)])
        both = distributed.all_gather(both[None], ctx.one_each).sum(0) / count
        along, across = (part.view(shape) for part in both.chunk(2))
        return ((to_y - along - values * across) * factor.view(shape)).to(y.dtype), None
