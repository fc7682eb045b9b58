"""Tables of images and captions: the rows of one image put together, with all its captions.

Paths are relative to the table's folder, then to the working directory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from xmodal.data.decode import decode_each, looks_photographic
from xmodal.data.delimited import column, counts, image_column, of_split, rows_of, split_column
from xmodal.data.image_paths import require_some, resolve
from xmodal.data.source import Columns
from xmodal.data.stable_id import stable_id
from xmodal.errors import BadSample, InputError

# In the order in which they are looked for. title is open_clip's.
CAPTION_NAMES = ("caption", "title", "text", "captions", "description", "sentence", "name", "prompt", "alt_text")


class Table:
    """A source over a table. Strings lie in arrow arrays: workers that were forked share them without copying.

    dropped: how many lines had no image, and how many images no caption.
    """

    def __init__(
        self, name: str, folder: Path, rows: dict[str, list[str]], dropped: Mapping[str, int] | None = None
    ) -> None:
        import pyarrow as pa

        self.name, self.folder = name, folder
        self.dropped: Mapping[str, int] = dropped or {}
        self.paths = pa.array(list(rows), pa.large_string())
        self.captions = pa.array([text for texts in rows.values() for text in texts], pa.large_string())
        # Row i has captions first[i] to first[i + 1].
        self.first = np.cumsum([0, *(len(texts) for texts in rows.values())])
        self.image_id = np.array([stable_id(path) for path in rows], dtype=np.int64)
        self.photographs = self._photographs()

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, row: int) -> Path:
        return resolve(self.folder, self.key(row))

    def images(self, rows: np.ndarray) -> list[Image.Image | np.ndarray | BadSample]:
        return decode_each(self.path(row) for row in rows.tolist())

    def texts(self, row: int) -> Sequence[str]:
        return self.captions[self.first[row] : self.first[row + 1]].to_pylist()

    def key(self, row: int) -> str:
        return self.paths[int(row)].as_py()

    def fingerprint(self) -> str:
        """Over paths, captions and the sizes of files: reading every file would take as long as an epoch."""
        digest = hashlib.sha256()
        for row in range(len(self)):
            digest.update("\0".join([self.key(row), str(_size(self.path(row))), *self.texts(row), ""]).encode())
        return digest.hexdigest()

    def _photographs(self) -> bool:
        """By the first eight images that open: most are JPEG, or 96 pixels a side or more without transparency."""

        def found() -> Iterator[bool]:
            for row in range(min(64, len(self))):
                try:
                    yield looks_photographic(self.path(row))
                except BadSample:
                    continue

        first = list(islice(found(), 8))
        return 2 * sum(first) > len(first)


def read_table(path: Path, split: str | None = None, columns: Columns | None = None) -> Table:
    """The rows of a table, of one split if it is given, one row for each image in the order of its first line.

    Raises InputError for a table without rows, columns, that split, or any image that is there.
    """
    columns = columns or Columns()
    rows: dict[str, list[str]] = {}
    present: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    with rows_of(path) as (header, lines):
        image = image_column(path, header, columns.image)
        texts = _caption_columns(path, header, columns.caption)
        for line in of_split(lines, split_column(path, header, columns.split), split, present):
            if not line[image].strip():
                dropped["no image"] += 1
                continue
            told = rows.setdefault(os.path.normpath(line[image].strip()), [])
            for text in (t for i in texts for t in _texts(line[i], header[i])):
                if text and text not in told:
                    told.append(text)
    dropped["no caption"] = sum(not told for told in rows.values())
    rows = {name: told for name, told in rows.items() if told}
    if split is not None and not rows:
        raise InputError(f"{path} has no rows of split {split!r}; it has {counts(present)}.")
    if not rows:
        raise InputError(f"{path} has a header but no row with an image and a caption.")
    require_some(path, rows)
    return Table(f"{path}" + (f":{split}" if split else ""), path.parent, rows, dropped)


def splits(path: Path, columns: Columns) -> dict[str, int]:
    """How many lines each split of a table has; empty without a split column."""
    present: Counter[str] = Counter()
    with rows_of(path) as (header, lines):
        part = split_column(path, header, columns.split)
        if part is not None:
            for _ in of_split(lines, part, None, present):
                pass
    return dict(present)


def held_out_split(spec: str, columns: Columns) -> str | None:
    """The split of a table that is there to be evaluated on: test, else val, else none."""
    found = splits(Path(spec), columns) if os.path.isfile(spec) else {}
    return next((split for split in ("test", "val") if split in found), None)


def _texts(cell: str, column: str) -> list[str]:
    """The captions in a cell: one, or those of a JSON list where the column is called captions."""
    if column.lower() == "captions" and cell.lstrip().startswith("["):
        try:
            told = json.loads(cell)
        except (ValueError, RecursionError):
            told = None
        if isinstance(told, list) and all(isinstance(text, str) for text in told):
            # JSON may hold half a surrogate pair, which is no text: "?" stands for it.
            return [text.encode(errors="replace").decode().strip() for text in told]
    return [cell.strip()]


def _caption_columns(path: Path, header: list[str], named: str | None) -> list[int]:
    """The caption column, or all of caption_0, caption_1, …"""
    numbered = [i for i, name in enumerate(header) if name.lower().rstrip("0123456789") in ("caption_", "caption")]
    if named is None and numbered and not any(name.lower() in CAPTION_NAMES for name in header):
        return numbered
    return [column(path, header, named, CAPTION_NAMES, "captions", "--caption-column")]


def _size(path: Path) -> int:
    """Bytes of a regular file; −1 if there is none."""
    return os.path.getsize(path) if os.path.isfile(path) else -1
