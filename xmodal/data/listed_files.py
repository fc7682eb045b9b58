"""The files of pictures that a listing names: where each is, and what is in it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from xmodal.data.decode import Decoder, decode_each, mostly_photographs
from xmodal.data.image_paths import resolve
from xmodal.data.reading import each
from xmodal.errors import BadSample


class ListedFiles:
    """Names of files, relative to a folder, then to the working directory.

    They lie in an arrow array: workers that were forked share it without copying.
    """

    def __init__(self, name: str, folder: Path, paths: Iterable[str]) -> None:
        import pyarrow as pa

        self.name, self.folder = name, folder
        self.paths = pa.array(list(paths), pa.large_string())
        self.photographs = mostly_photographs(self.file(row) for row in range(min(64, len(self))))

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, row: int) -> Path:
        """Where the picture is; it may not be there."""
        return resolve(self.folder, self.key(row))

    def size(self, row: int) -> int:
        """Bytes of its file, −1 if there is none. For fingerprints: to read all would take as long as an epoch."""
        file = self.file(row)
        return os.path.getsize(file) if os.path.isfile(file) else -1

    def images(
        self, rows: np.ndarray, decoders: Sequence[Decoder] | None = None
    ) -> list[Image.Image | np.ndarray | BadSample]:
        return decode_each(each(rows, (self.file(row) for row in rows.tolist())), decoders)

    def key(self, row: int) -> str:
        return self.paths[int(row)].as_py()
