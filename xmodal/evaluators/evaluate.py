"""Evaluations of a model on a data source: embed, score, and say the protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from xmodal import __version__
from xmodal.data.source import Source
from xmodal.errors import InputError
from xmodal.evaluators import bootstrap, zeroshot
from xmodal.evaluators.embed import DualEncoder, Embedded, embed_images, embed_pairs, embed_texts
from xmodal.evaluators.retrieval import hits, ranks
from xmodal.evaluators.scores import Scores

Result = tuple[dict[str, Any], Scores]

INTERVAL = (
    f"{bootstrap.LEVEL:.0%}, percentile bootstrap of {bootstrap.RESAMPLES} resamples of the queries, those of an image "
    "together; the gallery is fixed; no variance over seeds of training"
)


def evaluate_retrieval(
    model: DualEncoder, source: Source, ks: Sequence[int] = (1, 5, 10), batch_size: int = 256
) -> Result:
    """Retrieval in both directions among all of a source. Every process must call it."""
    return score_retrieval(embed_pairs(model, source, batch_size), source.name, ks)


def score_retrieval(embedded: Embedded, data: str, ks: Sequence[int] = (1, 5, 10)) -> Result:
    """Protocol and scores of embeddings."""
    of_image, of_text = ranks(embedded.image, embedded.text, embedded.pairs)
    scores: Scores = {}
    for direction, rank, groups in (
        ("image_to_text", of_image, None),
        ("text_to_image", of_text, embedded.first_image),
    ):
        for k in ks:
            scores[f"{direction}/R@{k}"] = bootstrap.mean_score(hits(rank, k), groups)
        scores[f"{direction}/median_rank"] = bootstrap.median_score(rank, groups)
        scores[f"{direction}/mean_rank"] = bootstrap.mean_score(rank, groups)
    protocol = {
        "task": "retrieval; an image is a hit if any of its texts is among the k nearest, each text counts by itself",
        "data": data,
        "images": len(embedded.image),
        "texts": len(embedded.text),
        "pairs": len(embedded.pairs),
        "unreadable images left out": embedded.unreadable,
        "gallery": "all unique texts of the data; all its unique images",
        "similarity": "cosine; a tie with a wrong answer is lost",
        "interval": INTERVAL,
        "xmodal": __version__,
    }
    return protocol, scores


def evaluate_zero_shot(
    model: DualEncoder,
    labelled: Any,
    classes: Sequence[str],
    templates: Sequence[str],
    *,
    templates_name: str = "",
    ks: Sequence[int] = (1, 5),
    batch_size: int = 256,
) -> tuple[dict[str, Any], Scores, np.ndarray]:
    """Zero-shot classification; the third is the confusion matrix (c, c). Every process must call it.

    labelled: has images(rows), labels (n,), image_id (n,), name.
    """
    image, readable = embed_labelled(model, labelled.images, labelled, batch_size)
    text = zeroshot.class_embeddings(lambda prompts: embed_texts(model, prompts, batch_size), classes, templates)
    labels, groups = labelled.labels[readable], labelled.image_id[readable]
    of_label, predicted = zeroshot.predictions(image, text, labels)
    c = len(classes)
    scores: Scores = {f"top{k}": bootstrap.mean_score(hits(of_label, k), groups) for k in ks}
    for name in ("macro_precision", "macro_recall", "macro_f1"):
        scores[name] = bootstrap.statistic_score(
            lambda times, name=name: zeroshot.macro(zeroshot.confusion(labels, predicted, c, times))[name],
            len(labels),
            groups,
        )
    protocol = {
        "task": "zero-shot classification",
        "data": labelled.name,
        "images": len(labels),
        "unreadable images left out": int((~readable).sum()),
        "classes": c,
        "templates": f"{len(templates)}{' (' + templates_name + ')' if templates_name else ''}, each class's unit rows "
        "averaged and made unit again",
        "similarity": "cosine; a tie with a wrong class is lost",
        "interval": INTERVAL,
        "xmodal": __version__,
    }
    return protocol, scores, zeroshot.confusion(labels, predicted, c)


def together(results: dict[str, Result]) -> Result:
    """Several evaluations as one: names of scores and of differing protocol lines get the evaluation's before them."""
    protocols = {name: protocol for name, (protocol, _) in results.items()}
    shared = {
        key: value
        for key, value in next(iter(protocols.values()), {}).items()
        if all(other.get(key) == value for other in protocols.values())
    }
    apart = {
        name: {key: value for key, value in protocol.items() if key not in shared}
        for name, protocol in protocols.items()
    }
    apart = {name: protocol for name, protocol in apart.items() if protocol}
    scores = {f"{name}/{key}": score for name, (_, part) in results.items() for key, score in part.items()}
    return {**shared, **apart}, scores


def embed_labelled(
    model: DualEncoder, images: Callable[..., Any], labelled: Any, batch_size: int
) -> tuple[Tensor, np.ndarray]:
    """Unit rows of the labelled images that can be read, (n, d), and which those are. InputError where none can.

    images: how they are read, as `labelled.images`.
    """
    image, readable, bad = embed_images(model, images, np.arange(len(labelled.labels)), batch_size)
    if not readable.any():
        raise InputError(f"No image of {labelled.name} can be read: {', '.join(bad)}.")
    return image, readable
