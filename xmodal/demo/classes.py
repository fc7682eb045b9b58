"""Zero-shot classification by classes and templates that somebody is typing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import InputError
from xmodal.evaluators import bootstrap, zeroshot
from xmodal.evaluators.retrieval import hits

MOST_PROMPTS = 5_000  # classes times templates; a page is no place to wait for more
MOST_LETTERS = 200  # of a class or a template
KEPT = 20_000  # rows of prompts that are kept, so that a new class costs its own prompts alone: 40 MB at width 512


@dataclass(frozen=True)
class Judged:
    """What classes make of the data's own: the confusion (c, c), top-1 with its interval, and of how many pictures.

    left_out: pictures whose class is none of those that were typed.
    """

    confusion: np.ndarray
    top1: bootstrap.Score
    pictures: int
    left_out: int


class Prompts:
    """encode_text of a model that remembers the rows of prompts."""

    def __init__(self, model: TwoTower) -> None:
        self.model = model
        self.rows: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """(n) texts -> (n, d) unit."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.rows]
        self.rows.update(zip(new, self.model.encode_text(new), strict=True))
        rows = torch.stack([self.rows[prompt] for prompt in prompts])
        for prompt in prompts:
            self.rows.move_to_end(prompt)
        while len(self.rows) > max(KEPT, len(prompts)):
            self.rows.popitem(last=False)
        return rows


def read_classes(text: str) -> list[str]:
    """One class a line. Raises InputError for none, for one twice, and for a line that is no name."""
    names = _lines(text)
    if not names:
        raise InputError("There are no classes: write one a line.")
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise InputError(f"The class “{twice}” is there twice.")
    return names


def read_templates(text: str) -> list[str]:
    """One template a line. Raises InputError for none, and for a line without {}."""
    lines = _lines(text)
    if not lines:
        raise InputError("There are no templates: write one a line, with {} where the class goes, or {} alone.")
    wrong = next((line for line in lines if "{}" not in line), None)
    if wrong is not None:
        raise InputError(f"The template “{wrong}” has no {{}}, where the class goes.")
    return lines


def _lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    long = next((line for line in lines if len(line) > MOST_LETTERS), None)
    if long is not None:
        raise InputError(f"A line has {len(long):,} letters, more than {MOST_LETTERS}: “{long[:40]}…”.")
    return lines


def class_rows(encode_text: Prompts, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Unit rows (c, d). Raises InputError for more prompts than a page has time for."""
    prompts = len(classes) * len(templates)
    if prompts > MOST_PROMPTS:
        raise InputError(
            f"{len(classes):,} classes in {len(templates):,} templates are {prompts:,} prompts, more than "
            f"{MOST_PROMPTS:,}; `xmodal eval zeroshot` takes any number."
        )
    return zeroshot.class_embeddings(encode_text, classes, templates)


def probabilities(model: TwoTower, image: Tensor, rows: Tensor) -> tuple[np.ndarray, str]:
    """Of a picture (d,) for classes (c, d): (c,), and what kind of probability it is."""
    logits = model.scale * (rows @ image)  # (c,)
    if model.bias is not None:  # trained with the sigmoid loss: each class by itself
        return torch.sigmoid(
            logits + model.bias.cpu()
        ).numpy(), "each class by itself: sigmoid of scale × cosine + bias"
    return torch.softmax(logits, 0).numpy(), "among these classes: softmax of scale × cosine"


def stands_for(typed: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """(c,) of the data's classes: the number of the typed class that stands for it, −1 for none.

    One of the same name does, wherever it stands. Where there are as many as the data has, the others are taken for
    new names of what had their places.
    """
    place = {name: i for i, name in enumerate(typed)}
    own = np.array([place.get(name, -1) for name in classes])
    if len(typed) == len(classes):
        for i in np.flatnonzero(own < 0).tolist():
            if typed[i] not in classes:
                own[i] = i
    return own


def judge(image: Any, labels: np.ndarray, own: np.ndarray, rows: Tensor) -> Judged | None:
    """image: (n, d); labels: (n,) numbers of the data's classes or −1; own: as `stands_for` gives it; rows: (c, d)."""
    target = np.where(labels >= 0, own[labels], -1)
    counted = np.flatnonzero(target >= 0)
    if not len(counted):
        return None
    target = target[counted]
    rank, predicted = zeroshot.predictions(torch.as_tensor(image)[counted], rows, target)
    return Judged(
        zeroshot.confusion(target, predicted, len(rows)),
        bootstrap.mean_score(hits(rank, 1)),
        len(counted),
        int((labels >= 0).sum()) - len(counted),
    )
