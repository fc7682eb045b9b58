"""Fixed pictures and texts, and how far two models' embeddings of them are apart."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xmodal.encoders.preparation import Preparation
from xmodal.errors import Failed
from xmodal.interop.preprocessing import cut_alike

MOST = 1e-4  # the largest difference of a coordinate of unit rows that passes

TEXTS = (
    "a photo of a cat",
    "Two dogs, running & barking!",
    "",
    "3 of 12 at 45 %, it's half-price",
    "naïve café in Zürich, 東京の猫 🐈",
    "  many   spaces\tand\nlines ",
    "SHOUTING about_a snake-case",
    "a very long caption of a very long street with houses on both of its sides " * 8,
)
# Width and height. Of these, pictures are left out that the two libraries cut differently (see `preprocessing`).
SIZES = ((64, 64), (640, 480), (481, 640), (97, 61), (200, 600), (224, 225), (336, 500), (59, 60), (31, 200))


class ConversionFailed(Failed):
    """The model written is not the model that was to be written. Nothing of it is kept."""


@dataclass
class Report:
    """The largest differences of a coordinate, over how many pictures and texts, and what isn't quite the same."""

    image: float
    text: float
    pictures: int
    texts: int
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"largest difference from the original: images {self.image:.2e} ({self.pictures} pictures), "
            f"texts {self.text:.2e} ({self.texts} texts)"
        )


def pictures(seen: Preparation) -> list[Image.Image]:
    """The same pictures on every machine: gradients, edges and noise, of which both libraries cut out the same part."""
    return [_picture(width, height) for width, height in SIZES if cut_alike(seen, width, height)]


def compare(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], notes: list[str]) -> Report:
    """Unit rows (n, d) of pictures and of texts, of both sides. Raises ConversionFailed over the limit."""
    image, text = (_difference(a, b) for a, b in zip(ours, theirs, strict=True))
    report = Report(image, text, len(ours[0]), len(ours[1]), notes)
    if not (image <= MOST and text <= MOST):  # so that NaN fails
        said = "".join(f"\nnote: {note}" for note in notes)
        raise ConversionFailed(f"The model came out as another, so nothing was written: {report}; over {MOST:g}.{said}")
    return report


def _difference(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        raise ConversionFailed(f"Embeddings are {tuple(theirs.shape)} instead of {tuple(ours.shape)}.")
    return (ours.double() - theirs.double()).abs().max().item()


def _picture(width: int, height: int) -> Image.Image:
    generator = np.random.Generator(np.random.PCG64([width, height]))
    y, x = np.mgrid[0:height, 0:width]
    blocks = generator.integers(0, 256, (5, 5, 3))[y * 5 // height, x * 5 // width]
    ramp = np.stack([255 * x / width, 255 * y / height, 255 * (x + y) / (width + height)], axis=2)
    noise = generator.integers(0, 64, (height, width, 3))
    return Image.fromarray((0.5 * blocks + 0.25 * ramp + noise).clip(0, 255).astype(np.uint8))


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.detach().float(), dim=-1).cpu()
