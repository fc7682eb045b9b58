"""Tables of images and captions: CSV or TSV as people have them.

The separator is found in the header; columns are found among the usual names or named by flag; rows of one image are
put together; paths are relative to the table's folder, then to the working directory.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from xmodal.data.decode import decode
from xmodal.data.source import Columns
from xmodal.errors import BadSample, InputError, nearest

# In the order in which they are looked for. filepath and title are open_clip's.
IMAGE_NAMES = ("filepath", "file_path", "image_path", "image", "file_name", "filename", "path", "img", "img_path", "file")
CAPTION_NAMES = ("caption", "title", "text", "captions", "description", "sentence", "name", "prompt", "alt_text")
SPLIT_NAMES = ("split", "partition", "subset", "set")
LABEL_NAMES = ("label", "class", "class_name", "classname", "category", "target", "group")
SPLITS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test", "eval": "test"}


class Table:
    """A source over a table. Strings lie in arrow arrays: workers that were forked share them without copying."""

    def __init__(self, name: str, folder: Path, rows: dict[str, list[str]]) -> None:
        import pyarrow as pa

        self.name, self.folder = name, folder
        self.paths = pa.array(list(rows), pa.large_string())
        self.captions = pa.array([text for texts in rows.values() for text in texts], pa.large_string())
        self.first = np.cumsum([0, *(len(texts) for texts in rows.values())])  # row i has captions first[i]:first[i + 1]
        self.image_id = np.array([_id(path) for path in rows], dtype=np.int64)
        self.photographs = self._photographs()

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, row: int) -> Path:
        return _resolve(self.folder, self.key(row))

    def images(self, rows: np.ndarray) -> list[Image.Image | np.ndarray | BadSample]:
        found: list[Image.Image | np.ndarray | BadSample] = []
        for row in rows.tolist():
            try:
                found.append(decode(self.path(row)))
            except BadSample as problem:
                found.append(problem)
        return found

    def texts(self, row: int) -> Sequence[str]:
        return self.captions[self.first[row] : self.first[row + 1]].to_pylist()

    def key(self, row: int) -> str:
        return self.paths[int(row)].as_py()

    def fingerprint(self) -> str:
        """Over paths, captions and the sizes of files: reading every file would take as long as an epoch."""
        digest = hashlib.sha256()
        for row in range(len(self)):
            path = self.path(row)
            size = path.stat().st_size if path.is_file() else -1
            digest.update("\0".join([self.key(row), str(size), *self.texts(row), ""]).encode())
        return digest.hexdigest()

    def _photographs(self) -> bool:
        """By the first files: JPEG is what cameras and the web have photographs in, drawings are PNG, GIF or WebP."""
        suffixes = [self.key(row).lower().rsplit(".", 1)[-1] for row in range(min(64, len(self)))]
        return sum(s in ("jpg", "jpeg") for s in suffixes) * 2 > len(suffixes)


def read_table(path: Path, split: str | None = None, columns: Columns | None = None) -> Table:
    """The rows of a table, of one split if it is given, one row for each image in the order of its first line.

    Raises InputError for a table without rows, columns, that split, or any image that is there.
    """
    columns = columns or Columns()
    rows: dict[str, list[str]] = {}
    present: Counter[str] = Counter()
    with _open(path) as stream:
        reader, header = _reader(stream, path)
        image = _column(path, header, columns.image, IMAGE_NAMES, "images", "--image-column")
        texts = _caption_columns(path, header, columns.caption)
        part = _split_column(path, header, columns.split)
        for line in _lines(reader, path, len(header)):
            here = _split(line[part]) if part is not None else ""
            present[here] += 1
            if split is None or here == split:
                told = rows.setdefault(line[image].strip(), [])
                told += [text for text in (line[i].strip() for i in texts) if text and text not in told]
    rows = {name: told for name, told in rows.items() if name and told}
    if split is not None and not rows:
        raise InputError(f"{path} has no rows of split {split!r}; it has {_counts(present)}.")
    if not rows:
        raise InputError(f"{path} has a header but no row with an image and a caption.")
    folder = path.parent
    if not any(_resolve(folder, name).is_file() for name in rows):
        first = next(iter(rows))
        raise InputError(
            f"None of the {len(rows)} images of {path} is there. The first is {first!r}, looked for in "
            f"{folder.resolve()} and {Path.cwd()}."
        )
    return Table(f"{path}" + (f":{split}" if split else ""), folder, rows)


def splits(path: Path, columns: Columns) -> dict[str, int]:
    """How many lines each split of a table has; empty without a split column."""
    with _open(path) as stream:
        reader, header = _reader(stream, path)
        part = _split_column(path, header, columns.split)
        if part is None:
            return {}
        return dict(Counter(_split(line[part]) for line in _lines(reader, path, len(header))))


class Labelled:
    """Pictures with a class each, for zero-shot classification.

    labels: (n,) int64, numbers of `classes`. Pictures are read when asked for.
    """

    def __init__(self, name: str, paths: list[Path], labels: np.ndarray, classes: list[str]) -> None:
        self.name, self.paths, self.labels, self.classes = name, paths, labels, classes
        self.image_id = np.array([_id(str(p)) for p in paths], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def images(self, rows: np.ndarray) -> list[Image.Image | np.ndarray | BadSample]:
        found: list[Image.Image | np.ndarray | BadSample] = []
        for row in rows.tolist():
            try:
                found.append(decode(self.paths[row]))
            except BadSample as problem:
                found.append(problem)
        return found

    def key(self, row: int) -> str:
        return str(self.paths[row])


def read_labelled(
    path: Path, *, image_column: str | None = None, label_column: str | None = None, split: str | None = None
) -> Labelled:
    """A folder with a folder for each class, or a table with a column of images and one of classes.

    A folder may hold classnames.txt, one name a line in the order of its sorted class folders.
    Raises InputError for anything else.
    """
    if path.is_dir():
        return _labelled_folder(path)
    if not path.is_file():
        raise InputError(f"No data {str(path)!r}: expected a folder of class folders, or a table of images and classes.")
    files, names, present = [], [], Counter()
    with _open(path) as stream:
        reader, header = _reader(stream, path)
        image = _column(path, header, image_column, IMAGE_NAMES, "images", "--image-column")
        label = _column(path, header, label_column, LABEL_NAMES, "classes", "--label-column")
        part = _split_column(path, header, None)
        for line in _lines(reader, path, len(header)):
            here = _split(line[part]) if part is not None else ""
            present[here] += 1
            if (split is None or here == split) and line[image].strip() and line[label].strip():
                files.append(_resolve(path.parent, line[image].strip()))
                names.append(line[label].strip())
    if not files:
        raise InputError(
            f"{path} has no row with an image and a class"
            + (f" of split {split!r}; it has {_counts(present)}." if split else ".")
        )
    if not any(f.is_file() for f in files):
        raise InputError(f"None of the {len(files)} images of {path} is there; the first is {files[0]}.")
    classes = sorted(set(names))
    number = {name: i for i, name in enumerate(classes)}
    return Labelled(f"{path}" + (f":{split}" if split else ""), files, np.array([number[n] for n in names]), classes)


def _labelled_folder(path: Path) -> Labelled:
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = [(f, i) for i, folder in enumerate(folders) for f in sorted(folder.iterdir()) if f.is_file()]
    if not files:
        raise InputError(f"{path} has no class folders with images in them.")
    classes = [folder.name.replace("_", " ") for folder in folders]
    names = path / "classnames.txt"
    if names.is_file():
        classes = [line.strip() for line in names.read_text(encoding="utf-8").splitlines() if line.strip()]
        if len(classes) != len(folders):
            raise InputError(f"{names} has {len(classes)} names for {len(folders)} class folders.")
    return Labelled(str(path), [f for f, _ in files], np.array([i for _, i in files]), classes)


def _open(path: Path) -> IO[str]:
    if not path.is_file():
        raise InputError(f"No table {str(path)!r}.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty; expected a header and rows.")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _reader(stream: IO[str], path: Path) -> tuple[Iterator[list[str]], list[str]]:
    try:
        first = stream.readline()
        stream.seek(0)
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} is no UTF-8 text: {error}") from None
    separator = max("\t,;|", key=first.count)
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(stream, delimiter=separator)
    header = [name.strip() for name in next(reader, [])]
    if not any(header):
        raise InputError(f"{path} has no header; expected a line such as: filepath{separator}caption")
    return reader, header


def _lines(reader: Iterator[list[str]], path: Path, width: int) -> Iterator[list[str]]:
    number = 1
    while True:
        number += 1
        try:
            line = next(reader)
        except StopIteration:
            return
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}, near line {number}: {error}") from None
        if line:
            yield line + [""] * (width - len(line))


def _column(path: Path, header: list[str], named: str | None, usual: Sequence[str], what: str, flag: str) -> int:
    if named is not None:
        if named not in header:
            raise InputError(f"{path} has no column {named!r}; {nearest(named, header)} Columns: {', '.join(header)}.")
        return header.index(named)
    lower = [name.lower() for name in header]
    for name in usual:
        if name in lower:
            return lower.index(name)
    raise InputError(
        f"{path} has no column of {what} under a usual name ({', '.join(usual[:4])}, …).\n"
        f"Its columns are: {', '.join(header)}. Name one by {flag}."
    )


def _caption_columns(path: Path, header: list[str], named: str | None) -> list[int]:
    """The caption column, or all of caption_0, caption_1, …"""
    numbered = [i for i, name in enumerate(header) if name.lower().rstrip("0123456789") in ("caption_", "caption")]
    if named is None and numbered and not any(name.lower() in CAPTION_NAMES for name in header):
        return numbered
    return [_column(path, header, named, CAPTION_NAMES, "captions", "--caption-column")]


def _split_column(path: Path, header: list[str], named: str | None) -> int | None:
    if named is not None:
        return _column(path, header, named, (), "splits", "--split-column")
    lower = [name.lower() for name in header]
    return next((lower.index(name) for name in SPLIT_NAMES if name in lower), None)


def _split(word: str) -> str:
    word = word.strip().lower()
    return SPLITS.get(word, word)


def _counts(present: Counter[str]) -> str:
    return ", ".join(f"{name or 'no split'} ({n})" for name, n in present.most_common()) or "no rows"


def _resolve(folder: Path, name: str) -> Path:
    beside = folder / name
    return beside if beside.exists() or not Path(name).exists() else Path(name)


def _id(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big", signed=True)
