"""Pictures as grids of overlapping patches, and what CPC's training makes of them.

van den Oord et al. 2018 (arXiv:1807.03748), section 3.2: a picture of 256 pixels a side is a grid of 7 × 7 patches of
64 that overlap by half; of another size here patches are a quarter of the side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmodal.data import colours
from xmodal.data.augment import DRAWS, Crop
from xmodal.data.decode import Decoder
from xmodal.encoders.preparation import Preparation
from xmodal.errors import InputError

GRID = 7  # patches a side


def side_of_patches(preparation: Preparation) -> int:
    """Pixels a side of the patches of a picture. Raises InputError for a size that can't be cut so."""
    height, width = preparation.height, preparation.width
    if height != width or height % 8:
        raise InputError(
            f"Pictures of {height} × {width} pixels can't be cut into {GRID} × {GRID} patches that overlap by half: "
            "choose an --image-size that 8 divides."
        )
    return height // 4


def cut(pictures: Tensor, side: int) -> Tensor:
    """(b, 3, h, h) -> (b, 49, 3, side, side), row by row; neighbours overlap by half."""
    grid = pictures.unfold(2, side, side // 2).unfold(3, side, side // 2)  # (b, 3, 7, 7, side, side)
    return grid.flatten(2, 3).transpose(1, 2)


class PatchViews:
    """The training's patches of pictures, of other draws for each picture: {"patches": (b, 49, 3, side, side)} uint8.

    Section 3.2: a square of 256 pixels of a picture of 300, flipped every second time and grey; of each patch a square
    of 60 of its 64 pixels, padded to 64 again, so that lines that go on from patch to patch tell nothing.
    """

    draws = DRAWS + 2 * GRID**2

    def __init__(self, preparation: Preparation, exact: bool = False) -> None:
        """exact: see `augmentation`."""
        area = (256 / 300) ** 2
        self.side = side_of_patches(preparation)
        self.crop = Crop(preparation, (area, area), (1.0, 1.0), flip=True, exact=exact)

    def decoders(self, draws: np.ndarray) -> list[Decoder]:
        return self.crop.decoders(draws[:, :DRAWS])

    def __call__(self, pictures: Sequence[Any], draws: np.ndarray) -> dict[str, Tensor]:
        whole = self.crop(pictures, draws[:, :DRAWS])  # (b, 3, h, h)
        patches = cut(grey(whole / 255).mul_(255).round_().byte(), self.side)  # (b, 49, 3, side, side)
        play = max(1, self.side // 16)
        moves = torch.from_numpy(draws[:, DRAWS:] * (play + 1)).long().view(len(draws), GRID**2, 2)
        inner, before = self.side - play, play // 2
        padded = torch.zeros_like(patches)
        middle = padded[..., before : before + inner, before : before + inner]
        for down in range(play + 1):
            for right in range(play + 1):
                some = (moves[..., 0] == down) & (moves[..., 1] == right)  # (b, 49)
                middle[some] = patches[some][..., down : down + inner, right : right + inner]
        return {"patches": padded}


def grey(pictures: Tensor) -> Tensor:
    """(b, 3, h, w) in [0, 1] -> the same shape, three equal channels."""
    return colours.grey(pictures).expand(-1, 3, -1, -1).clone()
