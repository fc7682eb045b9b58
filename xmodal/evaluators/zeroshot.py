"""Zero-shot classification: a picture's class is the one whose description lies nearest.

A class's row is the mean of the unit rows of its name in every template, made unit again (Radford et al. 2021, 3.1.4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmodal.evaluators.retrieval import TIE


def class_embeddings(
    encode_text: Callable[[list[str]], Any], classes: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Names (c) and templates (t) with a {} each -> (c, d) unit rows."""
    prompts = [template.replace("{}", name) for name in classes for template in templates]
    rows = torch.as_tensor(encode_text(prompts)).float()  # (c · t, d) unit
    mean = torch.nn.functional.normalize(rows, dim=-1).view(len(classes), len(templates), -1).mean(1)
    return torch.nn.functional.normalize(mean, dim=-1)


def zero_shot(image: Any, class_text: Any, labels: Any, ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Accuracy and per-class means: {"top1", "top5", "macro_precision", "macro_recall", "macro_f1"}.

    image: (n, d) and class_text: (c, d), unit; labels: (n,) long numbers of classes.
    A tie between the right class and a wrong one is lost. top5 of fewer than five classes is 1. Macro means are over
    the classes that occur; macro_recall is CLIP_benchmark's mean_per_class_recall.

    Top-1 is no measure where classes are of very different sizes: a model that knows the largest looks good.
    Raises ValueError for shapes that don't match and numbers that aren't finite.
    """
    of_label, predicted = predictions(image, class_text, labels)
    labels = torch.as_tensor(labels).cpu().numpy()
    top = {f"top{k}": float((of_label <= k).mean()) for k in ks}
    return {**top, **macro(confusion(labels, predicted, len(torch.as_tensor(class_text))))}


def predictions(image: Any, class_text: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """The rank of each picture's own class from 1, (n,), and the class that is nearest, (n,); of a tie a wrong one."""
    image, class_text = torch.as_tensor(image).detach(), torch.as_tensor(class_text).detach()
    labels = torch.as_tensor(labels, device=image.device)
    if image.ndim != 2 or class_text.ndim != 2 or image.shape[1] != class_text.shape[1]:
        raise ValueError(
            f"image and class_text must be (n, d) and (c, d), not {tuple(image.shape)} and {tuple(class_text.shape)}"
        )
    if not len(image) or not len(class_text):
        raise ValueError(f"image and class_text must have rows, not {tuple(image.shape)} and {tuple(class_text.shape)}")
    known = labels.shape == image.shape[:1] and not labels.is_floating_point()
    if not known or labels.min() < 0 or labels.max() >= len(class_text):
        found = f"{int(labels.min())} … {int(labels.max())}" if labels.numel() else "none"
        raise ValueError(
            f"labels must be ({len(image)},) whole numbers in 0 … {len(class_text) - 1}, "
            f"not {tuple(labels.shape)} {labels.dtype} in {found}"
        )
    image, class_text, labels = image.float(), class_text.float().to(image.device), labels.long()
    if not (torch.isfinite(image).all() and torch.isfinite(class_text).all()):
        raise ValueError(
            "image or class_text holds numbers that are not finite"
        )  # nothing is ≥ NaN: it would rank first
    ranks, nearest = [], []
    for rows, own in zip(image.split(4096), labels.split(4096), strict=True):
        with torch.autocast(rows.device.type, enabled=False):  # bfloat16 would tie classes that differ
            scores = rows @ class_text.T  # (n, c)
        tolerance = TIE * rows.norm(dim=1) * class_text.norm(dim=1)[own]  # (n,)
        right = scores.gather(1, own[:, None])
        wrong = scores.scatter(1, own[:, None], float("-inf"))
        rank = 1 + (wrong >= right - tolerance[:, None]).sum(1)
        ranks.append(rank)
        nearest.append(torch.where(rank == 1, own, wrong.argmax(1)))  # a tie that is lost is an answer that is wrong
    return torch.cat(ranks).cpu().numpy(), torch.cat(nearest).cpu().numpy()


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int, times: np.ndarray | None = None) -> np.ndarray:
    """(c, c) counts, right class by row, predicted class by column; times (n,): how often each picture counts."""
    cell = labels.astype(np.int64) * classes + predicted  # the product of small integer types would wrap around
    return np.bincount(cell, times, classes * classes).reshape(classes, classes)


def per_class(table: np.ndarray) -> dict[str, np.ndarray]:
    """From a confusion matrix (c, c): precision, recall, F1 and number of pictures of each class, (c,) each.

    0 where nothing divides by nothing.
    """
    right, support, answered = np.diag(table).astype(float), table.sum(1), table.sum(0)
    return {
        "precision": right / np.where(answered, answered, 1),
        "recall": right / np.where(support, support, 1),
        "f1": 2 * right / np.where(support + answered, support + answered, 1),
        "support": support,
    }


def macro(table: np.ndarray) -> dict[str, float]:
    """Means over the classes that occur."""
    classes = per_class(table)
    occurs = classes["support"] > 0
    return {f"macro_{name}": float(classes[name][occurs].mean()) for name in ("precision", "recall", "f1")}
