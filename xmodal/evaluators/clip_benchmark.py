"""The figures of CLIP_benchmark, and of open_clip where it has them, by their definitions: to the last digit.

They are ours on almost any data. Where they differ:

| | here | in `xmodal eval` otherwise |
|---|---|---|
| two answers are equally similar | the one that torch.topk gives first counts | the right answer is lost |
| an image's captions | each line is a text and a query, however often it comes | each unique text counts once |
| a caption that two images have | is right for one of them each time | is right for both |
| top 5 of fewer than five classes | there is none | 1 |
| pictures | as they lie, converted by Pillow | turned as EXIF says, transparency on white |
| names of classification | acc1, acc5, mean_per_class_recall | top1, top5, macro_recall |
| names of retrieval | image_retrieval_recall@k, text_retrieval_recall@k | text_to_image/R@k, image_to_text/R@k |

Both take float32 (their --no_amp), cosines, a class's unit rows averaged and made unit again, and a hit in retrieval if
any caption of the image is among the first k. CLIP_benchmark's recall comes as a float32 mean. Sources: CLIP_benchmark
1.6 (metrics/zeroshot_classification.py, metrics/zeroshot_retrieval.py), open_clip 3.3 (open_clip_train/zero_shot.py).
open_clip's retrieval in training (get_clip_metrics) has one caption an image and a median rank rounded down.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmodal import __version__
from xmodal.data.decode import encoded, opened, pixels_read
from xmodal.errors import InputError
from xmodal.evaluators import bootstrap, zeroshot
from xmodal.evaluators.embed import DualEncoder, embed_images, embed_texts
from xmodal.evaluators.evaluate import INTERVAL, Result, embed_labelled
from xmodal.evaluators.scores import Scores

BLOCK = 4096  # queries whose similarities are held at a time
ABOUT = {
    "definitions": "CLIP_benchmark's and open_clip's; a tie goes to what torch.topk gives first",
    "pictures": "as they lie, converted to RGB by Pillow",
    "precision": "float32, their --no_amp",
}


def plain(file: Path | bytes) -> np.ndarray:
    """A file -> (h, w, 3) uint8 as their loaders have it. Raises BadSample."""
    image = opened(encoded(file))
    with pixels_read():
        return np.array(image.convert("RGB"))


def classification_hits(image: Any, class_text: Any, labels: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(n, d) unit, (c, d) unit, (n,) long -> {"acc1": (n,) bool, "acc5": …} and the class of the largest logit (n,)."""
    image, class_text = torch.as_tensor(image).float(), torch.as_tensor(class_text).float()
    labels = torch.as_tensor(labels).long()
    found: dict[str, list[Tensor]] = {"acc1": [], "acc5": []} if len(class_text) >= 5 else {"acc1": []}
    nearest = []
    for rows, own in zip(image.split(BLOCK), labels.split(BLOCK), strict=True):
        logits = 100.0 * rows @ class_text.T  # (n, c)
        first = logits.topk(5 if "acc5" in found else 1).indices == own[:, None]  # both from one call, as theirs
        for name, hits in found.items():
            hits.append(first[:, : int(name[3:])].any(1))
        nearest.append(logits.argmax(1))
    return {name: torch.cat(hits).numpy() for name, hits in found.items()}, torch.cat(nearest).numpy()


def retrieval_hits(image: Any, text: Any, image_of_text: Any, ks: Sequence[int] = (5,)) -> dict[str, np.ndarray]:
    """(n, d) unit, (m, d) unit, (m,) long -> {"image_retrieval_recall@5": (m,) bool, "text_retrieval_recall@5": (n,)}.

    k larger than the gallery, at which theirs ends, is all of it.
    """
    image, text = torch.as_tensor(image).float(), torch.as_tensor(text).float()
    owner = torch.as_tensor(image_of_text).long()
    found: dict[str, list[Tensor]] = {f"{one}_retrieval_recall@{k}": [] for k in ks for one in ("image", "text")}
    for rows, own in zip(text.split(BLOCK), owner.split(BLOCK), strict=True):
        scores = rows @ image.T  # (some of m, n)
        for k in ks:
            first = scores.topk(min(k, len(image))).indices
            found[f"image_retrieval_recall@{k}"].append((first == own[:, None]).any(1))
    for number, rows in zip(torch.arange(len(image)).split(BLOCK), image.split(BLOCK), strict=True):
        scores = (text @ rows.T).T  # (some of n, m)
        for k in ks:
            first = owner[scores.topk(min(k, len(text))).indices]
            found[f"text_retrieval_recall@{k}"].append((first == number[:, None]).any(1))
    return {name: torch.cat(hits).numpy() for name, hits in found.items()}


def evaluate_zero_shot(
    model: DualEncoder,
    labelled: Any,
    classes: Sequence[str],
    templates: Sequence[str],
    *,
    templates_name: str = "",
    batch_size: int = 256,
) -> tuple[dict[str, Any], Scores, np.ndarray]:
    """As `evaluate.evaluate_zero_shot`. labelled: has images(rows, decoders), too."""
    image, readable = embed_labelled(model, _plain_images(labelled), labelled, batch_size)
    text = zeroshot.class_embeddings(lambda prompts: embed_texts(model, prompts, batch_size), classes, templates)
    labels, groups = labelled.labels[readable], labelled.image_id[readable]
    hits, nearest = classification_hits(image, text, labels)
    c = len(classes)
    scores: Scores = {name: bootstrap.mean_score(hit.astype(np.float64), groups) for name, hit in hits.items()}
    scores["mean_per_class_recall"] = bootstrap.statistic_score(
        lambda times: zeroshot.macro(zeroshot.confusion(labels, nearest, c, times))["macro_recall"],
        len(labels),
        groups,
    )
    protocol = {
        "task": "zero-shot classification",
        "data": labelled.name,
        "images": len(labels),
        "unreadable images left out": int((~readable).sum()),
        "classes": c,
        "templates": f"{len(templates)}{' (' + templates_name + ')' if templates_name else ''}",
        **ABOUT,
        "interval": INTERVAL,
        "xmodal": __version__,
    }
    return protocol, scores, zeroshot.confusion(labels, nearest, c)


def evaluate_retrieval(model: DualEncoder, source: Any, ks: Sequence[int] = (5,), batch_size: int = 256) -> Result:
    """Retrieval among all rows of a source and all their texts. Every process must call it."""
    rows = np.arange(len(source))
    image, readable, bad = embed_images(model, _plain_images(source), rows, batch_size)
    if not readable.any():
        raise InputError(f"No image of {source.name} can be read: {', '.join(bad)}.")
    told = [source.texts(int(row)) for row in rows[readable]]
    owner = np.repeat(np.arange(len(told)), [len(texts) for texts in told])
    text = embed_texts(model, [text for texts in told for text in texts], batch_size)
    hits = retrieval_hits(image, text, owner, ks)
    scores: Scores = {
        name: bootstrap.mean_score(hit.astype(np.float64), owner if name.startswith("image") else None)
        for name, hit in hits.items()
    }
    protocol = {
        "task": "retrieval; an image is a hit if any of its texts is among the k nearest, each text counts by itself",
        "data": source.name,
        "images": len(image),
        "texts": len(text),
        "unreadable images left out": int((~readable).sum()),
        "gallery": "all texts, as often as they come; all images",
        **ABOUT,
        "interval": INTERVAL,
        "xmodal": __version__,
    }
    return protocol, scores


def _plain_images(source: Any) -> Any:
    return lambda rows: source.images(rows, [plain] * len(rows))
