"""Pictures in files: a folder of any depth, one with a folder for each class, or a table that lists them."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xmodal.data.decode import SUFFIXES
from xmodal.data.delimited import column, image_column, rows_of, split_column
from xmodal.data.forms import class_folders, find, folder_pairs, listing_inside, metadata_folder
from xmodal.data.forms.csv_table import split_of
from xmodal.data.image_paths import require_some, with_most
from xmodal.data.labelled import LABEL_NAMES
from xmodal.data.listed_files import ListedFiles
from xmodal.data.pictures import NONE, PictureColumns
from xmodal.data.source import Columns
from xmodal.errors import InputError


class PictureFiles(ListedFiles):
    """Files of pictures, and the name of each one's class, "" for none."""

    def __init__(self, name: str, folder: Path, rows: Mapping[str, str], dropped: Mapping[str, int]) -> None:
        super().__init__(name, folder, rows)
        self.dropped = dropped
        self.classes = sorted({label for label in rows.values() if label})
        number = {label: i for i, label in enumerate(self.classes)} | {"": NONE}
        found = np.array([number[label] for label in rows.values()], dtype=np.int64)
        self.labels = found if self.classes else None

    def fingerprint(self) -> str:
        """Over paths, labels and the sizes of files."""
        digest = hashlib.sha256(b"" if self.labels is None else self.labels.tobytes())
        for row in range(len(self)):
            digest.update(f"{self.key(row)}\0{self.size(row)}\0".encode(errors="surrogatepass"))
        return digest.hexdigest()


class _Row(NamedTuple):
    image: str
    label: str
    split: str


def read_picture_files(path: Path, split: str | None, columns: PictureColumns) -> PictureFiles:
    """The pictures of a file or folder, of one split if it is given, each once.

    Raises InputError for one without any, without that split, and for a table none of whose pictures is there.
    """
    listing = _listing(path)
    rows: dict[str, str] = {}
    present: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for row in _rows(path, listing, columns):
        present[row.split] += 1
        if split is not None and row.split != split:
            continue
        if row.image:
            rows.setdefault(os.path.normpath(row.image), row.label)
        else:
            dropped["no image"] += 1
    if not rows:
        of = f" of split {split!r}" if split is not None else ""
        ends = ", ".join(SUFFIXES[:5])
        raise InputError(f"{path} has no pictures{of}" + (f": no file in it ends in {ends}, …" if not present else "."))
    folder = path
    if listing is not None:
        roots = [listing.parent]
        if listing.suffix.lower() in (".json", ".jsonl", ".ndjson"):
            with find(listing)(listing, Columns()) as told:
                roots = list(told.roots)
        folder = with_most(roots, rows)
        require_some(listing, folder, rows)
    return PictureFiles(f"{path}" + (f":{split}" if split else ""), folder, rows, dropped)


def splits_of_files(path: Path, columns: PictureColumns) -> list[str]:
    """The splits that rows are of; none where they don't say."""
    return list(dict.fromkeys(row.split for row in _rows(path, _listing(path), columns) if row.split))


def _listing(path: Path) -> Path | None:
    """The file that lists the pictures of a path, if there is one: itself, metadata.csv or the one table in it."""
    if path.is_file():
        return path
    named = next((path / name for name in metadata_folder.NAMES if (path / name).is_file()), None)
    return named or listing_inside(path)


def _rows(path: Path, listing: Path | None, columns: PictureColumns) -> Iterator[_Row]:
    if listing is None:
        yield from _in_folder(path)
    elif listing.suffix.lower() in (".json", ".jsonl", ".ndjson"):  # a listing of captions, which has no classes
        with find(listing)(listing, Columns(columns.image, split=columns.split)) as told:
            for image, _, split in told.rows:
                yield _Row(image, "", split)
    else:
        yield from _in_table(listing, columns)


def _in_table(path: Path, columns: PictureColumns) -> Iterator[_Row]:
    with rows_of(path) as (header, lines):
        image, part = image_column(path, header, columns.image), split_column(path, header, columns.split)
        label = None
        if columns.label is not None or any(name.lower() in LABEL_NAMES for name in header):
            label = column(path, header, columns.label, LABEL_NAMES, "classes", "--label-column")
        for line in lines:
            yield _Row(
                line[image].strip(),
                "" if label is None else line[label].strip(),
                "" if part is None else split_of(line[part]),
            )


def _in_folder(folder: Path) -> Iterator[_Row]:
    """Every picture at any depth. Folders train, val and test at the top are splits; below them, folders are classes,
    unless pictures lie beside these or have a text each.
    """
    tops = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    parts = {split_of(p.name): p for p in tops}
    if not parts or not set(parts) <= {"train", "val", "test"}:
        parts = {"": folder}
    labelled = not folder_pairs.fits(folder)
    names = class_folders.names_of(folder, next(iter(parts.values()))) if labelled else {}
    for split, part in parts.items():
        found = [Path(where, file).relative_to(folder) for where, file in _pictures(part)]
        depth = len(part.relative_to(folder).parts)
        kinds = {path.parts[depth] if len(path.parts) > depth + 1 else "" for path in found}
        has_classes = labelled and "" not in kinds and len(kinds) > 1
        for path in found:
            kind = path.parts[depth] if has_classes else ""
            yield _Row(path.as_posix(), names.get(kind, kind.replace("_", " ")), split)


def _pictures(folder: Path) -> Iterator[tuple[str, str]]:
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield where, name
