"""BatchNorm with statistics of the global batch, on any device: torch's SyncBatchNorm refuses CPUs.

Ioffe & Szegedy 2015, "Batch Normalization" (arXiv:1502.03167), algorithm 1. On several GPUs SimCLR, BYOL, SwAV and
Barlow Twins need it: with statistics of its own rows a process tells them from the others', and 1 process isn't 2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from xmodal import distributed
from xmodal.errors import InputError
from xmodal.objectives.standardise import standardised


class BatchNorm(_BatchNorm):
    """torch.nn.BatchNorm1d, 2d and 3d in one, with their arguments and state: (b, c, …) -> the same shape.

    In training the mean and variance of a channel are those of all values on all processes, which may have different
    numbers of rows, or none; gradients are exact, too, and running statistics alike everywhere. On one process it is
    torch's. Every process must call it. Raises ValueError where a channel has fewer than two values.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2 or input.shape[1] != self.num_features:
            raise ValueError(f"needs (b, {self.num_features}, …), not {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        measured = self.training or self.running_mean is None
        if not measured or distributed.processes() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        y, mean, variance, count = standardised(input, self.eps)
        if self.training and self.running_mean is not None:
            self._follow(mean, variance * (count / (count - 1)))
        if self.weight is None:
            return y
        shape = [-1 if axis == 1 else 1 for axis in range(y.ndim)]
        return (y * self.weight.view(shape) + self.bias.view(shape)).to(y.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics; without a momentum they are the means over all batches so far."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        batches = self.num_batches_tracked.to(self.running_mean.dtype)
        share = 1 / batches if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, variance)):
            running.add_((now.to(running.dtype) - running) * share)


def over_all_processes(module: nn.Module) -> nn.Module:
    """The same module with every BatchNorm of torch's in it, at any depth, replaced by one of ours, weights and all.

    Raises InputError for others of torch's making (timm's BatchNormAct2d, SyncBatchNorm), whose statistics would stay
    those of one process or need a GPU.
    """
    for name, child in module.named_children():
        setattr(module, name, over_all_processes(child))
    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        return _ours(module)  # pyright: ignore[reportArgumentType]
    if isinstance(module, _BatchNorm) and not isinstance(module, BatchNorm):
        raise InputError(f"{type(module).__name__} can't be given the statistics of all processes; take another tower.")
    return module


def _ours(theirs: _BatchNorm) -> BatchNorm:
    given = theirs.affine, theirs.track_running_stats
    ours = BatchNorm(theirs.num_features, theirs.eps, theirs.momentum, *given)
    ours.train(theirs.training)
    for name, value in theirs.named_parameters(recurse=False):
        setattr(ours, name, value)  # the parameter itself: an optimizer may know it
    for name, value in theirs.named_buffers(recurse=False):
        setattr(ours, name, value)
    return ours
