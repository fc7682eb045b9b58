"""`small` for images alone: a residual network for pictures of 32 to 96 pixels on two CPU cores.

After He et al. 2016 (arXiv:1512.03385), with the 3 × 3 stem that SimCLR (appendix B.9) gives small pictures. It halves
the side, and a stage has one block: most of the time of a ResNet for CIFAR goes into its first, full-sized stage.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmodal.encoders.batch_norm import BatchNorm

WIDTHS = (16, 32, 64, 128, 256)


class Block(nn.Module):
    """Two 3 × 3 convolutions beside a way around them, which is a 1 × 1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.first_norm = BatchNorm(after)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.second_norm = BatchNorm(after)
        self.around: nn.Module = nn.Identity()
        if stride > 1 or before != after:
            self.around = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), BatchNorm(after))

    def forward(self, x: Tensor) -> Tensor:
        inside = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        return F.relu(inside + self.around(x))


class SmallResNet(nn.Module):
    """(b, 3, h, w) -> the mean over the last stage's places, (b, widths[-1]); h and w may be any."""

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, 2, 1, bias=False)
        self.norm = BatchNorm(widths[0])
        before = [widths[0], *widths[:-1]]
        self.blocks = nn.Sequential(*(Block(b, a, 1 if a == b else 2) for b, a in zip(before, widths, strict=True)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.contiguous(memory_format=torch.channels_last)
        x = F.relu(self.norm(self.stem(x)))
        return self.blocks(x).mean((2, 3))
