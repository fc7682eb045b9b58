"""Hugging Face's imagefolder: pictures with a metadata.csv or .jsonl, in the folder or in each of its splits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from xmodal.data.forms import Listing, Row, csv_table, json_listing
from xmodal.data.forms.csv_table import split_of
from xmodal.data.source import Columns

NAMES = ("metadata.csv", "metadata.jsonl")


def fits(folder: Path) -> bool:
    return bool(_files(folder))


@contextmanager
def read(folder: Path, columns: Columns) -> Iterator[Listing]:
    """file_name is relative to the metadata's own folder. Splits are the folders that hold one each."""
    files = _files(folder)
    splits = len(files) > 1 or files[0].parent != folder

    def rows() -> Iterator[Row]:
        for file in files:
            with ExitStack() as stack:
                reader = csv_table.read if file.suffix == ".csv" else json_listing.read
                listing = stack.enter_context(reader(file, columns))
                for row in listing.rows:
                    name = str(file.parent.relative_to(folder) / row.image) if row.image else ""
                    yield Row(name, row.texts, split_of(file.parent.name) if splits else row.split)

    yield Listing("imagefolder with metadata", (folder,), rows(), splits)


def _files(folder: Path) -> list[Path]:
    """The folder's own metadata, or those of the folders in it."""
    for where in ([folder], sorted(p for p in folder.iterdir() if p.is_dir())):
        found = [place / name for place in where for name in NAMES if (place / name).is_file()]
        if found:
            return found
    return []
