"""Rows into a table, CSV or TSV by its name, that appears when it is whole; or tabs between cells in the terminal.

A text that a spreadsheet would take for a formula gets an apostrophe before it, as a spreadsheet marks text; in a
terminal it is rid of control characters.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from xmodal.errors import InputError

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a cell begins with that is no text (OWASP, "CSV Injection")


class Rows:
    """Writes rows of texts and formatted numbers."""

    def __init__(self, stream: TextIO, delimiter: str, cell: Callable[[str], str]) -> None:
        self._writer, self._cell = csv.writer(stream, delimiter=delimiter, lineterminator="\n"), cell

    def writerow(self, row: Sequence[str]) -> None:
        self._writer.writerow([self._cell(text) for text in row])

    def writerows(self, rows: Iterable[Sequence[str]]) -> None:
        for row in rows:
            self.writerow(row)


@contextmanager
def table_writer(path: Path | None) -> Iterator[Rows]:
    """Raises InputError where the file can't be written."""
    if path is None:
        from xmodal.evaluators.scores import plain

        yield Rows(sys.stdout, "\t", plain if sys.stdout.isatty() else no_formula)
        return
    beside = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("w", encoding="utf-8", newline="") as stream:
            yield Rows(stream, "," if path.suffix == ".csv" else "\t", no_formula)
        beside.replace(path)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror}.") from None
    finally:
        beside.unlink(missing_ok=True)


def no_formula(text: str) -> str:
    """A cell as text, unless it is a number."""
    if not text.startswith(FORMULA):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text
