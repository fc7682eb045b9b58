"""COCO as it is unpacked: annotations/captions_train2017.json, captions_val2017.json, beside train2017/, val2017/."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xmodal.data.forms import Listing, Row, json_listing
from xmodal.data.forms.csv_table import split_of
from xmodal.data.image_paths import with_most
from xmodal.data.source import Columns


def fits(folder: Path) -> bool:
    return bool(_files(folder))


@contextmanager
def read(folder: Path, columns: Columns) -> Iterator[Listing]:
    """Each file's rows are of the split that its name says. Raises InputError as reading one of the files does."""
    files = _files(folder)

    def rows() -> Iterator[Row]:
        for file in files:
            with json_listing.read(file, columns) as listing:
                told = list(listing.rows)
            where = with_most(listing.roots, [row.image for row in told])
            inside = where.relative_to(folder) if where.is_relative_to(folder) else where
            for row in told:
                yield Row(str(inside / row.image) if row.image else "", row.texts, _split(file))

    yield Listing("COCO captions", (folder,), rows(), True)


def _files(folder: Path) -> list[Path]:
    return sorted((folder / "annotations").glob("captions_*.json"))


def _split(file: Path) -> str:
    """captions_val2017.json -> val."""
    return split_of(re.sub(r"^captions_|\d+$", "", file.stem))
