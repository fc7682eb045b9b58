"""What a data source is, and how a data spec is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from xmodal.errors import BadSample, InputError, nearest

BUILT_IN = ("glyphs",)


class Source(Protocol):
    """Rows, each an image with its texts and a stable id. Several texts to an image are the rule."""

    name: str
    photographs: bool  # as opposed to drawings and signs, in which a flip changes the meaning
    image_id: np.ndarray  # (n,) int64, equal for equal images
    dropped: Mapping[str, int]  # how much of the data is no row, by what it lacks, such as "no caption"

    def __len__(self) -> int: ...

    def images(self, rows: np.ndarray) -> list[Image.Image | np.ndarray | BadSample]:
        """The pictures of rows (b,), decoded; one that can't be read comes back as the reason why."""
        ...

    def texts(self, row: int) -> Sequence[str]: ...

    def key(self, row: int) -> str:
        """What to call the row in a message, such as its path."""
        ...

    def fingerprint(self) -> str:
        """Changes when rows, texts or images do; a run resumes on the data it began with only."""
        ...


@dataclass(frozen=True)
class Columns:
    """The columns of a table, where they have no usual name."""

    image: str | None = None
    caption: str | None = None
    split: str | None = None


def open_source(spec: str, split: str | None = None, columns: Columns | None = None) -> Source:
    """A data spec: a built-in name, with /TEST for its tests, or a table of images and captions.

    split: the rows of a table whose split column says so; None takes all.
    Raises InputError for a spec that names nothing.
    """
    name, _, test = spec.partition("/")
    if name == "glyphs" and not os.path.exists(spec):
        from xmodal.data.glyphs import TESTS, Glyphs

        if test and test not in TESTS:
            raise InputError(f"glyphs has no test {test!r}; {nearest(test, TESTS)}")
        return Glyphs(test or "train")
    if not os.path.isfile(spec):  # False for a name that is too long or has a NUL, where Path raises
        raise InputError(_not_found(spec))
    from xmodal.data.table import read_table

    return read_table(Path(spec), split, columns or Columns())


def open_pairs(spec: str, val: str | None, columns: Columns | None = None) -> tuple[Source, dict[str, Source]]:
    """What to train on and what to evaluate on, by name.

    Built-in data has its tests. A table is evaluated on `val` (another spec); or its own rows of split val, or else
    test, are, and those of split train are trained on; or nothing is.
    """
    if spec == "glyphs" and val is None:
        from xmodal.data.glyphs import TESTS

        return open_source(spec), {name: open_source(f"glyphs/{name}") for name in TESTS}
    from xmodal.data.table import splits

    found = splits(Path(spec), columns or Columns()) if os.path.isfile(spec) else {}
    train = open_source(spec, "train" if "train" in found else None, columns)
    if val is not None:
        inside = splits(Path(val), columns or Columns()) if os.path.isfile(val) else {}
        return train, {"val": open_source(val, next((s for s in ("val", "test") if s in inside), None), columns)}
    split = next((s for s in ("val", "test") if s in found and "train" in found), None)
    return train, {split: open_source(spec, split, columns)} if split else {}


def captions(source: Source) -> Iterator[str]:
    """Every text of a source, row by row."""
    for row in range(len(source)):
        yield from source.texts(row)


def _not_found(spec: str) -> str:
    path = Path(spec)
    if os.path.isdir(path):
        tables = sorted(p.name for p in path.iterdir() if p.suffix in (".csv", ".tsv"))
        return f"{spec} is a folder; expected a table of images and captions" + (
            f", such as {path / tables[0]}." if tables else " (CSV or TSV)."
        )
    around = [p.name for p in path.parent.iterdir()] if os.path.isdir(path.parent) else []
    names = [*BUILT_IN, *around] if path.parent == Path() else around
    hint = nearest(path.name, names) if names else f"the folder {path.parent} does not exist"
    return f"No data {spec!r}: no file of this name, and no built-in set ({', '.join(BUILT_IN)})." + (
        f" {hint[0].upper()}{hint[1:]}" if hint.startswith(("did", "the")) else ""
    )
