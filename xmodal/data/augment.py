"""What training does to pictures: functions of the pictures and of random numbers that come from outside.

The numbers are drawn by (seed, epoch, position), so a picture's view does not depend on workers, on processes or on
what came before. Every augmentation is (pictures, draws (b, DRAWS) in [0, 1)) -> (b, 3, height, width) uint8.

One that shows a part of a picture has `decoders(draws)` as well: for each picture what reads its file no finer than
its view needs (`xmodal.data.cut`). What they read are Tensors, which the augmentation takes among its pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from xmodal.data.cut import Box, Cut, cut, cut_file
from xmodal.data.decode import Decoder
from xmodal.encoders.preparation import Preparation, as_tensor

DRAWS = 27  # random numbers a picture
View = Callable[[Sequence[Any], np.ndarray], Tensor]

AUGMENTATIONS = {
    "none": "the picture as evaluation sees it",
    "clip": "a rectangle of 0.9 to 1 of the area, open_clip's default ranges; less where it must shrink to fit",
    "photo": "a rectangle that holds 0.35 to 1 of the area, flipped every second time; for photographs from scratch",
    "drawing": "small shifts, rotation, shear and scaling; for signs, where a flip changes the meaning",
    "glyphs": "drawing, and a change of stroke weight; for black ink on white paper",
}


def augmentation(name: str, preparation: Preparation, exact: bool = False) -> View:
    """One of AUGMENTATIONS for a tower's size and interpolation.

    exact: decode files whole, where their view could be had from less to 50 dB.
    """
    if name == "none":
        return preparation.stack
    if name == "clip":  # open_clip_train's AugmentationCfg: scale (0.9, 1.0); ratio is RandomResizedCrop's default
        return Crop(preparation, (0.9, 1.0), (3 / 4, 4 / 3), flip=False, exact=exact)
    if name == "photo":
        return Crop(preparation, (0.35, 1.0), (3 / 4, 4 / 3), flip=True, exact=exact)
    return Drawing(preparation, stroke=name == "glyphs")


class Crop:
    """A rectangle of the picture by area and aspect ratio (Szegedy et al. 2015), scaled to the tower's size.

    scale: range of the area; ratio: range of width to height, uniform in its logarithm. Where torchvision draws again
    until the rectangle lies inside the picture, here the ratio is drawn among those that do: each picture takes the
    same number of draws. Where none does, it is the largest rectangle whose ratio is allowed, as there.
    """

    def __init__(
        self,
        preparation: Preparation,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        flip: bool,
        exact: bool = False,
    ) -> None:
        self.preparation, self.scale, self.ratio, self.flip, self.exact = preparation, scale, ratio, flip, exact

    def __call__(self, pictures: Sequence[Any], draws: np.ndarray) -> Tensor:
        """Pictures that are decoded, or what its decoders made of their files."""
        views = [p if isinstance(p, Tensor) else cut(p, *self.shown(d)) for p, d in zip(pictures, draws, strict=True)]
        return torch.stack(
            [view.flip(2) if self.flip and d[4] < 0.5 else view for view, d in zip(views, draws, strict=True)]
        )

    def decoders(self, draws: np.ndarray) -> list[Decoder]:
        return [partial(cut_file, **self.shown(d)._asdict(), exact=self.exact) for d in draws]

    def shown(self, draws: np.ndarray) -> Cut:
        """What its draws (DRAWS,) mean."""
        size = self.preparation.height, self.preparation.width
        return Cut(partial(self.rectangle, draws), size, self.preparation.interpolation)

    def rectangle(self, draws: np.ndarray, width: int, height: int) -> Box:
        """Which box (left, top, right, bottom) of a picture of this size its draws (DRAWS,) mean."""
        area = width * height * (self.scale[0] + draws[0] * (self.scale[1] - self.scale[0]))
        low, high = max(self.ratio[0], area / height**2), min(self.ratio[1], width**2 / area)
        if low <= high:
            ratio = low * (high / low) ** draws[1]
        else:
            ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
            area = min(width**2 / ratio, height**2 * ratio)
        across, down = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
        left, top = draws[2] * (width - across), draws[3] * (height - down)
        return left, top, left + across, top + down


class Drawing:
    """An affine change and a smooth warp of every picture, all at once, and, with `stroke`, other ink.

    The strengths are ranges to both sides of no change: rotation and shear in radians, the logarithm of each axis's
    scale, the shift in halves of the side. The warp moves the points of a 3 × 3 grid, what lies between them smoothly
    (after Simard et al. 2003, who smooth a random field): proportions differ from hand to hand and face to face. Ink
    grows or shrinks along each axis by its own amount, as the stems and the bars of typefaces do.
    """

    rotation, shear, stretch, shift, warp = 0.08, 0.15, 0.15, 0.06, 0.08

    def __init__(self, preparation: Preparation, stroke: bool) -> None:
        self.preparation, self.stroke = preparation, stroke

    def __call__(self, pictures: Sequence[Any], draws: np.ndarray) -> Tensor:
        height, width = self.preparation.height, self.preparation.width
        ink = 1 - self._double(pictures) / 255  # (b, 1 or 3, 2 height, 2 width); shifts bring in 0, paper
        b = len(ink)
        around = torch.from_numpy(2 * draws - 1).float()  # (b, DRAWS) in [-1, 1)
        if self.stroke:
            ink = _grown(_grown(ink, around[:, 7], (1, 3)), around[:, 8], (3, 1))
        angle, shear = self.rotation * around[:, 0], self.shear * around[:, 1]
        across, down = (torch.exp(self.stretch * around[:, i]) for i in (2, 3))
        cos, sin = angle.cos(), angle.sin()
        moved = torch.stack(
            [
                torch.stack([cos * across, (shear - sin) * across, self.shift * around[:, 4]], -1),
                torch.stack([sin * down, cos * down, self.shift * around[:, 5]], -1),
            ],
            1,
        )  # (b, 2, 3), from places in the view to places in the picture
        grid = F.affine_grid(moved, [b, ink.shape[1], height, width], align_corners=False)  # (b, h, w, 2)
        points = self.warp * around[:, 9:27].view(b, 2, 3, 3)
        grid = grid + F.interpolate(points, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
        view = F.grid_sample(F.avg_pool2d(ink, 2), grid, align_corners=False)
        return ((1 - view) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)

    def _double(self, pictures: Sequence[Any]) -> Tensor:
        """Pictures of any kind -> (b, 1 or 3, 2 height, 2 width) float in [0, 255]; all grey ones stay one channel.

        Those that can't be scaled in one go are scaled one by one, each as if it were alone in the batch.
        """
        size = (2 * self.preparation.height, 2 * self.preparation.width)
        if all(isinstance(p, np.ndarray) and p.ndim == 2 and p.shape == pictures[0].shape for p in pictures):
            grey = torch.from_numpy(np.stack(pictures)).float()[:, None]
            if grey.shape[2:] == size:
                return grey
            return F.interpolate(grey, size, mode="bilinear", antialias=True)
        if any(isinstance(p, np.ndarray) and p.ndim == 2 for p in pictures):
            alone = [self._double([p]) for p in pictures]  # (1, 1 or 3, 2 height, 2 width) each
            channels = max(one.shape[1] for one in alone)
            return torch.cat([one.expand(-1, channels, -1, -1) for one in alone])
        images = [as_image(p).resize((size[1], size[0]), Image.Resampling.BICUBIC) for p in pictures]
        return torch.stack([as_tensor(image) for image in images]).float()


def _grown(ink: Tensor, amount: Tensor, window: tuple[int, int]) -> Tensor:
    """Ink (b, c, h, w) made wider by up to a pixel on either side, or thinner by 0.6 of it, along one axis.

    amount: (b,) in [-1, 1). Strokes of body type are about four of these pixels wide.
    """
    padding = (window[0] // 2, window[1] // 2)
    amount = amount.view(-1, 1, 1, 1)
    wide, narrow = F.max_pool2d(ink, window, 1, padding), -F.max_pool2d(-ink, window, 1, padding)
    return torch.where(amount > 0, ink + amount * (wide - ink), ink - 0.6 * amount * (narrow - ink))


def as_image(picture: Any) -> Image.Image:
    """A decoded picture, a PIL image or a uint8 array, as an RGB image."""
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    return image if image.mode == "RGB" else image.convert("RGB")
