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

from xmodal.data.delimited import counts
from xmodal.data.forms import find
from xmodal.data.image_paths import require_some, with_most
from xmodal.data.listed_files import ListedFiles
from xmodal.data.source import Columns
from xmodal.data.stable_id import stable_id
from xmodal.errors import InputError


class Table(ListedFiles):
    """A source over a table. Captions lie in an arrow array, as paths do.

    dropped: how many lines had no image, and how many images no caption.
    """

    def __init__(
        self, name: str, folder: Path, rows: dict[str, list[str]], dropped: Mapping[str, int] | None = None
    ) -> None:
        import pyarrow as pa

        super().__init__(name, folder, rows)
        self.dropped: Mapping[str, int] = dropped or {}
        self.captions = pa.array([text for texts in rows.values() for text in texts], pa.large_string())
        # Row i has captions first[i] to first[i + 1].
        self.first = np.cumsum([0, *(len(texts) for texts in rows.values())])
        self.image_id = np.array([stable_id(path) for path in rows], dtype=np.int64)

    def texts(self, row: int) -> Sequence[str]:
        return self.captions[self.first[row] : self.first[row + 1]].to_pylist()

    def fingerprint(self) -> str:
        """Over paths, captions and the sizes of files."""
        digest = hashlib.sha256()
        for row in range(len(self)):
            digest.update("\0".join([self.key(row), str(self.size(row)), *self.texts(row), ""]).encode())
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
