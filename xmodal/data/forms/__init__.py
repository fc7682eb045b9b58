"""The forms in which people have pictures and captions, read as they are: each gives rows of (picture, texts, split).

A form is found by looking, not by a flag: `find` says which reader a file or folder is for, and why not where none is.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from xmodal.data.source import Columns
from xmodal.errors import InputError


class Row(NamedTuple):
    """image: its name, relative to the listing's root; split: "" where the form has none."""

    image: str
    texts: list[str]
    split: str = ""


@dataclass(frozen=True)
class Listing:
    """What a file or folder says of its pictures.

    roots: folders that names may be relative to, the first one under which pictures are there counts.
    has_splits: whether rows say which split they are of.
    """

    form: str
    roots: tuple[Path, ...]
    rows: Iterator[Row]
    has_splits: bool


Reader = Callable[[Path, Columns], AbstractContextManager[Listing]]


def find(path: Path) -> Reader:
    """The reader for a file or folder. Raises InputError for what is of no form, naming those there are."""
    from xmodal.data.forms import class_folders, coco_folder, csv_table, folder_pairs, json_listing, metadata_folder

    if os.path.isfile(path):  # False for a name that is too long or has a NUL, where Path raises
        if path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
            return json_listing.read
        return csv_table.read
    if (inside := listing_inside(path)) is not None:
        return lambda _, columns: find(inside)(inside, columns)
    for form in (metadata_folder, coco_folder, folder_pairs, class_folders):
        if form.fits(path):
            return form.read
    raise InputError(_no_form(path))


def form_of(path: Path, columns: Columns) -> str:
    """What the form of a file or folder is called. Raises InputError as reading it does."""
    with find(path)(path, columns) as listing:
        return listing.form


def listing_inside(folder: Path) -> Path | None:
    """The one table or JSON in a folder that lists its pictures, if there is just one."""
    found = _listings(folder)
    return found[0] if len(found) == 1 else None


def _listings(folder: Path) -> list[Path]:
    from xmodal.data.forms.metadata_folder import NAMES

    files = {file.name for file in folder.iterdir() if file.is_file()}
    stems = Counter(Path(name).stem for name in files)
    return [
        folder / name
        for name in sorted(files - set(NAMES))
        # What has a namesake with another suffix is a picture's own text.
        if name.lower().endswith((".csv", ".tsv", ".json", ".jsonl")) and stems[Path(name).stem] == 1
    ]


def _no_form(path: Path) -> str:
    if tables := [file.name for file in _listings(path)]:
        return f"{path} is a folder with several tables; name one, such as {path / tables[0]}."
    names = sorted(os.listdir(path))
    shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "") or "nothing"
    return (
        f"{path} is a folder of no known form; in it: {shown}.\n"
        "Expected a table or JSON of captions, metadata.csv, pictures with a .txt each (0001.jpg, 0001.txt), or class "
        "folders."
    )


def strings(value: Any) -> list[str]:
    """A text or a list of texts as a list, stripped and without empty ones; half surrogate pairs become "?"."""
    told = value if isinstance(value, list) else [value]
    return [text for one in told if isinstance(one, str) and (text := one.encode(errors="replace").decode().strip())]
