"""Pictures with a file of text each, under one name: 0001.jpg and 0001.txt, as img2dataset's `files` writes them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xmodal.data.decode import SUFFIXES
from xmodal.data.forms import Listing, Row, strings
from xmodal.data.forms.csv_table import CAPTION_NAMES, split_of
from xmodal.data.source import Columns

TEXTS = (".txt", ".caption", ".json")
MOST_BYTES = 1_000_000  # of a file of text
LOOKED_AT = 200  # files, to tell the form


def fits(folder: Path) -> bool:
    """Whether among the first files a picture has its text beside it."""
    pictures, seen = set(), set()
    for number, file in enumerate(_files(folder)):
        (pictures if file.suffix.lower() in SUFFIXES else seen).add(file.with_suffix(""))
        if number >= LOOKED_AT and pictures & seen:
            break
    return bool(pictures & {stem for stem in seen if any(stem.with_suffix(suffix).is_file() for suffix in TEXTS)})


@contextmanager
def read(folder: Path, columns: Columns) -> Iterator[Listing]:
    """Each line of a .txt is a caption; of a .json, what a key such as caption holds. Splits are the top folders."""
    tops = [name for name in sorted(os.listdir(folder)) if (folder / name).is_dir() and not name.startswith(".")]
    has_splits = bool(tops) and all(split_of(name) in ("train", "val", "test") for name in tops)

    def rows() -> Iterator[Row]:
        for file in _files(folder):
            if file.suffix.lower() in SUFFIXES:
                name = file.relative_to(folder)
                yield Row(name.as_posix(), _texts(file, columns), split_of(name.parts[0]) if has_splits else "")

    yield Listing("pictures with a text each", (folder,), rows(), has_splits)


def _files(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(where, name)


def _texts(picture: Path, columns: Columns) -> list[str]:
    for suffix in TEXTS:
        file = picture.with_suffix(suffix)
        if not file.is_file() or file.stat().st_size > MOST_BYTES:
            continue
        text = file.read_text(encoding="utf-8-sig", errors="replace")
        if suffix != ".json":
            return strings(text.splitlines())
        try:
            told = json.loads(text)
        except (ValueError, RecursionError):
            return []
        names = (columns.caption,) if columns.caption else CAPTION_NAMES
        return next((strings(told[name]) for name in names if isinstance(told, dict) and told.get(name)), [])
    return []
