"""Changes of colour and sharpness, each of many pictures at once and of every picture by its own amount.

Pictures are (n, 3, h, w) float32 in [0, 1], and so is what comes out; amounts are (n,). Each function gives what
torchvision's of the same name gives for every picture by itself (tests/data/test_colours.py), whatever the other
pictures are: a view must not depend on the batch that it is made in.
"""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

LUMA = 0.2989, 0.587, 0.114  # of red, green, blue, as torchvision weighs them (ITU-R BT.601)
ORDERS = tuple(permutations(range(4)))  # in which brightness, contrast, saturation and hue may be changed


def grey(x: Tensor) -> Tensor:
    """(n, 3, h, w) -> (n, 1, h, w)."""
    return LUMA[0] * x[:, :1] + LUMA[1] * x[:, 1:2] + LUMA[2] * x[:, 2:]


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Times the factor: 0 is black, 1 the picture."""
    return (x * _by_picture(factor)).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Away from the picture's mean grey: 0 is that grey, 1 the picture."""
    # In float64, so that the mean isn't another one where torch sums in another order.
    mean = grey(x).mean((1, 2, 3), dtype=torch.float64).float()
    return torch.lerp(_by_picture(mean), x, _by_picture(factor)).clamp_(0, 1)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Away from each pixel's grey: 0 is the grey picture, 1 the picture."""
    return torch.lerp(grey(x), x, _by_picture(factor)).clamp_(0, 1)


def hue(x: Tensor, shift: Tensor) -> Tensor:
    """Around the circle of hues by a part of it, in [−0.5, 0.5]; lightest and darkest channel keep their values."""
    red, green, blue = x.unbind(1)
    most = x.amax(1)
    range_ = most - x.amin(1)  # (n, h, w)
    over = range_.clamp(min=torch.finfo(x.dtype).tiny)  # a grey pixel has no hue, and whatever it gets is times 0
    sixth = torch.where(
        most == red,
        (green - blue) / over,
        torch.where(most == green, (blue - red) / over + 2, (red - green) / over + 4),
    )  # (n, h, w) in [−1, 5]: 0 is red, 2 green, 4 blue
    sixth = sixth + 6 * shift.view(-1, 1, 1)
    channels = []
    for first in (5, 3, 1):  # a channel is darkest between two sixths away from its own colour and four
        k = (sixth + first) % 6
        channels.append(most - range_ * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, 1)


def jitter(x: Tensor, amounts: Tensor, order: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue by amounts (n, 4), in one of ORDERS for each picture, (n,) long."""
    x = x.clone()
    turns = torch.tensor(ORDERS)[order]  # (n, 4): which is changed first, second, …
    for turn in turns.unbind(1):
        for number, change in enumerate((brightness, contrast, saturation, hue)):
            some = (turn == number).nonzero()[:, 0]
            if len(some):
                x[some] = change(x[some], amounts[some, number])
    return x


def solarise(x: Tensor) -> Tensor:
    """Values of a half and more turned round."""
    return torch.where(x >= 0.5, 1 - x, x)


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """With a Gaussian of so many pixels, cut off at a twentieth of the side: 23 × 23 for 224, as in SimCLR and BYOL.

    Beyond its edges the picture is mirrored. Along an axis this is a product with a matrix of a few diagonals, which is
    faster on a CPU than a convolution of which every picture has its own.
    """
    down, across = (_bands(side, sigma)[:, None] for side in x.shape[2:])  # (n, 1, h, h), (n, 1, w, w)
    return (down @ x @ across.mT).clamp_(0, 1)


def _bands(side: int, sigma: Tensor) -> Tensor:
    """(n,) -> (n, side, side): a row for each pixel, how much of which pixels it becomes."""
    reach = max(1, side // 20)
    away = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (away / sigma[:, None]).square())  # (n, 2 · reach + 1)
    weights = weights / weights.sum(1, keepdim=True)
    from_ = torch.arange(side)[:, None] + away
    from_ = (side - 1) - ((side - 1) - from_.abs()).abs()  # mirrored at both ends
    bands = torch.zeros(len(sigma), side, side)
    return bands.scatter_add_(2, from_.expand(len(sigma), -1, -1), weights[:, None].expand(-1, side, -1))


def _by_picture(amount: Tensor) -> Tensor:
    return amount.view(-1, 1, 1, 1)
