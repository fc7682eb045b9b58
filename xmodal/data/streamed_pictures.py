"""Pictures in parquet files far away, with captions or with classes, that are not downloaded first.

What is small comes when they are opened, so that rows, captions and classes are those of the downloaded data; pictures
come with their row group, see `row_groups`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from xmodal.data.dataset_columns import blocks
from xmodal.data.decode import Decoder, decode_each, mostly_photographs
from xmodal.data.hf_pictures import HfPictures, id_column, image_column
from xmodal.data.orders import Order
from xmodal.data.pictures import PictureColumns
from xmodal.data.reading import each
from xmodal.data.remote_tables import RemoteTables
from xmodal.data.row_groups import RowGroups
from xmodal.data.source import Columns
from xmodal.data.stored_pictures import label_column, labels_in
from xmodal.data.table_names import table_files
from xmodal.errors import BadSample, InputError

FIRST = 8  # pictures that tell the kind


class StreamedPairs(HfPictures):
    """A source of pictures with captions; rows without a caption are left out and counted."""

    remote = True

    def __init__(self, name: str, tables: RemoteTables, columns: Columns) -> None:
        head = tables.head()
        self._name_columns(name, head, columns)
        self._groups = RowGroups(tables, self._image)
        named = id_column(head)
        self._look_through(tables.columns(list(dict.fromkeys([*self._texts, *([named] if named else [])]))))
        self.order: Order = self._groups.order(self._rows)
        self.photographs = mostly_photographs(self._groups.first(FIRST))

    def key(self, row: int) -> str:
        return self._groups.key(int(self._rows[row]))

    def fingerprint(self) -> str:
        """Over captions, ids, and what the files say of themselves."""
        told = (repr(self._of(block)).encode() for block in blocks(len(self._captions)))
        return _digest(self._groups.tables, chain([self.image_id.tobytes()], told))

    def some(self, count: int) -> np.ndarray:
        """Rows to look at, where it can't be all."""
        return self._groups.some(count, self._rows)

    def _encoded(self, rows: Sequence[int] | np.ndarray) -> list[bytes | Path]:
        return [*self._groups.pictures(self._rows[np.asarray(rows, dtype=np.int64)])]


class StreamedPictures:
    """Pictures, with classes if a column names them."""

    remote = True
    dropped: Mapping[str, int]

    def __init__(self, name: str, tables: RemoteTables, columns: PictureColumns) -> None:
        head = tables.head()
        self.name, self.dropped = name, {}
        self._groups = RowGroups(tables, image_column(name, head, columns.image))
        self._n = sum(tables.rows)
        if not self._n:
            raise InputError(f"{name} has no rows.")
        label = label_column(name, head, columns.label)
        self.labels, self.classes = labels_in(tables.columns([label]), label) if label else (None, [])
        self.order: Order = self._groups.order(np.arange(self._n))
        self.photographs = mostly_photographs(self._groups.first(FIRST))

    def __len__(self) -> int:
        return self._n

    def images(
        self, rows: np.ndarray, decoders: Sequence[Decoder] | None = None
    ) -> list[Image.Image | np.ndarray | BadSample]:
        return decode_each(each(rows, self._groups.pictures(rows)), decoders)

    def key(self, row: int) -> str:
        return self._groups.key(int(row))

    def fingerprint(self) -> str:
        """Over labels, and what the files say of themselves."""
        return _digest(self._groups.tables, [b"" if self.labels is None else self.labels.tobytes()])


def open_streamed_pairs(spec: str, split: str | None, columns: Columns) -> StreamedPairs:
    """Raises InputError for what can't be reached, is no parquet, or has no pictures, captions or that split."""
    return StreamedPairs(_name(spec, split), RemoteTables(*table_files(spec, split)), columns)


def open_streamed_pictures(spec: str, split: str | None, columns: PictureColumns) -> StreamedPictures:
    """As above, of pictures alone."""
    return StreamedPictures(_name(spec, split), RemoteTables(*table_files(spec, split)), columns)


def _name(spec: str, split: str | None) -> str:
    return f"{spec}:{split}" if split else spec


def _digest(tables: RemoteTables, told: Iterable[bytes]) -> str:
    digest = hashlib.sha256(tables.digest().encode())
    for one in told:
        digest.update(one)
    return digest.hexdigest()
