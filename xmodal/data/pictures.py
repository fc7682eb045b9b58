"""Pictures without texts, with or without a class each: what image encoders are trained and judged on.

A spec is that of any data with pictures: a built-in name, a folder of pictures (flat, nested, or with a folder for each
class), a table, parquet or a dataset, tar shards. Captions, where there are some, are left alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from xmodal.data.decode import Decoder
from xmodal.data.hf_datasets import is_dataset
from xmodal.data.orders import order_of
from xmodal.data.shard_names import is_shards
from xmodal.data.source import Columns, open_source
from xmodal.data.stable_id import stable_id
from xmodal.data.table_names import is_tables
from xmodal.errors import BadSample, InputError

NONE = -1  # the label of a picture that has none


class Pictures(Protocol):
    """Rows, each a picture, which may have a class.

    labels: (n,) int64 numbers of `classes`, NONE where a picture has no class; None where no picture has one.
    dropped: how much of the data is no row, by what it lacks.
    """

    name: str
    photographs: bool
    labels: np.ndarray | None
    classes: list[str]

    @property
    def dropped(self) -> Mapping[str, int]: ...
    def __len__(self) -> int: ...
    def images(
        self, rows: np.ndarray, decoders: Sequence[Decoder] | None = None
    ) -> list[Image.Image | np.ndarray | BadSample]:
        """As those of a `Source`."""
        ...

    def key(self, row: int, /) -> str: ...
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class PictureColumns:
    """The columns of a table or dataset, where they have no usual name."""

    image: str | None = None
    label: str | None = None
    split: str | None = None


class OfSource:
    """The pictures of a source of pairs."""

    def __init__(self, source: Any, labels: np.ndarray | None = None, classes: list[str] | None = None) -> None:
        self.source, self.name, self.photographs = source, source.name, source.photographs
        self.labels, self.classes = labels, classes or []
        self.order = getattr(source, "order", None)  # how it is best read; see `orders`
        self.remote = getattr(source, "remote", False)  # and by which workers

    @property
    def dropped(self) -> Mapping[str, int]:
        return self.source.dropped

    def __len__(self) -> int:
        return len(self.source)

    def images(
        self, rows: np.ndarray, decoders: Sequence[Decoder] | None = None
    ) -> list[Image.Image | np.ndarray | BadSample]:
        return self.source.images(rows, decoders)

    def key(self, row: int) -> str:
        return self.source.key(row)

    def fingerprint(self) -> str:
        return self.source.fingerprint()


class Part:
    """Some rows (n,) of pictures, under another name if one is given."""

    def __init__(self, whole: Pictures, rows: np.ndarray, name: str | None = None) -> None:
        self.whole, self.rows, self.name = whole, rows, name or whole.name
        self.photographs, self.classes = whole.photographs, whole.classes
        self.labels = None if whole.labels is None else whole.labels[rows]
        of_rows = getattr(order_of(whole), "of", None)  # where all at random isn't how the whole is best read
        self.order = of_rows(rows) if of_rows and (np.diff(rows) > 0).all() else None
        self.remote = getattr(whole, "remote", False)

    @property
    def dropped(self) -> Mapping[str, int]:
        return self.whole.dropped

    def __len__(self) -> int:
        return len(self.rows)

    def images(
        self, rows: np.ndarray, decoders: Sequence[Decoder] | None = None
    ) -> list[Image.Image | np.ndarray | BadSample]:
        return self.whole.images(self.rows[rows], decoders)

    def key(self, row: int) -> str:
        return self.whole.key(int(self.rows[row]))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.whole.fingerprint().encode() + self.rows.tobytes()).hexdigest()


def open_pictures(spec: str, split: str | None = None, columns: PictureColumns | None = None) -> Pictures:
    """split: the rows of that split; None takes all. Raises InputError for a spec without pictures."""
    columns = columns or PictureColumns()
    if spec.partition("/")[0] == "glyphs" and not os.path.exists(spec):
        return _glyphs(spec)
    if is_tables(spec):
        from xmodal.data.streamed_pictures import open_streamed_pictures

        return open_streamed_pictures(spec, split, columns)
    if is_shards(spec):
        return OfSource(open_source(spec, split, Columns(image=columns.image, split=columns.split)))
    if is_dataset(spec):
        from xmodal.data.stored_pictures import open_stored_pictures

        return open_stored_pictures(spec, split, columns)
    if not (os.path.isfile(spec) or os.path.isdir(spec)):
        return OfSource(open_source(spec, split))  # which says what is wrong, or knows the form
    from xmodal.data.picture_files import read_picture_files

    return read_picture_files(Path(spec), split, columns)


def splits_of_pictures(spec: str, columns: PictureColumns | None = None) -> list[str]:
    """The splits that data has; none where its rows don't say."""
    columns = columns or PictureColumns()
    if not os.path.exists(spec) or is_shards(spec) or is_dataset(spec):
        from xmodal.data.source import splits

        return splits(spec)
    from xmodal.data.picture_files import splits_of_files

    return splits_of_files(Path(spec), columns)


