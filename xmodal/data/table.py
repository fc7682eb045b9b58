"""Tables of images and captions: CSV or TSV as people have them.

The separator is found in the header; columns are found among the usual names or named by flag; rows of one image are
put together; paths are relative to the table's folder, then to the working directory.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from xmodal.data.decode import decode, looks_photographic
from xmodal.data.source import Columns
from xmodal.errors import BadSample, InputError, nearest

# In the order in which they are looked for. filepath and title are open_clip's.
IMAGE_NAMES = (
    *("filepath", "file_path", "image_path", "image", "file_name", "filename"),
    *("path", "img", "img_path", "file"),
)
CAPTION_NAMES = ("caption", "title", "text", "captions", "description", "sentence", "name", "prompt", "alt_text")
SPLIT_NAMES = ("split", "partition", "subset", "set")
LABEL_NAMES = ("label", "class", "class_name", "classname", "category", "target", "group")
SPLITS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test", "eval": "test"}


class Table:
    """A source over a table. Strings lie in arrow arrays: workers that were forked share them without copying.

    dropped: how many lines had no image, and how many images no caption.
    """

    def __init__(
        self, name: str, folder: Path, rows: dict[str, list[str]], dropped: Counter[str] | None = None
    ) -> None:
        import pyarrow as pa

        self.name, self.folder, self.dropped = name, folder, dropped or Counter()
        self.paths = pa.array(list(rows), pa.large_string())
        self.captions = pa.array([text for texts in rows.values() for text in texts], pa.large_string())
        # Row i has captions first[i] to first[i + 1].
        self.first = np.cumsum([0, *(len(texts) for texts in rows.values())])
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
            digest.update("\0".join([self.key(row), str(_size(self.path(row))), *self.texts(row), ""]).encode())
        return digest.hexdigest()

    def _photographs(self) -> bool:
        """By the first eight images that open: most are JPEG, or 96 pixels a side or more without transparency."""

        def found() -> Iterator[bool]:
            for row in range(min(64, len(self))):
                try:
                    yield looks_photographic(self.path(row))
                except BadSample:
                    continue

        first = list(islice(found(), 8))
        return 2 * sum(first) > len(first)


def read_table(path: Path, split: str | None = None, columns: Columns | None = None) -> Table:
    """The rows of a table, of one split if it is given, one row for each image in the order of its first line.

    Raises InputError for a table without rows, columns, that split, or any image that is there.
    """
    columns = columns or Columns()
    rows: dict[str, list[str]] = {}
    present: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    with _open(path) as stream:
        reader, header = _reader(stream, path)
        image = _column(path, header, columns.image, IMAGE_NAMES, "images", "--image-column")
        texts = _caption_columns(path, header, columns.caption)
        part = _split_column(path, header, columns.split)
        for line in _lines(reader, path, len(header)):
            here = _split(line[part]) if part is not None else ""
            present[here] += 1
            if split is None or here == split:
                if not line[image].strip():
                    dropped["no image"] += 1
                    continue
                told = rows.setdefault(os.path.normpath(line[image].strip()), [])
                for text in (t for i in texts for t in _texts(line[i], header[i])):
                    if text and text not in told:
                        told.append(text)
    dropped["no caption"] = sum(not told for told in rows.values())
    rows = {name: told for name, told in rows.items() if told}
    if split is not None and not rows:
        raise InputError(f"{path} has no rows of split {split!r}; it has {_counts(present)}.")
    if not rows:
        raise InputError(f"{path} has a header but no row with an image and a caption.")
    folder = path.parent
    if not any(os.path.isfile(_resolve(folder, name)) for name in rows):
        raise InputError(_none_there(path, len(rows), next(iter(rows))))
    return Table(f"{path}" + (f":{split}" if split else ""), folder, rows, dropped)


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

    labels: (n,) int64, numbers of `classes`; templates: prompts that came with the pictures, each with {} for the
    class, or None. Pictures are read when asked for.
    """

    def __init__(
        self,
        name: str,
        paths: list[Path],
        labels: np.ndarray,
        classes: list[str],
        templates: list[str] | None = None,
    ) -> None:
        self.name, self.paths, self.classes, self.templates = name, paths, classes, templates
        self.labels = labels.astype(np.int64)
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

    def fingerprint(self) -> str:
        """Over paths, the sizes of files, and classes."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for path, label in zip(self.paths, self.labels.tolist(), strict=True):
            digest.update(f"{path}\0{_size(path)}\0{label}\0".encode())
        return digest.hexdigest()


def read_labelled(
    path: Path,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    split: str | None = None,
    split_column: str | None = None,
) -> Labelled:
    """A folder with a folder for each class, or a table with a column of images and one of classes.

    A folder may hold classnames.txt, one name a line in the order of its sorted class folders, and templates.txt,
    one prompt a line with {} for the class.
    Raises InputError for anything else.
    """
    if os.path.isdir(path):  # False for a name that is too long or has a NUL, where Path raises
        return _labelled_folder(path)
    if not os.path.isfile(path):
        raise InputError(
            f"No data {str(path)!r}: expected a folder of class folders, or a table of images and classes."
        )
    files, names, present = [], [], Counter()
    with _open(path) as stream:
        reader, header = _reader(stream, path)
        image = _column(path, header, image_column, IMAGE_NAMES, "images", "--image-column")
        label = _column(path, header, label_column, LABEL_NAMES, "classes", "--label-column")
        part = _split_column(path, header, split_column)
        for line in _lines(reader, path, len(header)):
            here = _split(line[part]) if part is not None else ""
            present[here] += 1
            if (split is None or here == split) and line[image].strip() and line[label].strip():
                files.append(line[image].strip())
                names.append(line[label].strip())
    if not files:
        raise InputError(
            f"{path} has no row with an image and a class"
            + (f" of split {split!r}; it has {_counts(present)}." if split else ".")
        )
    paths = [_resolve(path.parent, name) for name in files]
    if not any(os.path.isfile(p) for p in paths):
        raise InputError(_none_there(path, len(files), files[0]))
    classes = sorted(set(names))
    number = {name: i for i, name in enumerate(classes)}
    return Labelled(f"{path}" + (f":{split}" if split else ""), paths, np.array([number[n] for n in names]), classes)


def _labelled_folder(path: Path) -> Labelled:
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = [
        (file, i)
        for i, folder in enumerate(folders)
        for file in sorted(folder.iterdir())
        if file.is_file() and not file.name.startswith(".")
    ]
    if not files:
        raise InputError(f"{path} has no class folders with images in them.")
    classes = [folder.name.replace("_", " ") for folder in folders]
    names = path / "classnames.txt"
    if names.is_file():
        classes = _plain_lines(names)
        if len(classes) != len(folders):
            raise InputError(f"{names} has {len(classes)} names for {len(folders)} class folders.")
    prompts = path / "templates.txt"
    templates = _plain_lines(prompts) if prompts.is_file() else None
    if templates is not None and not (templates and all("{}" in line for line in templates)):
        raise InputError(f"{prompts} needs prompts, one a line, each with {{}} where the class goes.")
    return Labelled(str(path), [f for f, _ in files], np.array([i for _, i in files]), classes, templates)


def _plain_lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text: {error}") from None


def _open(path: Path) -> IO[str]:
    if not os.path.isfile(path):
        raise InputError(f"No table {str(path)!r}.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty; expected a header and rows.")
    try:
        if path.suffix == ".gz":
            return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
        return path.open(encoding="utf-8-sig", newline="")
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
    with _open(path) as stream:
        try:
            for _ in csv.reader(stream, delimiter="\t", strict=True):
                pass
        except csv.Error:
            return False
    return True


def _lines(reader: Any, path: Path, width: int) -> Iterator[list[str]]:
    """The rows after the header, as wide as it is. Raises InputError for one that can't be told apart into columns."""
    while True:
        number = reader.line_num + 1
        try:
            line = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"{path}, the row that begins in line {number}: {error}.\n"
                'A text with quotes in it needs quotes around it, and its own doubled: "a ""big"" dog".'
            ) from None
        except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}, near line {number}: {error}") from None
        if any(cell.strip() for cell in line[width:]):
            raise InputError(
                f"{path}, line {number}: {len(line)} columns, but the header has {width}.\n"
                "A caption that has the separator in it needs quotes around it."
            )
        if line:
            yield line[:width] + [""] * (width - len(line))


