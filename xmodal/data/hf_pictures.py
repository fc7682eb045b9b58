"""Pictures and captions of a Hugging Face dataset, a parquet or an arrow file: bytes in a memory-mapped table.

`datasets` opens them; what it can't map as it lies, such as parquet, it writes into its cache once. Nothing is decoded
before it is asked for, and no code of a dataset is run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xmodal.data.dataset_columns import blocks, find_column, is_picture, is_text, picture_file
from xmodal.data.decode import Decoder, decode_each, mostly_photographs
from xmodal.data.delimited import IMAGE_NAMES
from xmodal.data.forms import strings
from xmodal.data.forms.class_folders import TEMPLATE
from xmodal.data.forms.csv_table import CAPTION_NAMES, split_of
from xmodal.data.hf_datasets import open_dataset, splits_of_dataset
from xmodal.data.reading import each
from xmodal.data.source import Columns
from xmodal.data.stable_id import stable_id
from xmodal.errors import BadSample, InputError

ID_NAMES = ("image_id", "img_id", "imgid", "cocoid")  # a column that says which rows have one picture


class HfPictures:
    """A source over a `datasets.Dataset`; rows without a caption are left out and counted.

    A column of classes, where there are no captions, gives "a photo of a CLASS.".
    """

    def __init__(self, name: str, dataset: Any, columns: Columns) -> None:
        import datasets

        self._name_columns(name, dataset, columns)
        if isinstance(dataset.features[self._image], datasets.Image):
            dataset = dataset.cast_column(self._image, datasets.Image(decode=False))
        self._pictures = dataset.select_columns([self._image])
        self._look_through(dataset)
        self.photographs = mostly_photographs(self.file(row) for row in range(min(64, len(self))))

    def _name_columns(self, name: str, dataset: Any, columns: Columns) -> None:
        """Which columns of a dataset are pictures and captions; its rows don't count here."""
        import datasets

        self.name = name
        self._image = image_column(name, dataset, columns.image)
        self._texts = _caption_columns(name, dataset, columns.caption)
        self._classes = {
            column: [told.replace("_", " ") for told in dataset.features[column].names]
            for column in self._texts
            if isinstance(dataset.features[column], datasets.ClassLabel)
        }

    def _look_through(self, dataset: Any) -> None:
        """Which rows have captions, and which have one picture."""
        self._captions = dataset.select_columns(self._texts)
        told = np.array([bool(texts) for block in blocks(len(dataset)) for texts in self._of(block)], dtype=bool)
        self._rows = np.flatnonzero(told)
        self.dropped: Mapping[str, int] = {"no caption": int((~told).sum())}
        if not len(self):
            raise InputError(f"{self.name} has no row with a picture and a caption.")
        self.image_id = np.array([stable_id(one) for one in _ids(dataset, self._rows)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def images(
        self, rows: np.ndarray, decoders: Sequence[Decoder] | None = None
    ) -> list[Image.Image | np.ndarray | BadSample]:
        return decode_each(each(rows, self._encoded(rows)), decoders)

    def file(self, row: int) -> bytes | Path:
        """The picture as it is stored, or where it is."""
        return self._encoded([row])[0]

    def texts(self, row: int) -> Sequence[str]:
        return self._of(self._rows[[row]])[0]

    def key(self, row: int) -> str:
        return f"row {int(self._rows[row])}"

    def fingerprint(self) -> str:
        """Over captions, ids and the sizes of pictures."""
        digest = hashlib.sha256(self.image_id.tobytes())
        for block in blocks(len(self._pictures)):
            sizes = self._sizes(block)  # (rows of the dataset)
            here = self._rows[(block[0] <= self._rows) & (self._rows <= block[-1])]
            told = zip(self._of(here), (sizes[i] for i in (here - block[0]).tolist()), strict=True)
            digest.update(repr(list(told)).encode())
        return digest.hexdigest()

    def _sizes(self, block: np.ndarray) -> list[int | str]:
        """Bytes of the pictures of a stretch of the dataset's own rows, or their paths; no picture is read for it."""
        import pyarrow as pa
        import pyarrow.compute as pc

        column = self._pictures.with_format("arrow")[block[0] : block[-1] + 1][self._image]
        paths = [None] * len(column)
        if pa.types.is_struct(column.type):
            fields = dict(zip((one.name for one in column.type), column.flatten(), strict=True))
            paths, column = fields["path"].to_pylist(), fields["bytes"]
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):  # paths alone
            return [path or 0 for path in column.to_pylist()]
        sizes = pc.call_function("binary_length", [column]).to_pylist()
        return [size or path or 0 for size, path in zip(sizes, paths, strict=True)]

    def _encoded(self, rows: Sequence[int] | np.ndarray) -> list[bytes | Path]:
        """The files of pictures, or where they are."""
        cells = self._pictures[self._rows[rows].tolist()][self._image]
        return [picture_file(cell) for cell in cells]

    def _of(self, rows: np.ndarray) -> list[list[str]]:
        """The texts of rows of the dataset itself."""
        columns = self._captions[rows.tolist()]
        found: list[list[str]] = [[] for _ in rows]
        for name in self._texts:
            for texts, cell in zip(found, columns[name], strict=True):
                told = [TEMPLATE.format(self._classes[name][cell])] if name in self._classes else strings(cell)
                texts += [text for text in dict.fromkeys(told) if text not in texts]
        return found


def open_hf_pictures(spec: str, split: str | None, columns: Columns) -> HfPictures:
    """split: by the name it has here; None is train, or the first there is.

    Raises InputError for a dataset that can't be opened, and for one without pictures, captions or that split.
    """
    there = splits_by_name(spec)
    named = there.get(split or "train", split or next(iter(there.values()), "train"))
    return HfPictures(f"{spec}:{split}" if split else spec, open_dataset(spec, named), columns)


def splits_by_name(spec: str) -> dict[str, str]:
    """The dataset's name for each split, by ours: val for validation."""
    return {split_of(name): name for name in splits_of_dataset(spec)}


def image_column(name: str, dataset: Any, named: str | None) -> str:
    """The column of pictures. Raises InputError where it can't be told."""
    return find_column(name, dataset, named, IMAGE_NAMES, is_picture, "pictures", "--image-column")


def id_column(dataset: Any) -> str | None:
    """The column that says which rows have one picture, if there is one."""
    return next((name for name in dataset.column_names if name.lower() in ID_NAMES), None)


def _ids(dataset: Any, rows: np.ndarray) -> Iterator[str]:
    named = id_column(dataset)
    if named is None:
        return (f"row {row}" for row in rows.tolist())
    values = dataset.select_columns([named]).with_format("arrow")[:][named]
    return (str(values[row].as_py()) for row in rows.tolist())


def _caption_columns(name: str, dataset: Any, named: str | None) -> list[str]:
    """The captions' column; all of caption_0, caption_1, …; or that of classes."""
    names = dataset.column_names
    numbered = [n for n in names if n.lower().rstrip("0123456789") in ("caption_", "caption")]
    if named is None and numbered and not any(n.lower() in CAPTION_NAMES for n in names):
        return numbered
    return [
        find_column(name, dataset, named, (*CAPTION_NAMES, "label", "labels"), is_text, "captions", "--caption-column")
    ]
