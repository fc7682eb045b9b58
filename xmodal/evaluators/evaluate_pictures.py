"""How an image encoder's features separate classes that it was not told of: k nearest neighbours, and their spread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from xmodal import __version__
from xmodal.data.order import shuffle
from xmodal.data.pictures import Pictures
from xmodal.encoders.preparation import Picture, Preparation
from xmodal.errors import InputError
from xmodal.evaluators import bootstrap
from xmodal.evaluators.alignment import uniformity_score
from xmodal.evaluators.embed import embed_images
from xmodal.evaluators.knn import TEMPERATURE, K, knn_predictions
from xmodal.evaluators.scores import Scores
from xmodal.evaluators.spread import effective_rank
from xmodal.evaluators.zeroshot import confusion, macro

GALLERY = 50_000  # training pictures that vote, at most: CIFAR-10 whole; of ImageNet 50 a class

INTERVAL = (
    f"{bootstrap.LEVEL:.0%}, percentile bootstrap of {bootstrap.RESAMPLES} resamples of the pictures that are judged; "
    "those that vote are fixed; no variance over seeds of training"
)


class ImageModel(Protocol):
    """All that an evaluation of pictures asks of a model."""

    def encode_image(self, images: Any, /) -> Any: ...


class RawPixels:
    """Pictures as their own features, what an encoder has to be better than: 16 × 16 pixels without their mean, so that
    cosines are correlations.

    On CIFAR-10 it is the best of what is as simple: 44 % by k-NN with k 200; around a middle grey 41 %, as they are
    34 %, and with 32 × 32 pixels around a middle grey 40 %.
    """

    preparation = Preparation(16, 16, resize="shortest")

    def encode_image(self, images: Sequence[Picture]) -> Tensor:
        pixels = self.preparation.stack(images).flatten(1).float()
        return pixels - pixels.mean(1, keepdim=True)


@dataclass(frozen=True)
class Embedding:
    """Pictures that can be read: unit rows (n, d), labels (n,) long, −1 for none, and how many can't be.

    number: (n,) which rows of the pictures they are.
    """

    rows: Tensor
    labels: np.ndarray
    unreadable: int
    number: np.ndarray

    @property
    def labelled(self) -> np.ndarray:
        return self.labels >= 0


Also = Callable[[Embedding, Embedding], tuple[dict[str, Any], Scores]]


def embed_pictures(model: ImageModel, pictures: Pictures, rows: np.ndarray | None = None) -> Embedding:
    """Some rows of pictures, or all. Every process must call it, and embeds a part. InputError if none can be read."""
    rows = np.arange(len(pictures)) if rows is None else rows
    found, readable, bad = embed_images(model, pictures.images, rows)  # pyright: ignore[reportArgumentType]
    if not readable.any():
        raise InputError(f"No picture of {pictures.name} can be read: {', '.join(bad)}.")
    labels = np.full(len(rows), -1) if pictures.labels is None else pictures.labels[rows]
    return Embedding(found, labels[readable], int((~readable).sum()), rows[readable])


def voters(pictures: Pictures, most: int = GALLERY) -> np.ndarray:
    """The training pictures that vote: those that have a class, or as many of them, chosen at random once for all."""
    rows = np.flatnonzero(pictures.labels >= 0) if pictures.labels is not None else np.empty(0, dtype=np.int64)
    return rows if len(rows) <= most else np.sort(rows[shuffle(np.arange(most), len(rows), 0, 0)])


def score_knn(
    train: Embedding, test: Embedding, classes: Sequence[str], k: int = K, temperature: float = TEMPERATURE
) -> tuple[Scores, np.ndarray]:
    """Top-1, top-5 of more than five classes, macro means; and the confusion matrix (c, c), of those with a class."""
    own = test.labels[test.labelled]
    rank, predicted = knn_predictions(
        train.rows[train.labelled], train.labels[train.labelled], test.rows[test.labelled], own, k, temperature
    )
    return score_answers(rank, predicted, own, len(classes))


def score_answers(rank: np.ndarray, predicted: np.ndarray, own: np.ndarray, c: int) -> tuple[Scores, np.ndarray]:
    """Top-1, top-5 of more than five classes, macro means, with intervals; and the confusion matrix (c, c).

    rank: of each picture's own class, from 1, (n,); predicted: the class that won, (n,); own: its class, (n,).
    """
    scores = {f"top{n}": bootstrap.mean_score((rank <= n).astype(float)) for n in ((1, 5) if c > 5 else (1,))}
    for name in ("macro_precision", "macro_recall", "macro_f1"):
        scores[name] = bootstrap.statistic_score(
            lambda times, name=name: macro(confusion(own, predicted, c, times))[name], len(own)
        )
    return scores, confusion(own, predicted, c)


def score_spread(test: Embedding) -> Scores:
    """Uniformity of the rows, and their effective rank, which has no interval."""
    rank = effective_rank(test.rows)
    return {
        "uniformity": uniformity_score(test.rows),
        "effective_rank": {"value": rank, "low": rank, "high": rank},
    }


def evaluate_pictures(
    model: ImageModel,
    train: Pictures,
    test: Pictures,
    *,
    k: int = K,
    temperature: float = TEMPERATURE,
    gallery: int = GALLERY,
    also: Also | None = None,
) -> tuple[dict[str, Any], Scores, np.ndarray | None]:
    """Protocol, scores "knn/…" where both have classes, and "features/…"; and the confusion matrix (c, c).

    train: whose pictures vote; test: what is judged. also: protocol and scores of more, from the features of those that
    vote and of those that are judged; it is asked where both have classes. Every process must call it.
    """
    found = embed_pictures(model, test)
    scores = {f"features/{name}": score for name, score in score_spread(found).items()}
    protocol: dict[str, Any] = {
        "task": "features of pictures: how evenly they spread",
        "data": test.name,
        "pictures": len(found.rows),
        "unreadable pictures left out": found.unreadable,
        "features": "unit rows; the effective rank is of these, not centred, and has no interval",
        "interval": INTERVAL,
        "xmodal": __version__,
    }
    table = None
    rows = voters(train, gallery)
    if len(rows) and found.labelled.any():
        voting = embed_pictures(model, train, rows)
        by_vote, table = score_knn(voting, found, train.classes, k, temperature)
        scores = {f"knn/{name}": score for name, score in by_vote.items()} | scores
        protocol |= {
            "task": "k nearest neighbours: the classes of training pictures, weighted by exp(cosine / temperature)",
            "pictures with a class": int(found.labelled.sum()),
            "classes": len(train.classes),
            "voters": f"{len(voting.rows):,} of the {len(train):,} pictures of {train.name}",
            "k": k,
            "temperature": temperature,
        }
        if also is not None:
            told, more = also(voting, found)
            protocol, scores = {**protocol, **told}, {**more, **scores}
    return protocol, scores, table
