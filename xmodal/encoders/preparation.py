"""From a picture to the pixels a tower takes: one place for size, cropping, interpolation, mean and deviation.

Pixels stay uint8 until they are on the device, where the tower's wrapper subtracts the mean and divides by the
deviation: a quarter of the traffic, and the same float32 operations as torchvision's ToTensor and Normalize.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xmodal.data.decode import decode

Picture = str | Path | Image.Image | np.ndarray
MOST_TIMES_AS_LONG = 100  # one side of a picture to the other; our choice: 100 × 384² pixels are 60 MB


@dataclass(frozen=True)
class Preparation:
    """How a tower was trained to see.

    resize: "squash" stretches the picture to (height, width); "shortest" scales its shorter side and cuts the
    middle out; "longest" scales its longer side and fills up. Names as in open_clip's preprocess configuration.
    edge: "shortest": what the shorter side becomes before the middle is cut out; None: the side of the tower.
    crop: where the middle begins if an odd number of pixels goes: "round", torchvision's and open_clip's way, or
    "floor", transformers'.
    """

    height: int
    width: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize: Literal["squash", "shortest", "longest"] = "squash"
    fill: int = 0
    edge: int | None = None
    crop: Literal["round", "floor"] = "round"

    def __call__(self, picture: Picture) -> Tensor:
        """A path, PIL image or array (h, w) or (h, w, 3) -> (3, height, width) uint8. Raises BadSample."""
        return as_tensor(self.fit(decode(Path(picture) if isinstance(picture, str) else picture)))

    def stack(self, pictures: Sequence[Picture], draws: np.ndarray | None = None) -> Tensor:
        """Pictures -> (b, 3, height, width) uint8. Takes and ignores random draws: the augmentation "none"."""
        if not pictures:
            return torch.empty(0, 3, self.height, self.width, dtype=torch.uint8)
        return torch.stack([self(picture) for picture in pictures])

    def fit(self, image: Image.Image) -> Image.Image:
        """A PIL image of any size -> one of (height, width), by the transforms that open_clip uses for this setting."""
        if image.size == (self.width, self.height) and self.edge in (None, self.height):
            return image  # as all of these would, in a tenth of the time
        from open_clip.transform import CenterCropOrPad, ResizeKeepRatio
        from torchvision.transforms import CenterCrop, InterpolationMode, Resize

        mode = InterpolationMode(self.interpolation)
        size = (self.height, self.width)
        if self.resize == "squash":
            return Resize(size, interpolation=mode)(image)
        image = _without_ends(image, min(MOST_TIMES_AS_LONG, 2 * min(size) - 1))
        if self.resize == "longest":
            return CenterCropOrPad(size, fill=self.fill)(ResizeKeepRatio(size, interpolation=mode, longest=1)(image))
        square = self.height == self.width
        edge = self.edge or (self.height if square else None)
        scaled: Any = (Resize(edge, interpolation=mode) if edge else ResizeKeepRatio(size))(image)
        if self.crop == "round":
            return CenterCrop(size)(scaled)
        left, top = (scaled.width - self.width) // 2, (scaled.height - self.height) // 2
        return scaled.crop((left, top, left + self.width, top + self.height))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Preparation:
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


def _without_ends(image: Image.Image, most: int) -> Image.Image:
    """The middle of a picture that is more than `most` times as long as wide, or as wide as long.

    Of a line of pixels, "shortest" would make gigabytes and "longest" a picture without height.
    """
    width, height = min(image.width, most * image.height), min(image.height, most * image.width)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def as_tensor(image: Image.Image) -> Tensor:
    """An RGB image -> (3, h, w) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
