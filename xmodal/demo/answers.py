"""The three questions of the page and their answers as HTML: nothing here knows of a server.

Captions, names and classes are data: the templates escape them wherever they stand.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import ChoiceLoader, PackageLoader
from torch import Tensor

from xmodal.data.decode import MOST_PIXELS, decode
from xmodal.data.order import shuffle
from xmodal.demo import classes as zero_shot
from xmodal.demo.gallery import Gallery, encode_query
from xmodal.encoders.image import ImageEncoder
from xmodal.encoders.sentence import SentenceEncoder
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import BadSample, InputError
from xmodal.evaluators.nearest import nearest
from xmodal.evaluators.retrieval import TIE
from xmodal.report.matrix import MOST_CELLS, confused, heat_uri, shares
from xmodal.report.templates import environment
from xmodal.report.thumbnails import Thumbnail, data_uri, thumbnails

MOST_BYTES = 20_000_000  # of a picture that is dropped
PICTURES, TEXTS, CLASSES = 16, 10, 10  # answers that are shown
LETTERS = 2_000  # of a caption that is asked with

BROKEN = {
    "no image": "This is no picture, whatever its name says.",
    "too many pixels": f"This picture has more than {MOST_PIXELS // 10**6} megapixels.",
    "too many bytes": f"This file has more than {MOST_BYTES // 10**6} MB.",
    "truncated": "This picture ends half way.",
    "damaged": "This picture is damaged.",
    "empty": "This file is empty.",
}


@dataclass(frozen=True)
class Asked:
    """A picture that is asked with: its unit row (d,), how it looks, and its row in the gallery if it is from there."""

    row: np.ndarray
    picture: Thumbnail
    own: int | None = None


class Answers:
    """What a model says about a gallery."""

    def __init__(self, model: Any, name: str, gallery: Gallery) -> None:
        self.model, self.name, self.gallery = model, name, gallery
        self.prompts = zero_shot.Prompts(model) if isinstance(model, TwoTower) else None
        pages = ChoiceLoader([PackageLoader("xmodal", "demo"), PackageLoader("xmodal", "report")])
        self.templates = environment().overlay(loader=pages)

    @property
    def finds_pictures(self) -> bool:
        """Whether a text can be asked with, for pictures."""
        return isinstance(self.model, TwoTower) and self.gallery.pictures is not None

    @property
    def finds_texts(self) -> bool:
        return isinstance(self.model, SentenceEncoder)

    @property
    def takes_pictures(self) -> bool:
        """Whether a picture can be asked with."""
        return isinstance(self.model, TwoTower | ImageEncoder)

    @property
    def has_classes(self) -> bool:
        return isinstance(self.model, TwoTower)

    @cached_property
    def _texts_of(self) -> dict[int, list[int]]:
        """The texts of each picture that has some."""
        found: dict[int, list[int]] = {}
        for picture, text in self.gallery.pairs.tolist():
            found.setdefault(picture, []).append(text)
        return found

    def header(self) -> str:
        gallery = self.gallery
        counts = {"picture": len(gallery.image), "text": len(gallery.text), "class": len(gallery.classes)}
        return self._render("header", self.name, gallery.name, counts, gallery.said)

    def a_text(self, turn: int) -> str:
        """One of the gallery's texts, another each turn."""
        n = len(self.gallery.text)
        return self.gallery.texts(_of_turn(turn, n)) if n else ""

    def a_picture(self, turn: int) -> Asked | None:
        """One of the gallery's pictures, another each turn; none if there are none, or if it can't be read."""
        if self.gallery.pictures is None:
            return None
        row = _of_turn(turn, len(self.gallery.image))
        picture = thumbnails(self.gallery.pictures, [row])[row]
        return Asked(np.asarray(self.gallery.image[row]).astype(np.float32), picture, row)

    def read(self, file: str) -> Asked:
        """A file that was dropped. Raises InputError, with what is wrong with it in words for whoever dropped it."""
        try:
            picture = decode(Path(file), most_bytes=MOST_BYTES)
        except BadSample as problem:
            raise InputError(BROKEN.get(problem.reason, f"This file can't be read: {problem.reason}.")) from None
        row = self.model.encode_image([picture])[0].numpy()
        return Asked(row, Thumbnail(data_uri(picture), os.path.basename(file)))

    def pictures_for(self, text: str) -> str:
        """The pictures that are nearest to a text; those that it is a caption of are marked."""
        query, gallery = encode_query(self.model, _question(text)), self.gallery
        right = {
            picture for picture, texts in self._texts_of.items() for t in texts if gallery.texts(t) == text.strip()
        }
        return self._pictures(query, right)

    def pictures_like(self, asked: Asked | None) -> str:
        """The pictures that are nearest to a picture, it itself left out; those of its class are marked."""
        if asked is None:
            return self._render("nothing", "Drop a picture, or take one of the data's.")
        labels, own = self.gallery.labels, asked.own
        known = own is not None and labels[own] >= 0
        right = set(np.flatnonzero(labels == labels[own]).tolist()) - {own} if known else set()
        return self._pictures(torch.from_numpy(asked.row)[None], right, asked)

    def texts_for(self, text: str) -> str:
        """The texts that are nearest to a text."""
        similarity, place = self._nearest(encode_query(self.model, _question(text)), self.gallery.text, 2 * TEXTS)
        hits = [(s, False, self.gallery.texts(p)) for s, p in zip(similarity, place, strict=True)]
        return self._render("texts", hits)

    def captions_of(self, asked: Asked | None, classes: str, templates: str) -> str:
        """The texts that are nearest to a picture, its own ones marked, and what its class may be."""
        if asked is None:
            return self._render("nothing", "Drop a picture, or take one of the data's.")
        hits, missed, query, gallery = [], None, torch.from_numpy(asked.row)[None], self.gallery
        if len(gallery.text):
            own = [] if asked.own is None else self._texts_of.get(asked.own, [])
            similarity, place = self._nearest(query, gallery.text, TEXTS)
            hits = [(s, p in own, gallery.texts(p)) for s, p in zip(similarity, place, strict=True)]
            if own and set(own).isdisjoint(place):
                similarity, row, rank = best_of(query, gallery.text, own)
                missed = similarity, gallery.texts(row), rank
        try:
            names, rows = self._classes(classes, templates)
            bars, kind, problem = *self._bars(asked, names, rows), ""
        except InputError as error:
            bars, kind, problem = [], "", str(error)
        return self._render("captions", asked, hits, missed, bars, kind, problem)

    def likely(self, asked: Asked | None, classes: str, templates: str) -> str:
        """What a picture's class may be."""
        names, rows = self._classes(classes, templates)
        if asked is None:
            return self._render("nothing", "Drop a picture in the tab before this one.")
        return self._render("likely_classes", asked, *self._bars(asked, names, rows))

    def judged(self, classes: str, templates: str) -> str:
        """What classes and templates make of all of the data's pictures that have a class."""
        names, rows = self._classes(classes, templates)
        own = zero_shot.stands_for(names, self.gallery.classes)
        judged = zero_shot.judge(self.gallery.image, self.gallery.labels, own, rows) if len(own) else None
        if judged is None:
            return ""
        share = shares(judged.confusion)
        return self._render(
            "judged",
            names,
            judged,
            share,
            heat_uri(share) if len(names) > MOST_CELLS else "",
            confused(names, judged.confusion, 8),
        )

    def problem(self, error: InputError) -> str:
        return self._render("problem", str(error))

    def _classes(self, classes: str, templates: str) -> tuple[list[str], Tensor]:
        assert self.prompts is not None
        names = zero_shot.read_classes(classes)
        return names, zero_shot.class_rows(self.prompts, names, zero_shot.read_templates(templates))

    def _bars(self, asked: Asked, names: Sequence[str], rows: Tensor) -> tuple[list[tuple[str, float, bool]], str]:
        """The likeliest classes: name, probability, whether it is the picture's own."""
        values, kind = zero_shot.probabilities(self.model, torch.from_numpy(asked.row), rows)
        gallery, right = self.gallery, -1
        if asked.own is not None and gallery.labels[asked.own] >= 0:
            right = int(zero_shot.stands_for(names, gallery.classes)[gallery.labels[asked.own]])
        order = np.argsort(-values, kind="stable")[:CLASSES]
        return [(names[i], float(values[i]), i == right) for i in map(int, order)], kind

    def _pictures(self, query: Tensor, right: set[int], asked: Asked | None = None) -> str:
        assert self.gallery.pictures is not None
        own = asked.own if asked else None
        similarity, place = self._nearest(query, self.gallery.image, PICTURES + 1)
        found = [(s, p) for s, p in zip(similarity, place, strict=True) if p != own][:PICTURES]
        unseen = right if right.isdisjoint(place) else set()
        missed = best_of(query, self.gallery.image, sorted(unseen), own) if unseen else None
        made = thumbnails(self.gallery.pictures, [*(p for _, p in found), *([missed[1]] if missed else [])])
        hits = [(s, p in right, made[p], self._named(p)) for s, p in found]
        late = missed and (missed[0], made[missed[1]], missed[2])
        return self._render("pictures", hits, late, bool(right), asked)

    def _named(self, row: int) -> str:
        """What a picture is: its first text, else its class, else what the data calls it."""
        gallery = self.gallery
        if row in self._texts_of:
            return gallery.texts(self._texts_of[row][0])
        if gallery.labels[row] >= 0:
            return gallery.classes[int(gallery.labels[row])]
        assert gallery.pictures is not None
        return gallery.pictures.key(row)

    def _nearest(self, query: Tensor, rows: Any, most: int) -> tuple[list[float], list[int]]:
        similarity, place = nearest(query, rows, most)
        return similarity[0].tolist(), place[0].tolist()

    def _render(self, part: str, *values: Any) -> str:
        """A macro of the template, with values."""
        return getattr(self.templates.get_template("answers.html.j2").module, part)(*values)


def best_of(query: Tensor, rows: Any, right: Sequence[int], own: int | None = None) -> tuple[float, int, int]:
    """The nearest of the right answers to a query (1, d): its similarity, its row, and its rank among wrong ones.

    A tie with a wrong one is lost, as in the scores. own: the row of the query itself, which is no answer.
    """
    similarity = torch.from_numpy(np.asarray(rows).astype(np.float32)) @ query[0]  # (m,)
    of_right = similarity[list(right)]
    best = float(of_right.max())
    similarity[[*right, *([] if own is None else [own])]] = -torch.inf
    return best, right[int(of_right.argmax())], int((similarity >= best - TIE).sum()) + 1


def _of_turn(turn: int, n: int) -> int:
    return int(shuffle(np.array([turn % n]), n, 0, 0)[0])


def _question(text: str) -> str:
    """Raises InputError for nothing to ask with, and for a book."""
    text = text.strip()
    if not text:
        raise InputError("Write something to ask with.")
    if len(text) > LETTERS:
        raise InputError(f"This text has {len(text):,} letters, more than {LETTERS:,}.")
    return text