def _texts(cell: str, column: str) -> list[str]:
    """The captions in a cell: one, or those of a JSON list where the column is called captions."""
    if column.lower() == "captions" and cell.lstrip().startswith("["):
        try:
            told = json.loads(cell)
        except (ValueError, RecursionError):
            told = None
        if isinstance(told, list) and all(isinstance(text, str) for text in told):
            # JSON may hold half a surrogate pair, which is no text: "?" stands for it.
            return [text.encode(errors="replace").decode().strip() for text in told]
    return [cell.strip()]


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
    # os.path answers False for a name that is too long or has a NUL, where Path raises.
    beside = folder / name
    return beside if os.path.exists(beside) or not os.path.exists(name) else Path(name)


def _size(path: Path) -> int:
    """Bytes of a regular file; −1 if there is none."""
    return os.path.getsize(path) if os.path.isfile(path) else -1


def _none_there(path: Path, n: int, first: str) -> str:
    folders = dict.fromkeys([str(path.parent.resolve()), str(Path.cwd())])
    shown = first if len(first) <= 200 else first[:200] + "…"
    return f"None of the {n} images of {path} is there. The first is {shown!r}, looked for in {' and '.join(folders)}."


def _id(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big", signed=True)


def held_out_split(spec: str, columns: Columns) -> str | None:
    """The split of a table that is there to be evaluated on: test, else val, else none."""
    found = splits(Path(spec), columns) if os.path.isfile(spec) else {}
    return next((split for split in ("test", "val") if split in found), None)
