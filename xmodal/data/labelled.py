"""Pictures with a class each, for zero-shot classification: a folder of class folders, or a table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from xmodal.data.decode import Decoder, decode_each
from xmodal.data.delimited import column, counts, image_column, of_split, rows_of, split_column
from xmodal.data.image_paths import require_some, resolve
from xmodal.data.lines import read_lines, read_templates
from xmodal.data.stable_id import stable_id
from xmodal.errors import BadSample, InputError

if TYPE_CHECKING:
    from xmodal.data.clip_benchmark import Classified

LABEL_NAMES = ("label", "class", "class_name", "classname", "category", "target", "group")  # as they are looked for


class Labelled:
    """labels: (n,) int64, numbers of `classes`; templates: prompts that came with the pictures, each with {} for the
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
        self.image_id = np.array([stable_id(str(p)) for p in paths], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def images(
        self, rows: np.ndarray, decoders: Sequence[Decoder] | None = None
    ) -> list[Image.Image | np.ndarray | BadSample]:
        return decode_each((self.paths[row] for row in rows.tolist()), decoders)

    def key(self, row: int) -> str:
        return str(self.paths[row])


def read_labelled(
    path: Path,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    split: str | None = None,
    split_column: str | None = None,
) -> Labelled | Classified:
    """A folder with a folder for each class, a table with a column of images and one of classes, or a set of
    CLIP_benchmark's.

    A folder may hold classnames.txt, one name a line in the order of its sorted class folders, and templates.txt,
    one prompt a line with {} for the class.
    Raises InputError for anything else.
    """
    if os.path.isdir(path):  # False for a name that is too long or has a NUL, where Path raises
        from xmodal.data.clip_benchmark import is_set, read_classified

        return read_classified(path, split) if is_set(path) else _folder(path)
    if not os.path.isfile(path):
        raise InputError(
            f"No data {str(path)!r}: expected a folder of class folders, or a table of images and classes."
        )
    return _table(path, image_column, label_column, split, split_column)


def _table(path: Path, image_name: str | None, label_name: str | None, split: str | None, part: str | None) -> Labelled:
    files, names, present = [], [], Counter()
    with rows_of(path) as (header, lines):
        image = image_column(path, header, image_name)
        label = column(path, header, label_name, LABEL_NAMES, "classes", "--label-column")
        for line in of_split(lines, split_column(path, header, part), split, present):
            if line[image].strip() and line[label].strip():
                files.append(line[image].strip())
                names.append(line[label].strip())
    if not files:
        raise InputError(
            f"{path} has no row with an image and a class"
            + (f" of split {split!r}; it has {counts(present)}." if split else ".")
        )
    require_some(path, path.parent, files)
    classes = sorted(set(names))
    number = {name: i for i, name in enumerate(classes)}
    return Labelled(
        f"{path}" + (f":{split}" if split else ""),
        [resolve(path.parent, name) for name in files],
        np.array([number[name] for name in names]),
        classes,
    )


def _folder(path: Path) -> Labelled:
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
    names, prompts = path / "classnames.txt", path / "templates.txt"
    if names.is_file():
        classes = read_lines(names)
        if len(classes) != len(folders):
            raise InputError(f"{names} has {len(classes)} names for {len(folders)} class folders.")
    templates = read_templates(prompts) if prompts.is_file() else None
    return Labelled(str(path), [f for f, _ in files], np.array([i for _, i in files]), classes, templates)
