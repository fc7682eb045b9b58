"""Strided convolutions whose gradient is right on narrow maps, too, in bfloat16 on a CPU."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Strided(nn.Conv2d):
    """A convolution that along a side of one place takes its steps one by one, where that gives the same.

    On a CPU in bfloat16 (oneDNN, as of torch 2.14) some of the gradient of a weight is left unwritten where the map is
    one place wide and the stride is 2: the taps left and right of the middle, which see the border alone, get whatever
    was in memory, up to 1e30 and NaN. Pictures of 16 pixels, CPC's patches and SwAV's small crops come down to such
    maps.
    """

    def forward(self, input: Tensor) -> Tensor:
        padding: Any = self.padding
        stride = [
            1 if places == 1 and 2 * p == d * (k - 1) else step
            for places, step, p, d, k in zip(
                input.shape[-2:], self.stride, padding, self.dilation, self.kernel_size, strict=True
            )
        ]
        return F.conv2d(input, self.weight, self.bias, stride, padding, self.dilation, self.groups)


def with_strided(module: nn.Module) -> nn.Module:
    """The same module with every strided convolution of torch's in it, at any depth, replaced by a `Strided` one.

    A 1 × 1 convolution has no taps beside the middle and stays; so does one that pads otherwise than with zeros.
    """
    for name, child in module.named_children():
        setattr(module, name, with_strided(child))
    if type(module) is not nn.Conv2d or max(module.stride) == 1 or max(module.kernel_size) == 1:
        return module
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return module
    given = (module.stride, module.padding, module.dilation, module.groups, module.bias is not None)
    ours = Strided(module.in_channels, module.out_channels, module.kernel_size, *given, device="meta")  # pyright: ignore[reportArgumentType]
    ours.weight, ours.bias = module.weight, module.bias  # the parameters themselves: an optimizer may know them
    return ours.train(module.training)
