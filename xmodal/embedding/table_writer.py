"""Rows into a table, CSV or TSV by its name, that appears when it is whole; or tabs between cells in the terminal."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xmodal.errors import InputError


@contextmanager
def table_writer(path: Path | None) -> Iterator[Any]:
    """A csv writer. Raises InputError where the file can't be written."""
    if path is None:
        yield csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
        return
    beside = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("w", encoding="utf-8", newline="") as stream:
            yield csv.writer(stream, delimiter="," if path.suffix == ".csv" else "\t", lineterminator="\n")
        beside.replace(path)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror}.") from None
    finally:
        beside.unlink(missing_ok=True)