def open_parts(
    spec: str, val: str | None, fraction: float, columns: PictureColumns | None = None
) -> tuple[Pictures, Pictures | None]:
    """What to train on, and what to judge on.

    That is `val`, another spec; or the data's own split val, or else test; or, of data without splits, a fraction that
    is held out, None for 0. Of `glyphs` it is glyphs/unseen_typeface. Its classes have the numbers that they have in
    what is trained on.
    """
    found = splits_of_pictures(spec, columns)
    train = open_pictures(spec, "train" if "train" in found else None, columns)
    if val is None and spec == "glyphs":
        val = "glyphs/unseen_typeface"
    if val is not None:
        inside = splits_of_pictures(val, columns)
        judged = open_pictures(val, next((s for s in ("val", "test") if s in inside), None), columns)
        return train, with_classes(judged, train.classes)
    if "train" in found and (split := next((s for s in ("val", "test") if s in found), None)):
        return train, with_classes(open_pictures(spec, split, columns), train.classes)
    return hold_out(train, fraction) if fraction else (train, None)


def open_to_judge(
    spec: str, test: str | None, fraction: float, columns: PictureColumns | None = None
) -> tuple[Pictures, Pictures]:
    """What a probe learns from, and what it is judged on, in that one's numbers of classes.

    test: a split of the data, or another spec, of which the split test counts, else val, else all. Without it that is
    the data's own split test, else val, else a fraction that is held out; of `glyphs` glyphs/unseen_typeface.
    """
    found = splits_of_pictures(spec, columns)
    train = open_pictures(spec, "train" if "train" in found else None, columns)
    if test is None and spec == "glyphs":
        test = "glyphs/unseen_typeface"
    if test is None:
        test = next((s for s in ("test", "val") if s in found and "train" in found), None)
    if test is None:
        return hold_out(train, fraction)
    if test in found:
        if test == "train" or "train" not in found:
            raise InputError(f"--test {test}: these are the pictures that are learnt from, too.")
        return train, with_classes(open_pictures(spec, test, columns), train.classes)
    inside = splits_of_pictures(test, columns)
    judged = open_pictures(test, next((s for s in ("test", "val") if s in inside), None), columns)
    return train, with_classes(judged, train.classes)


def hold_out(pictures: Pictures, fraction: float) -> tuple[Part, Part]:
    """The pictures to train on and those held out: of each class, and of those without one, this fraction.

    Which they are depends on what a picture is called and on nothing else: a picture that is added moves at most one
    other. Of a class with two or more pictures at least one stays to train on and one is held out.
    Raises InputError where there is nothing to hold out.
    """
    n = len(pictures)
    if n < 2:
        raise InputError(
            f"{pictures.name} has {n} picture, of which nothing can be held out: give --val or --hold-out 0."
        )
    number = np.array([stable_id(pictures.key(row)) for row in range(n)])
    labels = np.zeros(n, dtype=np.int64) if pictures.labels is None else pictures.labels
    order = np.lexsort((number, labels))  # class by class, each in the order of its numbers
    _, first, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    place = np.arange(n) - np.repeat(first, sizes)
    wanted = np.clip(np.round(fraction * sizes), (sizes > 1).astype(int), np.maximum(sizes - 1, 0))
    held = np.sort(order[place < np.repeat(wanted, sizes)])
    rest = np.setdiff1d(np.arange(n), held)
    return Part(pictures, rest), Part(pictures, held, f"{pictures.name}, {fraction:.0%} held out")


def with_classes(pictures: Pictures, classes: list[str]) -> Pictures:
    """The same pictures, their labels numbers of these classes; a class that is none of them becomes NONE.

    Raises InputError where both have classes and none in common.
    """
    if pictures.labels is None or not classes or pictures.classes == classes:
        return pictures
    if not set(classes) & set(pictures.classes):
        raise InputError(
            f"{pictures.name} has other classes than what is trained on: {', '.join(pictures.classes[:3])}, …; "
            f"not {', '.join(classes[:3])}, …"
        )
    number = {name: i for i, name in enumerate(classes)}
    new = np.array([*(number.get(name, NONE) for name in pictures.classes), NONE])  # NONE is its last
    part = Part(pictures, np.arange(len(pictures)))
    part.labels, part.classes = new[pictures.labels], classes
    return part


def _glyphs(spec: str) -> OfSource:
    """Characters by script or kind; those that belong to none, or to several, have no label."""
    from xmodal.data.glyphs import KINDS, Glyphs, kind

    source = open_source(spec)
    assert isinstance(source, Glyphs)
    classes = sorted([*KINDS, "arrow"])
    kinds = [{kind(name) for name in names} for names in source.names]
    labels = [classes.index(str(*found)) if len(found) == 1 and None not in found else NONE for found in kinds]
    return OfSource(source, np.array(labels, dtype=np.int64), classes)
