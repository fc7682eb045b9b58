"""Pictures of a Hugging Face dataset, a parquet or an arrow file, with the classes that a column names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xmodal.data.dataset_columns import blocks, picture_file
from xmodal.data.decode import Decoder, decode_each, mostly_photographs
from xmodal.data.hf_datasets import open_dataset
from xmodal.data.hf_pictures import image_column, splits_by_name
from xmodal.data.labelled import LABEL_NAMES
from xmodal.data.pictures import NONE, PictureColumns
from xmodal.data.reading import each
from xmodal.errors import BadSample, InputError

NAMES = (*LABEL_NAMES, "labels", "fine_label")


class StoredPictures:
    """Bytes in a memory-mapped table; nothing is decoded before it is asked for."""

    dropped: Mapping[str, int]

    def __init__(self, name: str, dataset: Any, columns: PictureColumns) -> None:
        import datasets

        self.name, self.dropped = name, {}
        self._image = image_column(name, dataset, columns.image)
        if not len(dataset):
            raise InputError(f"{name} has no rows.")
        self.labels, self.classes = labels_in(dataset, label_column(name, dataset, columns.label))
        if isinstance(dataset.features[self._image], datasets.Image):
            dataset = dataset.cast_column(self._image, datasets.Image(decode=False))
        self._pictures = dataset.select_columns([self._image])
        self.photographs = mostly_photographs(self._encoded(range(min(64, len(self)))))

    def __len__(self) -> int:
        return len(self._pictures)

    def images(
        self, rows: np.ndarray, decoders: Sequence[Decoder] | None = None
    ) -> list[Image.Image | np.ndarray | BadSample]:
        return decode_each(each(rows, self._encoded(rows.tolist())), decoders)

    def key(self, row: int) -> str:
        return f"row {int(row)}"

    def fingerprint(self) -> str:
        """Over labels and the sizes of pictures."""
        digest = hashlib.sha256(b"" if self.labels is None else self.labels.tobytes())
        for block in blocks(len(self)):
            sizes = [len(c) if isinstance(c, bytes) else str(c) for c in self._encoded(block.tolist())]
            digest.update(repr(sizes).encode())
        return digest.hexdigest()

    def _encoded(self, rows: Sequence[int]) -> list[bytes | Path]:
        """The files of pictures, or where they are."""
        return [picture_file(cell) for cell in self._pictures[list(rows)][self._image]]


def open_stored_pictures(spec: str, split: str | None, columns: PictureColumns) -> StoredPictures:
    """split: by the name it has here; None is train, or the first there is. Raises InputError."""
    there = splits_by_name(spec)
    named = there.get(split or "train", split or next(iter(there.values()), "train"))
    return StoredPictures(f"{spec}:{split}" if split else spec, open_dataset(spec, named), columns)


def label_column(name: str, dataset: Any, named: str | None) -> str | None:
    """The column of classes, if there is one: of ClassLabels, or of numbers or words under a usual name."""
    import datasets

    if named is not None and named not in dataset.column_names:
        raise InputError(f"{name} has no column {named!r}; it has {', '.join(dataset.column_names)}.")
    usual = [c for word in NAMES for c in dataset.column_names if c.lower() == word]
    marked = [c for c in dataset.column_names if isinstance(dataset.features[c], datasets.ClassLabel)]
    return named or next(iter([*(c for c in usual if c in marked), *marked, *usual]), None)


def labels_in(dataset: Any, column: str | None) -> tuple[np.ndarray | None, list[str]]:
    """The classes of rows (n,) by a column, and their names."""
    import datasets

    if column is None:
        return None, []
    cells = dataset.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    feature = dataset.features[column]
    if isinstance(feature, datasets.ClassLabel):
        classes = [told.replace("_", " ") for told in feature.names]
        return np.array([NONE if cell is None or cell < 0 else cell for cell in cells], dtype=np.int64), classes
    kinds = sorted({cell for cell in cells if cell is not None})
    number = {kind: i for i, kind in enumerate(kinds)} | {None: NONE}
    return np.array([number[cell] for cell in cells], dtype=np.int64), [str(kind) for kind in kinds]
