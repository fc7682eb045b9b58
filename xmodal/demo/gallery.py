"""What the page searches in: pictures and texts with their rows, of data that is embedded now or of index folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from xmodal.data.glyphs import TEMPLATES
from xmodal.data.lines import read_templates
from xmodal.data.pictures import NONE, open_pictures, splits_of_pictures
from xmodal.data.source import held_out_split, open_source
from xmodal.embedding.embedder import Model, Setting, embed_some
from xmodal.embedding.index import Index, open_index
from xmodal.encoders.image import ImageEncoder
from xmodal.encoders.sentence import SentenceEncoder
from xmodal.encoders.two_tower import TwoTower
from xmodal.errors import BadSample, InputError
from xmodal.evaluators.embed import embed_images, embed_pairs
from xmodal.evaluators.templates import SIMPLE
from xmodal.report.evaluated import Shown
from xmodal.weights import digest

Rows = Tensor | np.ndarray
GLYPHS, PROSE = "glyphs/unseen_typeface", "prose/test"  # what training hasn't seen of built-in data


@dataclass(frozen=True)
class Gallery:
    """image: (n, d) unit rows of pictures, which `pictures` shows; text: (m, d) of `texts`; either may be without rows.

    pairs: (p, 2) rows (picture, text) that belong together. labels: (n,) numbers of `classes`, NONE for no class.
    said: what is to be known of how it came about, such as that it is a part of the data.
    """

    name: str
    image: Rows = field(default_factory=lambda: np.empty((0, 0), np.float32))
    pictures: Shown | None = None
    text: Rows = field(default_factory=lambda: np.empty((0, 0), np.float32))
    texts: Callable[[int], str] = str
    pairs: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    classes: Sequence[str] = ()
    templates: Sequence[str] = SIMPLE
    said: Sequence[str] = ()


def open_gallery(model: Any, data: str | None, indexes: Sequence[Path], most: int) -> Gallery:
    """What fits the model: pictures and captions, sentences, or pictures alone; at most so many of each are embedded.

    data: without it built-in data. Raises InputError for data that has nothing for this model.
    """
    if indexes:
        return of_indexes(model, indexes)
    if isinstance(model, SentenceEncoder):
        return of_texts(model, data or "prose", most)
    spec = data or "glyphs"
    if spec == "glyphs" and not os.path.exists(spec):
        spec = GLYPHS
    return of_pictures(model, spec, most) if isinstance(model, ImageEncoder) else of_pairs(model, spec, most)


def of_pairs(model: TwoTower, spec: str, most: int) -> Gallery:
    """Pictures and captions of what is there to be evaluated on; of data without captions the pictures alone."""
    try:
        split = held_out_split(spec)
        source = open_source(spec, split)
    except InputError as without_captions:
        try:
            return of_pictures(model, spec, most)
        except InputError:
            raise without_captions from None
    unique = np.sort(np.unique(source.image_id, return_index=True)[1])
    chosen = source.image_id[unique[evenly(len(unique), most)]]
    some = _Some(source, np.flatnonzero(np.isin(source.image_id, chosen)))
    with _bar(len(chosen)) as bar:
        embedded = embed_pairs(model, _Watched(some, bar))  # pyright: ignore[reportArgumentType]
    shown = _Some(source, some.rows[embedded.rows])
    labels, classes = _classes(spec, split, [shown.key(row) for row in range(len(shown))])
    return Gallery(
        source.name,
        image=embedded.image,
        pictures=shown,
        text=embedded.text,
        texts=embedded.texts.__getitem__,
        pairs=embedded.pairs,
        labels=labels,
        classes=classes,
        templates=_templates(spec),
        said=[*_part(len(chosen), len(unique), "pictures"), *_unreadable(embedded.unreadable)],
    )


def of_pictures(model: TwoTower | ImageEncoder, spec: str, most: int) -> Gallery:
    """Pictures without captions, of any form, with their classes where they have some."""
    splits = splits_of_pictures(spec)
    pictures = open_pictures(spec, next((split for split in ("test", "val") if split in splits), None))
    rows = evenly(len(pictures), most)
    with _bar(len(rows)) as bar:
        read = _Watched(pictures, bar).images
        image, readable, bad = embed_images(model, read, rows)  # pyright: ignore[reportArgumentType]
    if not readable.any():
        raise InputError(f"No picture of {pictures.name} can be read: {', '.join(bad)}.")
    kept = rows[readable]
    return Gallery(
        pictures.name,
        image=image,
        pictures=_Some(pictures, kept),
        labels=np.full(len(kept), NONE) if pictures.labels is None else pictures.labels[kept],
        classes=pictures.classes,
        templates=_templates(spec),
        said=[*_part(len(rows), len(pictures), "pictures"), *_unreadable(int((~readable).sum()))],
    )


def of_texts(model: SentenceEncoder, spec: str, most: int) -> Gallery:
    """The first different texts of a file, a table's column or a dataset."""
    if spec in ("prose", PROSE) and not os.path.exists(spec):
        from xmodal.data.prose import Prose

        spec, stream = PROSE, iter(Prose("test").sentences)
    else:
        from xmodal.data.texts import stream_texts

        stream = stream_texts(spec)
    texts = list(dict.fromkeys(islice((text for text in stream if text), most)))
    if not texts:
        raise InputError(f"{spec} has no texts.")
    rows = model.encode_document(texts, normalize_embeddings=True)
    more = next((text for text in stream if text), None) is not None
    said = [f"the first {len(texts):,}; --most takes more"] if more else []
    return Gallery(spec, text=rows, texts=texts.__getitem__, said=said)


