"""CSV and TSV with a column of pictures and one or more of captions: open_clip's, and everybody's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from xmodal.data.delimited import SPLITS, column, image_column, rows_of, split_column
from xmodal.data.forms import Listing, Row, strings
from xmodal.data.source import Columns

# In the order in which they are looked for. title is open_clip's.
CAPTION_NAMES = ("caption", "title", "text", "captions", "description", "sentence", "name", "prompt", "alt_text")


@contextmanager
def read(path: Path, columns: Columns) -> Iterator[Listing]:
    """Raises InputError for a table without the columns, also while rows are taken."""
    with rows_of(path) as (header, lines):
        image = image_column(path, header, columns.image)
        texts = caption_columns(path, header, columns.caption)
        part = split_column(path, header, columns.split)

        def rows() -> Iterator[Row]:
            for line in lines:
                told = [text for i in texts for text in texts_of(line[i], header[i])]
                yield Row(line[image].strip(), told, split_of(line[part]) if part is not None else "")

        yield Listing("table", (path.parent,), rows(), part is not None)


def split_of(word: str) -> str:
    """A split by the name that it has here."""
    word = word.strip().lower()
    return SPLITS.get(word, word)


def texts_of(cell: str, column: str) -> list[str]:
    """The captions in a cell: one, or those of a JSON list where the column is called captions."""
    if column.lower() == "captions" and cell.lstrip().startswith("["):
        try:
            told = json.loads(cell)
        except (ValueError, RecursionError):
            told = None
        if isinstance(told, list) and all(isinstance(text, str) for text in told):
            return strings(told)
    return strings(cell)


def caption_columns(path: Path, header: Sequence[str], named: str | None) -> list[int]:
    """The caption column, or all of caption_0, caption_1, …"""
    numbered = [i for i, name in enumerate(header) if name.lower().rstrip("0123456789") in ("caption_", "caption")]
    if named is None and numbered and not any(name.lower() in CAPTION_NAMES for name in header):
        return numbered
    return [column(path, header, named, CAPTION_NAMES, "captions", "--caption-column")]
