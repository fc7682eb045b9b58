"""The columns of a Hugging Face dataset: which one holds pictures or texts, and what its cells are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmodal.errors import InputError, nearest

BLOCK = 4096  # rows that are looked through at a time


def find_column(
    name: str,
    dataset: Any,
    named: str | None,
    usual: Sequence[str],
    fits: Callable[[Any], bool],
    what: str,
    flag: str,
) -> str:
    """The column that is `named`, or else that under the first usual name, or the only one that fits.

    Raises InputError, with the name of the data and the flag that says which, where there is none.
    """
    there = [column for column in dataset.column_names if fits(dataset.features[column])]
    if named is not None:
        if named not in dataset.column_names:
            raise InputError(f"{name} has no column {named!r}; {nearest(named, dataset.column_names)}")
        return named
    for column in sorted(there, key=lambda c: usual.index(c.lower()) if c.lower() in usual else len(usual)):
        if column.lower() in usual or len(there) == 1:
            return column
    raise InputError(
        f"{name} has no column of {what} under a usual name; it has {', '.join(dataset.column_names)}. "
        f"Name one by {flag}."
    )


def is_picture(feature: Any) -> bool:
    import datasets

    stored = isinstance(feature, Mapping) and {"bytes", "path"} <= set(feature)
    return isinstance(feature, datasets.Image) or stored or getattr(feature, "dtype", "") in ("binary", "large_binary")


def is_text(feature: Any) -> bool:
    import datasets

    inner = getattr(feature, "feature", feature)  # that of a list
    return isinstance(inner, datasets.ClassLabel) or getattr(inner, "dtype", "") in ("string", "large_string")


def picture_file(cell: Any) -> bytes | Path:
    """A picture's bytes as `datasets` stores them, or where it is; b"" where there are none."""
    if isinstance(cell, Mapping):
        return cell["bytes"] or (Path(cell["path"]) if cell.get("path") else b"")
    return Path(cell) if isinstance(cell, str) else cell or b""


def blocks(n: int) -> Iterator[np.ndarray]:
    return (np.arange(start, min(n, start + BLOCK)) for start in range(0, n, BLOCK))
