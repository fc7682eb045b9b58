"""What is embedded: texts of a file or dataset, or the pictures of a folder or table, in parts of so many rows.

A row of the input has a number, from 0, that it keeps whatever becomes of the others.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

from xmodal.data.decode import SUFFIXES
from xmodal.data.delimited import IMAGE_NAMES, image_column, rows_of
from xmodal.data.image_paths import resolve
from xmodal.data.texts import TEXT_NAMES, is_table, stream_texts
from xmodal.errors import InputError

Kind = Literal["text", "image"]


@dataclass(frozen=True)
class Part:
    """Rows `first` … of the input: texts, or the names of pictures as the input has them.

    digest: of the texts, or of the names, sizes and dates of the pictures: another input has another.
    """

    number: int
    first: int
    items: list[str]
    digest: str


@dataclass
class Texts:
    """The texts of a file of lines, a table's column or a dataset; an empty line is an empty text.

    replaced: texts so far that held what is no text.
    """

    name: str
    column: str | None = None
    kind: Kind = "text"
    root: str | None = None
    replaced: Counter[str] = field(default_factory=Counter)

    def parts(self, size: int) -> Iterator[Part]:
        """Raises InputError, also in mid-way, for what can't be read."""
        self.replaced.clear()
        texts = stream_texts(self.name, self.column, self.replaced)
        return in_parts(texts, size, lambda text: text)


@dataclass
class Pictures:
    """Pictures by their names, relative to `folder` or, those of a table, to the working directory."""

    name: str
    folder: Path
    names: Sequence[str]
    kind: Kind = "image"
    replaced: Counter[str] = field(default_factory=Counter)

    @property
    def root(self) -> str:
        """What names are relative to, wherever the working directory is by then."""
        return str(self.folder.absolute())

    def parts(self, size: int) -> Iterator[Part]:
        return in_parts(self.names, size, lambda name: f"{name}\0{_stamp(self.path(name))}")

    def path(self, item: str) -> Path:
        return resolve(self.folder, item)

    def pictures(self, first: int, names: Sequence[str]) -> list[Path]:
        """Where the pictures of so many rows from the first on are."""
        return [self.path(name) for name in names]


class Input(Protocol):
    """What is embedded: those above, or what `xmodal.embedding.pairs` makes of data to train on.

    Of kind "image" it has `pictures(first, names)` as well: paths, decoded pictures, or BadSamples.
    """

    kind: Kind
    replaced: Counter[str]

    @property
    def name(self) -> str: ...
    @property
    def root(self) -> str | None: ...
    def parts(self, size: int, /) -> Iterator[Part]: ...


def open_input(spec: str, *, kind: Kind | None, column: str | None) -> Input:
    """What --data names. A folder is one of pictures; so is a table that has a column of them and none of texts.

    kind: "text" or "image" where that is to be decided otherwise; column: the column of texts or of pictures.
    Raises InputError for what is neither.
    """
    path = Path(spec)
    if os.path.isdir(path):  # False for a name that is too long or has a NUL, where Path raises
        if kind == "text" or column:
            raise InputError(f"{spec} is a folder, which is taken for one of pictures; texts come from a file.")
        return Pictures(spec, path, _in_folder(path))
    if not is_table(path) or spec.startswith("hf-dataset:"):
        if kind == "image":
            raise InputError(f"{spec}: pictures come from a folder, or from a table (CSV, TSV) with a column of paths.")
        return Texts(spec, column)
    if kind is None:
        with rows_of(path, "replace") as (header, _):
            kind = _kind(header, column)
    if kind == "text":
        return Texts(spec, column)
    return Pictures(spec, path.parent, _in_table(path, column))


def _kind(header: Sequence[str], column: str | None) -> Kind:
    names = [column.lower()] if column else [name.lower() for name in header]
    pictures = any(name in IMAGE_NAMES for name in names)
    return "image" if pictures and not any(name in TEXT_NAMES for name in names) else "text"


def _in_table(path: Path, named: str | None) -> list[str]:
    """Each picture once, in the order of the table."""
    with rows_of(path, "replace") as (header, lines):
        which = image_column(path, header, named)
        names = list(dict.fromkeys(name for line in lines if (name := line[which].strip())))
    if not names:
        raise InputError(f"{path} names no pictures.")
    return names


def _in_folder(folder: Path) -> list[str]:
    """The pictures of a folder and the folders in it by their suffix, sorted; hidden ones are left alone."""
    found = []
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            (Path(where) / name).relative_to(folder).as_posix()
            for name in files
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    if not found:
        raise InputError(f"{folder} has no pictures in it ({', '.join(SUFFIXES[:4])}, …).")
    return sorted(found)


def _stamp(path: Path) -> str:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return "missing"
    return f"{found.st_size} {found.st_mtime_ns}"


def in_parts(items: Iterable[str], size: int, told: Callable[[str], str]) -> Iterator[Part]:
    """Items in order, `size` to a part. told: what of an item the digest is over."""
    stream, number = iter(items), 0
    while some := list(islice(stream, size)):
        digest = hashlib.sha256()
        for item in some:
            # Half a surrogate pair stands for a byte of a file's name that is no UTF-8.
            told_bytes = told(item).encode(errors="surrogateescape")
            digest.update(len(told_bytes).to_bytes(8, "little") + told_bytes)
        yield Part(number, number * size, some, digest.hexdigest())
        number += 1
