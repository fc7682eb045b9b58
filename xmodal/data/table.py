"""Pictures in files, by whatever lists them: the rows of one picture put together, with all its captions.

Paths are relative to the listing's folder, then to the working directory.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from xmodal.data.decode import Decoder, decode_each, mostly_photographs
from xmodal.data.delimited import counts
from xmodal.data.forms import find
from xmodal.data.image_paths import require_some, resolve, with_most
from xmodal.data.reading import each
from xmodal.data.source import Columns
from xmodal.data.stable_id import stable_id
from xmodal.errors import BadSample, InputError


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
        self.photographs = mostly_photographs(self.file(row) for row in range(min(64, len(self))))

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, row: int) -> Path:
        """Where the picture is; it may not be there."""
        return resolve(self.folder, self.key(row))

    def images(
        self, rows: np.ndarray, decoders: Sequence[Decoder] | None = None
    ) -> list[Image.Image | np.ndarray | BadSample]:
        return decode_each(each(rows, (self.file(row) for row in rows.tolist())), decoders)

    def texts(self, row: int) -> Sequence[str]:
        return self.captions[self.first[row] : self.first[row + 1]].to_pylist()

    def key(self, row: int) -> str:
        return self.paths[int(row)].as_py()

    def fingerprint(self) -> str:
        """Over paths, captions and the sizes of files: reading every file would take as long as an epoch."""
        digest = hashlib.sha256()
        for row in range(len(self)):
            digest.update("\0".join([self.key(row), str(_size(self.file(row))), *self.texts(row), ""]).encode())
        return digest.hexdigest()


def read_table(path: Path, split: str | None = None, columns: Columns | None = None) -> Table:
    """The pictures that a file or folder lists, of one split if it is given, in the order of their first rows.

    Raises InputError for one without rows, columns, that split, or any picture that is there.
    """
    rows: dict[str, list[str]] = {}
    present: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    with find(path)(path, columns or Columns()) as listing:
        for row in listing.rows:
            present[row.split] += 1
            if split is not None and row.split != split:
                continue
            if not row.image:
                dropped["no image"] += 1
                continue
            told = rows.setdefault(os.path.normpath(row.image), [])
            told += [text for text in dict.fromkeys(row.texts) if text not in told]
    dropped["no caption"] = sum(not told for told in rows.values())
    rows = {name: told for name, told in rows.items() if told}
    if split is not None and not rows:
        raise InputError(f"{path} has no rows of split {split!r}; it has {counts(present)}.")
    if not rows:
        raise InputError(f"{path} ({listing.form}) has no row with a picture and a caption.")
    folder = with_most(listing.roots, rows)
    require_some(path, folder, rows)
    return Table(f"{path}" + (f":{split}" if split else ""), folder, rows, dropped)


def splits(path: Path, columns: Columns) -> dict[str, int]:
    """How many rows each split has; empty where rows don't say."""
    present: Counter[str] = Counter()
    with find(path)(path, columns) as listing:
        if listing.has_splits:
            present.update(row.split for row in listing.rows)
    return dict(present)


def _size(path: Path) -> int:
    """Bytes of a regular file; −1 if there is none."""
    return os.path.getsize(path) if os.path.isfile(path) else -1
