"""Matrices that people can take in at a glance: similarities of a few pairs, and which classes are confused."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from xmodal.evaluators.embed import Embedded

PAIRS = 24
MOST_CELLS = 40  # classes whose matrix is a table; more of them are a picture
MOST_PIXELS = 640  # a side of that picture
INK = 31, 111, 214  # of that picture, laid over light and dark alike


@dataclass(frozen=True)
class Similarities:
    """Texts (r) by images (r), rows of an Embedded; values (r, r) cosines, right (r, r) bool."""

    texts: list[int]
    images: list[int]
    values: np.ndarray
    right: np.ndarray

    @property
    def shade(self) -> np.ndarray:
        """The values from 0, the least of them, to 1, the greatest."""
        low, high = self.values.min(), self.values.max()
        return (self.values - low) / (high - low if high > low else 1)


def some_pairs(embedded: Embedded, most: int = PAIRS) -> tuple[list[int], list[int]]:
    """Pictures spread evenly over the test, each with its first text that no other of them has: texts, images."""
    texts: list[int] = []
    images: list[int] = []
    n = len(embedded.image)
    for image in np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)).tolist():
        own = embedded.pairs[embedded.pairs[:, 0] == image, 1].tolist()
        new = next((text for text in own if text not in texts), None)
        if new is not None:
            texts.append(new)
            images.append(image)
    return texts, images


def similarities(embedded: Embedded, texts: list[int], images: list[int]) -> Similarities:
    values = (embedded.text[texts].float() @ embedded.image[images].float().T).cpu().numpy()
    pairs = {(int(i), int(t)) for i, t in embedded.pairs}
    right = np.array([[(i, t) in pairs for i in images] for t in texts])
    return Similarities(texts, images, values, right)


def shares(confusion: np.ndarray) -> np.ndarray:
    """(c, c) counts -> of each right class, the share that each answer got; 0 for a class that does not occur."""
    total = confusion.sum(1, keepdims=True)
    return confusion / np.where(total, total, 1)


def confused(classes: Sequence[str], confusion: np.ndarray, most: int = 12) -> list[tuple[str, str, int, float]]:
    """The most frequent mistakes: the right class, the answer, how often, and of how many of that class (a share)."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    share = shares(confusion)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    cells = (divmod(int(cell), len(classes)) for cell in order)
    return [(classes[i], classes[j], int(wrong[i, j]), float(share[i, j])) for i, j in cells if wrong[i, j]]


def heat_uri(share: np.ndarray) -> str:
    """(c, c) of 0 to 1 as a data URI: a picture whose ink is as opaque as the share is large."""
    alpha = Image.fromarray((np.clip(share, 0, 1) * 255).round().astype(np.uint8))
    alpha.thumbnail((MOST_PIXELS, MOST_PIXELS))
    image = Image.new("RGB", alpha.size, INK)
    image.putalpha(alpha)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
