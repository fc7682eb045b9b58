"""Embeddings in the place of pictures and texts: what towers that don't change see once, training reads many times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xmodal.data.decode import Decoder
from xmodal.data.orders import order_of
from xmodal.data.source import Source
from xmodal.errors import BadSample


class FeaturesOfImages:
    """A source whose pictures are rows of numbers; texts, ids and the rest are those of the source it was made from.

    features: (n, width); bad: rows that could not be read, and why.
    """

    def __init__(self, source: Source, features: Tensor, bad: Mapping[int, BadSample]) -> None:
        self.source, self.features, self.bad = source, features, dict(bad)
        self.name, self.photographs, self.image_id = source.name, source.photographs, source.image_id
        self.dropped: Mapping[str, int] = source.dropped
        self.order = order_of(source)

    def __len__(self) -> int:
        return len(self.source)

    def images(
        self, rows: np.ndarray, decoders: Sequence[Decoder] | None = None
    ) -> list[Image.Image | np.ndarray | BadSample]:
        """The features of rows (b,), (width,) each; the reason why for one that could not be read."""
        return [self.bad.get(row) or self.features[row].numpy() for row in rows.tolist()]

    def texts(self, row: int) -> Sequence[str]:
        return self.source.texts(row)

    def key(self, row: int) -> str:
        return self.source.key(row)

    def fingerprint(self) -> str:
        return self.source.fingerprint()


def stack(features: Sequence[np.ndarray], draws: np.ndarray | None = None) -> Tensor:
    """Rows (b) of (width,) -> (b, width) float32; takes and ignores random draws, as an augmentation would."""
    return torch.from_numpy(np.stack(features))


class FeaturesOfTexts:
    """Instead of a tokenizer: texts (m) -> their features (m, width) float32."""

    def __init__(self, texts: Sequence[str], features: Tensor) -> None:
        self.row = {text: row for row, text in enumerate(texts)}
        self.features = features

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return self.features[[self.row[text] for text in texts]]
