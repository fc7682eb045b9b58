"""An index folder as `xmodal embed` writes it: rows that stay on disk until they are asked for, and their items."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from xmodal.data.decode import decode_each
from xmodal.data.image_paths import resolve
from xmodal.embedding.outputs import ABOUT, ITEMS, ROWS
from xmodal.errors import BadSample, InputError


@dataclass(frozen=True)
class Index:
    """rows: (n, d) unit, mapped from the file; items (n): texts or names of pictures; numbers (n): their input rows."""

    folder: Path
    about: dict[str, Any]
    rows: np.ndarray
    items: pa.ChunkedArray
    numbers: pa.ChunkedArray

    @property
    def kind(self) -> str:
        return self.about["kind"]

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, row: int) -> str:
        return self.items[row].as_py()

    def number(self, row: int) -> int:
        return self.numbers[row].as_py()

    def path(self, row: int) -> Path:
        """Where the picture of a row was; it may be gone."""
        return resolve(Path(self.about["root"] or "."), self.item(row))

    def images(self, rows: np.ndarray) -> list[Image.Image | np.ndarray | BadSample]:
        """The pictures of rows, as many as are there still."""
        return decode_each(self.path(row) for row in rows.tolist())

    def key(self, row: int) -> str:
        """What a picture is called where one is shown."""
        return self.item(row)


def open_index(folder: Path) -> Index:
    """Raises InputError for a folder that is none, for a damaged one, and for rows that are not unit."""
    from pyarrow import parquet

    if not os.path.isfile(folder / ABOUT):
        kind = "no index" if os.path.isdir(folder) else "no folder"
        raise InputError(f"{folder} is {kind}; make one: xmodal embed --model … --data … --output {folder.stem}")
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        rows = np.load(folder / ROWS, mmap_mode="r", allow_pickle=False)
        items = parquet.read_table(folder / ITEMS, memory_map=True)
        whole = rows.shape == (about["rows"], about["width"]) and len(items) == len(rows)
        index = Index(folder, about, rows, items[about["kind"]], items["row"])
        normalized = about["normalized"]
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise InputError(f"{folder} is a damaged index: {error}") from None
    if not whole:
        raise InputError(f"{folder} is a damaged index: {ROWS} and {ITEMS} are of other sizes than {ABOUT} says.")
    if not normalized:
        raise InputError(f"{folder} holds rows that are not unit; a search needs them embedded without --no-normalize.")
    return index
