"""Views of pictures: the augmentations of the papers by name, with every probability and strength from its source.

A view is a function of the picture and of random numbers that come from outside, drawn by (seed, epoch, position): it
depends neither on workers nor on processes nor on what came before. Rectangles are cut and scaled one by one, what
follows is done to many pictures at once.

Pictures of up to SMALL pixels a side are not blurred, for a Gaussian of up to two pixels would leave nothing of them:
so SimCLR does on CIFAR-10 (appendix B.9), and so do solo-learn's settings of BYOL and Barlow Twins for it
(scripts/pretrain/cifar/augmentations/asymmetric.yaml) and MoCo's own CIFAR-10 demo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from xmodal.data import colours
from xmodal.data.augment import AUGMENTATIONS, DRAWS, Crop, as_image, augmentation
from xmodal.data.cut import Cut, cuts_of_file
from xmodal.data.decode import Decoder
from xmodal.encoders.preparation import Preparation

SMALL = 64  # pixels a side
AT_ONCE = 2**17  # numbers that are worked on at a time: what a core's cache holds

ViewsName = Literal["simclr", "moco_v2", "byol", "barlow_twins", "swav", "clip", "photo", "drawing", "glyphs", "none"]


class Branch(Protocol):
    """What makes one view. draws: how many random numbers it takes for a picture."""

    draws: int

    @property
    def crop(self) -> Crop | None:
        """What it cuts out of a picture, or was cut out already, and works on; None: all of it."""
        ...

    def __call__(self, pictures: Sequence[Any], draws: np.ndarray, /) -> Tensor:
        """Pictures, or what `crop` cut out of them, and numbers (b, draws) in [0, 1) -> (b, 3, h, w) uint8."""
        ...


@dataclass(frozen=True)
class Distort:
    """A rectangle, flipped every second time; other colours; grey; blurred; solarised: each by its probability.

    scale: the range of the rectangle's area. jitter: by how much brightness, contrast and saturation are changed, each
    by a factor in [1 − s, 1 + s], and hue, by a part of the circle in [−s, s]; in random order, as in torchvision.
    """

    preparation: Preparation
    scale: tuple[float, float] = (0.08, 1.0)
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)
    blur: float = 0.0
    solarise: float = 0.0
    # Everywhere the same: SimCLR's data_util.py, MoCo's main_moco.py, BYOL's table 6, SwAV's multicropdataset.py.
    jittered: float = 0.8
    grey: float = 0.2
    sigma: tuple[float, float] = (0.1, 2.0)

    draws = 15

    @property
    def crop(self) -> Crop:
        return Crop(self.preparation, self.scale, (3 / 4, 4 / 3), flip=True)

    def __call__(self, pictures: Sequence[Any], draws: np.ndarray) -> Tensor:
        views = self.crop(pictures, draws[:, :5])
        numbers = torch.from_numpy(draws).float()
        size = max(1, AT_ONCE // views[0].numel())
        for some, u in zip(views.split(size), numbers.split(size), strict=True):
            some.copy_((self._coloured(some.float() / 255, u) * 255).round_())
        return views

    def _coloured(self, x: Tensor, u: Tensor) -> Tensor:
        """Pictures (n, 3, h, w) in [0, 1] and random numbers (n, draws)."""
        strengths = torch.tensor(self.jitter)
        middle = torch.tensor([1.0, 1.0, 1.0, 0.0])
        least = torch.maximum(middle - strengths, torch.tensor([0.0, 0.0, 0.0, -0.5]))
        amounts = least + u[:, 6:10] * (middle + strengths - least)  # (n, 4)
        order = (u[:, 10] * len(colours.ORDERS)).long()
        sigma = self.sigma[0] + u[:, 13] * (self.sigma[1] - self.sigma[0])
        x = _where(u[:, 5] < self.jittered, x, lambda x, some: colours.jitter(x, amounts[some], order[some]))
        x = _where(u[:, 11] < self.grey, x, lambda x, _: colours.grey(x))
        x = _where(u[:, 12] < self.blur, x, lambda x, some: colours.blur(x, sigma[some]))
        return _where(u[:, 14] < self.solarise, x, lambda x, _: colours.solarise(x))


class Plain:
    """One of `augment.AUGMENTATIONS` as a view."""

    draws = DRAWS

    def __init__(self, name: str, preparation: Preparation) -> None:
        self.view = augmentation(name, preparation)
        self.crop = self.view if isinstance(self.view, Crop) else None

    def __call__(self, pictures: Sequence[Any], draws: np.ndarray) -> Tensor:
        return self.view(pictures, draws)


class Views:
    """Several views of every picture, under one key for each size.

    branches: for each key what makes its views. exact: decode files whole, where all of a picture's views could be had
    from less to 50 dB.
    """

    def __init__(self, branches: Mapping[str, Sequence[Branch]], exact: bool = False) -> None:
        self.branches, self.exact = branches, exact
        self.draws = sum(branch.draws for several in branches.values() for branch in several)

    def __call__(self, pictures: Sequence[Any], draws: np.ndarray) -> dict[str, Tensor]:
        """Pictures, or what `decoders` made of their files, and numbers (b, draws) in [0, 1) -> for each key
        (b, v, 3, h, w) uint8."""
        pictures = [p if isinstance(p, list | np.ndarray) else as_image(p) for p in pictures]
        made = (
            branch([p[number] if isinstance(p, list) else p for p in pictures], own)
            for number, (branch, own) in enumerate(self._with_numbers(draws))
        )
        return {key: torch.stack([next(made) for _ in several], 1) for key, several in self.branches.items()}

    def decoders(self, draws: np.ndarray) -> list[Decoder] | None:
        """For each picture what reads its file once and cuts all views out, (3, h, w) uint8 each, in a list.

        None where a view is of the whole picture.
        """
        shown = self.shown(draws)
        return None if shown is None else [partial(cuts_of_file, cuts=cuts, exact=self.exact) for cuts in shown]

    def shown(self, draws: np.ndarray) -> list[list[Cut]] | None:
        """What the views show of each picture; None where one is of the whole picture."""
        crops = [(branch.crop, own) for branch, own in self._with_numbers(draws)]
        if any(crop is None for crop, _ in crops):
            return None
        return [[crop.shown(own[i]) for crop, own in crops if crop is not None] for i in range(len(draws))]

    def _with_numbers(self, draws: np.ndarray) -> Iterator[tuple[Branch, np.ndarray]]:
        """The branches in their order, and the part of the numbers that each takes."""
        start = 0
        for branch in chain(*self.branches.values()):
            yield branch, draws[:, start : start + branch.draws]
            start += branch.draws


def views(name: ViewsName, preparation: Preparation, exact: bool = False) -> Views:
    """A paper's views for a tower's size: "views" (b, 2, 3, h, w), and for SwAV "crops" (b, 6, 3, h, w) beside them.

    clip, photo, drawing and glyphs are those of `xmodal.data.augment`, twice; none is the picture itself, twice.
    exact: see `Views`.
    """
    if name in AUGMENTATIONS:
        return Views({"views": [Plain(name, preparation)] * 2}, exact)
    small = min(preparation.height, preparation.width) <= SMALL
    bicubic, bilinear = (replace(preparation, interpolation=i) for i in ("bicubic", "bilinear"))
    if name == "simclr":
        # Chen et al. 2020, appendix A, and data_util.py: strength 1; appendix B.9: strength 0.5 for CIFAR-10.
        s = 0.5 if small else 1.0
        one = Distort(bicubic, jitter=(0.8 * s, 0.8 * s, 0.8 * s, 0.2 * s), blur=0.0 if small else 0.5)
        return Views({"views": [one, one]}, exact)
    if name == "moco_v2":
        # facebookresearch/moco, main_moco.py under --aug-plus.
        one = Distort(bilinear, scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), blur=0.0 if small else 0.5)
        return Views({"views": [one, one]}, exact)
    if name in ("byol", "barlow_twins"):
        # Grill et al. 2020, table 6; Zbontar et al. 2021, section 2.2: "the same as BYOL's", and so in its main.py.
        one = Distort(bicubic, jitter=(0.4, 0.4, 0.2, 0.1), blur=0.0 if small else 1.0)
        return Views({"views": [one, replace(one, blur=0.0 if small else 0.1, solarise=0.2)]}, exact)
    if name == "swav":
        # facebookresearch/swav: README (2 × 224, 6 × 96, the ranges of areas) and multicropdataset.py (the rest).
        one = Distort(bilinear, scale=(0.14, 1.0), blur=0.0 if small else 0.5)
        sides = {side: 2 * round(getattr(preparation, side) * 96 / 224 / 2) for side in ("height", "width")}
        crop = replace(one, preparation=replace(bilinear, **sides), scale=(0.05, 0.14))
        return Views({"views": [one, one], "crops": [crop] * 6}, exact)
    raise ValueError(f"no views are called {name!r}")


def _where(chosen: Tensor, x: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Pictures (n, …), those of them that are chosen, (n,) bool, changed; change takes these and their numbers."""
    some = chosen.nonzero()[:, 0]
    if len(some):
        x[some] = change(x[some], some).expand(-1, x.shape[1], -1, -1)
    return x
