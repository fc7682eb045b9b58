"""Texts from files as people have them: one a line, or columns of a table; plain or gzipped, and never held whole.

Text is only text: nothing is opened or fetched because of what it says. Bytes that are no UTF-8, and NULs, become
U+FFFD; how many cells that happened to is counted.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from xmodal.data.delimited import column, counts, of_split, open_text, rows_of, split_column
from xmodal.data.hf_datasets import PREFIX, dataset_rows
from xmodal.errors import InputError

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
TABLES = (".csv", ".tsv")
# In the order in which they are looked for.
TEXT_NAMES = ("sentence", "text", "caption", "sentences", "texts", "title", "content", "document", "passage", "query",
              "sent0", "sentence1")  # fmt: skip


@dataclass
class Rows:
    """Rows of text as they are read: the header (empty for a file of lines, whose rows have one cell), and the cells.

    replaced: cells so far that held what is no text.
    """

    name: str
    header: list[str]
    cells: Iterator[list[str]]
    replaced: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[list[str]]:
        for row in self.cells:
            yield [self._clean(cell) for cell in row]

    def _clean(self, cell: str) -> str:
        if "\0" in cell or REPLACEMENT in cell:
            self.replaced["characters that are no text"] += 1
            return cell.replace("\0", REPLACEMENT)
        return cell


@contextmanager
def open_rows(spec: str, split: str | None = None, split_name: str | None = None) -> Iterator[Rows]:
    """The rows of a file of lines, of a CSV or TSV, each maybe gzipped, or of hf-dataset:NAME.

    split: of a table or dataset that has splits; None takes all rows of a table, and a dataset's split "train".
    split_name: the table's column of splits, if it has no usual name. Raises InputError, also while rows are taken.
    """
    if spec.startswith(PREFIX):
        header, cells = dataset_rows(spec, split or "train")
        yield Rows(spec, header, cells)
        return
    path = Path(spec)
    if not is_table(path):
        with open_text(path, "replace") as stream:
            yield Rows(spec, [], ([line] for line in _lines(stream, path)))
        return
    with rows_of(path, "replace") as (header, lines):
        part = split_column(path, header, split_name)
        if split is not None and part is None:
            raise InputError(f"{path} has no column of splits, so there is no telling which rows are {split!r}.")
        yield Rows(spec, header, _of_split(path, lines, part, split))


def text_column(rows: Rows, named: str | None = None) -> int:
    """Which cell of a row is the text: the only one, the one named, or the first that has a usual name."""
    if len(rows.header) < 2 and named is None:
        return 0
    return column(Path(rows.name), rows.header, named, TEXT_NAMES, "texts", "--column")


def stream_texts(spec: str, named: str | None = None, replaced: Counter[str] | None = None) -> Iterator[str]:
    """The texts of a file or dataset in its order, a text a row, empty ones included.

    replaced: counts texts that held what is no text.
    """
    with open_rows(spec) as rows:
        which = text_column(rows, named)
        if replaced is not None:
            rows.replaced = replaced
        for cells in rows:
            yield cells[which].strip()


def splits_of(spec: str, split_name: str | None = None) -> dict[str, int]:
    """How many rows each split of a table has; empty for what has no column of splits."""
    path = Path(spec)
    if spec.startswith(PREFIX) or not os.path.isfile(path) or not is_table(path):
        return {}
    present: Counter[str] = Counter()
    with rows_of(path, "replace") as (header, lines):
        part = split_column(path, header, split_name)
        if part is None:
            return {}
        for _ in of_split(lines, part, None, present):
            pass
    return dict(present)


def is_table(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(TABLES)


def _of_split(path: Path, lines: Iterator[list[str]], part: int | None, split: str | None) -> Iterator[list[str]]:
    present: Counter[str] = Counter()
    found = False
    for row in of_split(lines, part, split, present):
        found = True
        yield row
    if not found and split is not None:
        raise InputError(f"{path} has no rows of split {split!r}; it has {counts(present)}.")


def _lines(stream: Iterator[str], path: Path) -> Iterator[str]:
    try:
        for line in stream:
            yield line.rstrip("\r\n")
    except (OSError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} can't be read: {error}") from None


def find_columns(header: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """Where all of some names stand in a header, whatever their case; None unless all are there."""
    lower = [name.lower() for name in header]
    return [lower.index(name) for name in names] if all(name in lower for name in names) else None