def of_indexes(model: Model | ImageEncoder, folders: Sequence[Path]) -> Gallery:
    """What `xmodal embed` has embedded with this model: an index of pictures, one of texts, or one of each."""
    opened: dict[str, Index] = {}
    for folder in folders:
        index = open_index(folder)
        if index.kind in opened:
            raise InputError(f"--index takes one folder of texts and one of pictures; {folder} is a second of a kind.")
        opened[index.kind] = index
        needed = {"image": (TwoTower, ImageEncoder), "text": (TwoTower, SentenceEncoder)}[index.kind]
        if not isinstance(model, needed):
            raise InputError(f"{folder} holds {index.kind}s, which this model has no tower for.")
        if digest(model) != index.about["weights"]:
            raise InputError(f"{folder} was made with other weights than this model's. Embed again, or name its model.")
    image, text = opened.get("image"), opened.get("text")
    parts: dict[str, Any] = {}
    if image:
        labels = np.full(len(image), NONE)
        parts |= {"image": image.rows, "pictures": image, "labels": labels}
    if text:
        parts |= {"text": text.rows, "texts": text.item}
    return Gallery(" and ".join(index.about["data"] for index in opened.values()), **parts)


def evenly(n: int, most: int) -> np.ndarray:
    """At most so many of range(n), spread over it."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


def encode_query(model: Any, text: str) -> Tensor:
    """A text as a query -> (1, d) unit."""
    prompts = {} if isinstance(model, TwoTower) else model.description.get("prompts") or {}
    setting = Setting(prompt_name="query" if "query" in prompts else None)
    return torch.from_numpy(embed_some(model, [text], setting))


class _Some:
    """Some rows (n,) of a source, or of pictures without texts."""

    def __init__(self, whole: Any, rows: np.ndarray) -> None:
        self.whole, self.rows, self.name = whole, rows, whole.name
        self.image_id = whole.image_id[rows] if hasattr(whole, "image_id") else None

    def __len__(self) -> int:
        return len(self.rows)

    def images(self, rows: np.ndarray) -> list[Image.Image | np.ndarray | BadSample]:
        return self.whole.images(self.rows[rows])

    def texts(self, row: int) -> Sequence[str]:
        return self.whole.texts(int(self.rows[row]))

    def key(self, row: int) -> str:
        return self.whole.key(int(self.rows[row]))


class _Watched:
    """A source whose pictures move a bar when they are read."""

    def __init__(self, source: Any, bar: Any) -> None:
        self.source, self.bar = source, bar

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def images(self, rows: np.ndarray) -> list[Image.Image | np.ndarray | BadSample]:
        self.bar.update(len(rows))
        return self.source.images(rows)


def _bar(n: int) -> Any:
    return tqdm(total=n, desc="embedding", unit=" pictures", disable=None)  # None: no bar where nobody watches


def _classes(spec: str, split: str | None, keys: Sequence[str]) -> tuple[np.ndarray, Sequence[str]]:
    """The class of each picture, by what it is called, and the classes; none where the data has none."""
    try:
        pictures = open_pictures(spec, split)
    except InputError:  # a form that has captions and nothing else
        return np.full(len(keys), NONE), ()
    if pictures.labels is None:
        return np.full(len(keys), NONE), ()
    label = {pictures.key(row): int(number) for row, number in enumerate(pictures.labels)}
    return np.array([label.get(key, NONE) for key in keys]), pictures.classes


def _templates(spec: str) -> Sequence[str]:
    """Those that came with the data, as `xmodal eval zeroshot` takes them."""
    if spec.partition("/")[0] == "glyphs" and not os.path.exists(spec):
        return TEMPLATES
    file = Path(spec) / "templates.txt"
    return read_templates(file) if os.path.isfile(file) else SIMPLE


def _part(taken: int, of: int, what: str) -> list[str]:
    return [f"{taken:,} of {of:,} {what}, evenly spread; --most takes more"] if taken < of else []


def _unreadable(n: int) -> list[str]:
    return [f"{n:,} could not be read"] if n else []
