"""Class folders: a folder of pictures for each class; a picture's texts are its class in each template.

classnames.txt has a better name for each folder, in their sorted order; templates.txt prompts with {} for the class.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xmodal.data.decode import SUFFIXES
from xmodal.data.forms import Listing, Row
from xmodal.data.forms.csv_table import split_of
from xmodal.data.lines import read_lines, read_templates
from xmodal.data.source import Columns
from xmodal.errors import InputError

TEMPLATE = "a photo of a {}."  # CLIP's, Radford et al. 2021, section 3.1.4


def fits(folder: Path) -> bool:
    """Whether there are classes to tell apart: one folder alone is where something else has its pictures."""
    return sum(bool(_pictures(inner)) for inner in _folders(folder)) > 1 or bool(_splits(folder))


@contextmanager
def read(folder: Path, columns: Columns) -> Iterator[Listing]:
    """Folders train, val, test with class folders in them are splits. Raises InputError for names that don't fit."""
    parts = _splits(folder) or {"": folder}
    templates = read_templates(folder / "templates.txt") if (folder / "templates.txt").is_file() else [TEMPLATE]
    names = names_of(folder, next(iter(parts.values())))

    def rows() -> Iterator[Row]:
        for split, part in parts.items():
            for inner in _folders(part):
                told = names.get(inner.name, inner.name.replace("_", " "))
                texts = [template.replace("{}", told) for template in templates]
                for picture in _pictures(inner):
                    yield Row((inner / picture).relative_to(folder).as_posix(), texts, split)

    yield Listing("class folders", (folder,), rows(), len(parts) > 1)


def names_of(folder: Path, part: Path) -> dict[str, str]:
    """What classnames.txt calls the class folders of a part; nothing without one. InputError for another number."""
    file = folder / "classnames.txt"
    if not file.is_file():
        return {}
    names, folders = read_lines(file), [inner.name for inner in _folders(part)]
    if len(names) != len(folders):
        raise InputError(f"{file} has {len(names)} names for {len(folders)} class folders.")
    return dict(zip(folders, names, strict=True))


def _splits(folder: Path) -> dict[str, Path]:
    """Folders called train, val or test that have class folders in them, if all are."""
    inner = _folders(folder)
    named = {split_of(p.name): p for p in inner}
    known = bool(inner) and set(named) <= {"train", "val", "test"}
    return named if known and any(_pictures(c) for p in inner for c in _folders(p)) else {}


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _pictures(folder: Path) -> list[str]:
    return sorted(n for n in os.listdir(folder) if n.lower().endswith(SUFFIXES) and not n.startswith("."))
