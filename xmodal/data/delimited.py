"""Delimited text as people have it, CSV or TSV, plain or gzipped: its header, its rows, and which column is which.

The separator is found in the header; columns are found among their usual names, or named by a flag.
"""

from __future__ import annotations

import csv
import gzip
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from xmodal.errors import InputError, nearest

Broken = Literal["strict", "replace"]

# In the order in which they are looked for. filepath is open_clip's.
IMAGE_NAMES = (
    *("filepath", "file_path", "image_path", "image", "file_name", "filename"),
    *("path", "img", "img_path", "file"),
)
SPLIT_NAMES = ("split", "partition", "subset", "set")
SPLITS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test", "eval": "test"}


@contextmanager
def rows_of(path: Path, broken: Broken = "strict") -> Iterator[tuple[list[str], Iterator[list[str]]]]:
    """The header, and the rows after it, each as wide as the header; the file is open inside the `with`.

    broken: what is done about bytes that are no UTF-8: "strict" raises, "replace" puts U+FFFD there.
    Raises InputError for a file that is none, has no header or is no UTF-8 text, and, while the rows are taken, for
    one that can't be told apart into columns.
    """
    with open_text(path, broken) as stream:
        reader, header = _reader(stream, path)
        yield header, _rows(reader, path, len(header))


def column(path: Path, header: Sequence[str], named: str | None, usual: Sequence[str], what: str, flag: str) -> int:
    """The number of the column called `named`, or else of the first that has one of the usual names.

    what, flag: what the column holds and the flag that names it, for the InputError where there is none.
    """
    if named is not None:
        if named not in header:
            hint = nearest(named, header)
            every = f" Columns: {', '.join(header)}." if hint.startswith("did") else ""
            raise InputError(f"{path} has no column {named!r}; {hint}{every}")
        return header.index(named)
    lower = [name.lower() for name in header]
    for name in usual:
        if name in lower:
            return lower.index(name)
    raise InputError(
        f"{path} has no column of {what} under a usual name ({', '.join(usual[:4])}, …).\n"
        f"Its columns are: {', '.join(header)}. Name one by {flag}."
    )


def image_column(path: Path, header: Sequence[str], named: str | None) -> int:
    """The column of images' paths. Raises InputError where there is none."""
    return column(path, header, named, IMAGE_NAMES, "images", "--image-column")


def split_column(path: Path, header: Sequence[str], named: str | None) -> int | None:
    """The column that says train, val or test; None where none has a usual name. InputError if `named` isn't there."""
    if named is None and not any(name.lower() in SPLIT_NAMES for name in header):
        return None
    return column(path, header, named, SPLIT_NAMES, "splits", "--split-column")


def of_split(
    rows: Iterable[list[str]], part: int | None, split: str | None, present: Counter[str]
) -> Iterator[list[str]]:
    """The rows of one split, of all where it is None; how many rows each split has is counted into `present`.

    part: the column of splits; without one, all rows are of the split "".
    """
    for row in rows:
        word = row[part].strip().lower() if part is not None else ""
        here = SPLITS.get(word, word)
        present[here] += 1
        if split is None or here == split:
            yield row


def counts(present: Counter[str]) -> str:
    """The splits there are and their rows, for a message."""
    return ", ".join(f"{name or 'no split'} ({n})" for name, n in present.most_common()) or "no rows"


def open_text(path: Path, broken: Broken = "strict") -> IO[str]:
    """A text file, plain or gzipped, its line ends as they are. Raises InputError for none, and for an empty one."""
    if not os.path.isfile(path):  # False for a name that is too long or has a NUL, where Path raises
        raise InputError(f"No file {str(path)!r}.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty.")
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8-sig", errors=broken, newline="")
        return path.open(encoding="utf-8-sig", errors=broken, newline="")
    except OSError as error:
        raise InputError(f"{path} can't be opened: {error.strerror}.") from None


def _reader(stream: IO[str], path: Path) -> tuple[Any, list[str]]:
    """A csv reader after its header, and the header. Quotes count as CSV has them, and must be right: a quote that
    nothing closes would swallow the lines after it. A TSV in which they are not right is one without quoting.
    """
    csv.field_size_limit(2**31 - 1)
    try:
        first = stream.readline()
        separator = max("\t,;|", key=first.count) if any(s in first for s in "\t,;|") else ","
        plain = separator == "\t" and not _well_quoted(path)
        stream.seek(0)
        quoting = csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
        reader = csv.reader(stream, delimiter=separator, quoting=quoting, strict=True)
        header = [name.strip() for name in next(reader, [])]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text: {error}") from None
    except (OSError, EOFError, zlib.error, csv.Error) as error:
        raise InputError(f"{path} can't be read: {error}") from None
    if not any(header):
        raise InputError(f"{path} has no header; expected a line such as: filepath{separator}caption")
    return reader, header


def _well_quoted(path: Path) -> bool:
    with open_text(path, "replace") as stream:
        try:
            for _ in csv.reader(stream, delimiter="\t", strict=True):
                pass
        except csv.Error:
            return False
    return True


def _rows(reader: Any, path: Path, width: int) -> Iterator[list[str]]:
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"{path}, the row that begins in line {number}: {error}.\n"
                'A text with quotes in it needs quotes around it, and its own doubled: "a ""big"" dog".'
            ) from None
        except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}, near line {number}: {error}") from None
        if any(cell.strip() for cell in row[width:]):
            raise InputError(
                f"{path}, line {number}: {len(row)} columns, but the header has {width}.\n"
                "A caption that has the separator in it needs quotes around it."
            )
        if row:
            yield row[:width] + [""] * (width - len(row))
